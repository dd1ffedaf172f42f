import fcntl
import json
import logging
import os
import sys

from chatbot.logs import JsonFormatter, LossyHandler, logging_config
from flask import Flask, g


def line(**extra: object) -> dict[str, object]:
    record = logging.getLogger("test").makeRecord(
        "test", logging.WARNING, "file", 1, "said %s", ("ünicode\n",), None, extra=extra
    )
    text = JsonFormatter().format(record)
    assert "\n" not in text
    return dict(json.loads(text))


def test_a_record_is_one_line_of_json() -> None:
    entry = line(milliseconds=1.5, odd={1, 2} and object)
    assert entry["message"] == "said ünicode\n"
    assert (entry["level"], entry["logger"], entry["milliseconds"]) == ("warning", "test", 1.5)
    assert str(entry["time"]).endswith("Z")
    assert "request_id" not in entry


def test_the_request_is_named() -> None:
    with Flask("test").test_request_context():
        g.request_id = "abc"
        assert line()["request_id"] == "abc"


def test_an_exception_is_in_the_line() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        record = logging.getLogger("test").makeRecord("test", logging.ERROR, "file", 1, "oh", (), sys.exc_info())
    assert "ValueError: broken" in json.loads(JsonFormatter().format(record))["exception"]


def test_what_has_no_room_is_left_out_and_counted() -> None:
    here, there = os.pipe()
    size = fcntl.fcntl(there, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(here, "rb", buffering=0) as reader, os.fdopen(there, "w") as writer:
        handler = LossyHandler(writer)
        handler.setFormatter(JsonFormatter())
        # More than fits: its end comes with what comes next.
        for message in ("a" * (size + 1000), "b", "c"):
            handler.emit(logging.makeLogRecord({"msg": message, "levelname": "INFO"}))
        text = reader.read(size)
        handler.emit(logging.makeLogRecord({"msg": "d", "levelname": "INFO"}))
        text += reader.read(size)
    entries = [json.loads(part) for part in text.splitlines()]
    assert [entry["message"][:5] for entry in entries] == ["aaaaa", "lines", "d"]
    assert len(entries[0]["message"]) == size + 1000
    assert (entries[1]["lines"], entries[1]["level"]) == (2, "warning")


def test_the_configuration_silences_what_repeats() -> None:
    loggers = logging_config("debug")["loggers"]
    assert loggers["gunicorn.error"]["level"] == "DEBUG"
    assert loggers["httpx2"]["level"] == "WARNING"
