"""Structured logs: one JSON object a line on standard output. Prompts, answers and secrets are never logged."""

import logging
import os
import stat
import time
from typing import Any

import orjson
from flask import g, has_request_context

# What a LogRecord always carries; everything else came in through `extra=`.
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Formats a record as a line of JSON: time (UTC), level, logger, message, request's id and the `extra` fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if has_request_context() and "request_id" in g:
            entry["request_id"] = g.request_id
        entry |= {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(entry, default=str).decode()


class LossyHandler(logging.StreamHandler):  # type: ignore[type-arg]  # the type of its stream does not matter
    """Writes lines to a pipe, and leaves out what has no room there, instead of waiting for whoever reads it.

    A container's log goes to Docker's engine through a pipe of 64 KiB. While the engine is down, or has lost the pipe
    in a restart, containers go on, until the pipe is full: a write would then stop a worker with all of its answers.
    The first line that has room again comes after one that says how many had none.
    """

    def __init__(self, stream: Any = None) -> None:
        super().__init__(stream)
        self._descriptor = self.stream.fileno()
        # What is missing of a line that had room only for its beginning, and how many lines had none since.
        self._rest, self._lost = b"", 0
        # Not for a terminal or a file: who started this process writes there, too, and would be surprised.
        if stat.S_ISFIFO(os.fstat(self._descriptor).st_mode):
            os.set_blocking(self._descriptor, False)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it as lost."""
        try:
            line = self._line(record)
            if self._lost:
                line = self._line(self._told()) + line
            written = self._write(self._rest + line) - len(self._rest)
            if written > 0:
                self._rest, self._lost = line[written:], 0
            else:
                self._rest, self._lost = self._rest[len(self._rest) + written :], self._lost + 1
        except Exception:
            self.handleError(record)

    def _told(self) -> logging.LogRecord:
        said = {"name": __name__, "levelname": "WARNING", "msg": "lines had no room in the pipe of the log"}
        return logging.makeLogRecord(said | {"lines": self._lost})

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode() + b"\n"

    def _write(self, data: bytes) -> int:
        """Write what there is room for; return how many bytes that were."""
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            return 0


def logging_config(level: str, handler: type[logging.Handler] = logging.StreamHandler) -> dict[str, Any]:
    """A `logging.config.dictConfig` for the application and gunicorn alike; `level` is a lower-case name."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "chatbot.logs.JsonFormatter"}},
        "handlers": {"stdout": {"()": handler, "stream": "ext://sys.stdout", "formatter": "json"}},
        "root": {"level": level.upper(), "handlers": ["stdout"]},
        "loggers": {
            "gunicorn.error": {"level": level.upper(), "handlers": [], "propagate": True},
            "httpx2": {"level": "WARNING"},
            "httpcore2": {"level": "WARNING"},
            "openai": {"level": "WARNING"},
            "alembic": {"level": "WARNING"},
        },
    }
