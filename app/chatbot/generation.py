"""One answer being written. It belongs to the process, not to a request: readers come and go without its noticing.

It runs in a thread of its own, which is a greenlet under gunicorn. Nothing here knows of HTTP.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import orjson
from sqlalchemy import bindparam, update
from sqlalchemy.exc import SQLAlchemyError

from chatbot import metrics, usage
from chatbot.context import chars_of
from chatbot.database import MESSAGES, Database, Status, now
from chatbot.model import Answer, Model, ModelError, Turn
from chatbot.streamlog import StreamLog

log = logging.getLogger(__name__)

# The last save is tried again for as long as a killed PostgreSQL needs to come back.
LAST_SAVE_ATTEMPTS = 10
LAST_SAVE_PAUSE = 1.0
# A longer answer (characters) is ended: a model that never stops must not fill the memory.
MAX_CHARS = 1_000_000
# Why an answer has ended whose process has died.
WORKER_LOST = "worker_lost"
# The mark of an answer that is `streaming` and waits for another process to write on.
HANDED_OVER = "handed_over"

_MINE = MESSAGES.c.id == bindparam("message")
_SAVE = (
    update(MESSAGES)
    .where(_MINE, MESSAGES.c.status == Status.STREAMING)
    .values(
        content=bindparam("text"),
        status=bindparam("how"),
        finish_reason=bindparam("why"),
        error=bindparam("trouble"),
        prompt_tokens=bindparam("prompt"),
        completion_tokens=bindparam("completion"),
        updated_at=bindparam("clock"),
    )
    .returning(MESSAGES.c.id)
)
# The same with what it has used: one statement where there were four.
_SAVE_USED = usage.recording(_SAVE.cte("saved"))
_KEEP_TEXT = (
    update(MESSAGES)
    .where(_MINE, MESSAGES.c.status == Status.INTERRUPTED)
    .values(content=bindparam("text"))
    .returning(MESSAGES.c.finish_reason)
)


@dataclass(frozen=True, slots=True)
class Job:
    """What to generate: the text for a message that is `streaming` already, and what it begins with when continued.

    `account_id` says whose tokens it uses. `model` is the configured one where there is none, `used` what the text so
    far has cost (prompt and completion tokens), which is counted already. `then` is called with the whole text after
    the answer is complete and saved.
    """

    message_id: uuid.UUID
    turns: list[Turn]
    text: str = ""
    account_id: uuid.UUID | None = None
    model: str | None = None
    used: tuple[int, int] = (0, 0)
    then: Callable[[str], None] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an answer has ended. Token counts are None where nobody told; `error` is for the reader."""

    status: Status
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None
    error_status: int = 502

    def encoded(self) -> bytes:
        """The outcome for the last entry of a log."""
        return orjson.dumps(self)

    @staticmethod
    def decoded(encoded: bytes) -> "Outcome":
        """The opposite."""
        fields = orjson.loads(encoded)
        return Outcome(**fields | {"status": Status(fields["status"])})


class Generation:
    """Writes one message: into its log at once, into the database when `save` of its keeper and at the end."""

    def __init__(self, database: Database, model: Model, stream_log: StreamLog, job: Job) -> None:
        self.message_id = job.message_id
        self.started = time.monotonic()
        self.refusal: ModelError | None = None
        self._database = database
        self._model = model
        self._log = stream_log
        self._stream = str(job.message_id)
        self._name = job.model or model.name
        self._turns = job.turns
        self._prompt_chars = chars_of(job.turns)
        self._account_id = job.account_id
        self._used = job.used
        self._text = [job.text]
        self._chars = len(job.text)
        self._pieces = 0
        self._first_piece: float | None = None
        self._prompt_tokens: int | None = None
        self._completion_tokens: int | None = None
        self._answer: Answer | None = None
        self._asked = threading.Event()
        self._lock = threading.Lock()
        self.ended = False  # nothing is added any more
        self._finished = threading.Event()
        self.completed = False  # by the model itself

    @property
    def finished(self) -> bool:
        """Whether everything is saved."""
        return self._finished.is_set()

    def run(self) -> None:
        """Write the answer to its end; returns when everything is saved, whoever has ended it. Never raises."""
        self._log.open(self._stream)
        metrics.waiting_generations.inc()
        try:
            self._write()
        except ModelError as error:
            self.refusal = error
            self._end(Status.FAILED, error=error)
        except Exception:
            log.exception("generation broke", extra={"message_id": self._stream})
            internal = ModelError(500, "The answer broke off because of an internal error.", kind="internal")
            self._end(Status.FAILED, error=internal)
        finally:
            self._asked.set()
            self._finished.wait()

    def wait_for_model(self, seconds: float) -> ModelError | None:
        """Wait until the model has accepted the question or refused it; the error in the second case."""
        self._asked.wait(seconds)
        return None if self._answer else self.refusal

    def stop(self, status: Status, reason: str) -> None:
        """End the answer here, keep its text and leave the model. Does nothing when it has ended."""
        self._end(status, reason)
        if self._answer:
            self._answer.close()

    def hand_over(self) -> None:
        """Stop behind a whole piece and leave the rest to another process. Does nothing when it has ended.

        The text is saved, what it has cost is counted, the log stays open, and the message is marked with HANDED_OVER.
        """
        with self._lock:
            if self.ended:
                return
            self.ended = True
        self._asked.set()  # the model's answer to the question is the next process's affair
        self._count_tokens()
        self._save_at_last(self._outcome(Status.STREAMING, HANDED_OVER, None))
        log.info("answer handed over", extra={"message_id": self._stream, "position": self._chars})
        self._finished.set()
        if self._answer:
            self._answer.close()

    def snapshot(self) -> tuple[str, int]:
        """The text so far, and its length."""
        with self._lock:
            self._text = ["".join(self._text)]
            return self._text[0], self._chars

    def _write(self) -> None:
        finish_reason = None
        self._answer = self._model.answer(self._turns, self._name)
        self._turns = []  # may hold images
        self._asked.set()
        try:
            for chunk in self._answer:
                finish_reason = chunk.finish_reason or finish_reason
                self._prompt_tokens = chunk.prompt_tokens or self._prompt_tokens
                self._completion_tokens = chunk.completion_tokens or self._completion_tokens
                if chunk.text:
                    self._append(chunk.text, chunk.pieces)
                if self.ended:
                    return
                if self._chars > MAX_CHARS:
                    self.stop(Status.INTERRUPTED, "size_limit")
                    return
        finally:
            self._answer.close()
        if finish_reason is None and not self.ended:
            raise ModelError(502, "The model broke off in the middle of the answer.", kind="broke_off")
        self._end(Status.COMPLETE, finish_reason)

    def _append(self, text: str, pieces: int) -> None:
        with self._lock:
            if self.ended:
                return
            if self._first_piece is None:
                self._first_piece = time.monotonic()
                metrics.waiting_generations.dec()
                metrics.first_token.labels(self._name).observe(self._first_piece - self.started)
            self._pieces += pieces
            self._text.append(text)
            self._chars += len(text)
            self._log.append(self._stream, self._chars, text)

    def _end(self, status: Status, reason: str | None = None, error: ModelError | None = None) -> None:
        with self._lock:
            if self.ended:
                return
            self.ended = True
        self.completed = status is Status.COMPLETE
        outcome = self._outcome(status, reason, error)
        self._report(outcome, error)
        self._save_at_last(outcome)
        self._log.close(self._stream, self._chars, outcome.encoded())
        self._finished.set()

    def _save_at_last(self, outcome: Outcome) -> None:
        for _ in range(LAST_SAVE_ATTEMPTS):
            if self._save(outcome):
                return
            time.sleep(LAST_SAVE_PAUSE)
        log.error("the end of an answer could not be saved", extra={"message_id": self._stream})

    def _outcome(self, status: Status, reason: str | None, error: ModelError | None) -> Outcome:
        """How it has ended, with what the text has cost in all."""
        prompt, completion = self._prompt_tokens, self._counted()
        if self._used != (0, 0):
            prompt, completion = (prompt or 0) + self._used[0], completion + self._used[1]
        if error is None:
            return Outcome(status, reason, prompt, completion)
        return Outcome(status, "error", prompt, completion, error.detail, error.status)

    def _counted(self) -> int:
        """The completion tokens of this run."""
        return self._completion_tokens if self._completion_tokens is not None else self._pieces

    def _prompt_used(self) -> int:
        """The prompt tokens of this run, estimated where the model has not counted them."""
        return usage.estimate(self._prompt_chars) if self._prompt_tokens is None else self._prompt_tokens

    def _report(self, outcome: Outcome, error: ModelError | None) -> None:
        name, counted = self._name, self._count_tokens()
        seconds = time.monotonic() - self.started
        if error is not None:
            metrics.model_errors.labels(name, error.kind).inc()
        metrics.messages_total.labels("assistant", name).inc()
        metrics.count_answer(name, outcome.status.value, outcome.finish_reason or "")
        metrics.stream_duration.labels(name).observe(seconds)
        log.info(
            "answer ended",
            extra={
                "message_id": self._stream,
                "status": outcome.status.value,
                "finish_reason": outcome.finish_reason,
                "seconds": round(seconds, 3),
                "prompt_tokens": self._prompt_tokens,
                "completion_tokens": counted,
            },
        )

    def _count_tokens(self) -> int:
        """Count what this run has used, and how quick it was; its completion tokens."""
        clock, counted = time.monotonic(), self._counted()
        if self._first_piece is None:
            metrics.waiting_generations.dec()
        elif counted > 1 and clock > self._first_piece:
            metrics.token_rate.labels(self._name).observe(counted / (clock - self._first_piece))
        metrics.tokens_total.labels(self._name, "prompt").inc(self._prompt_tokens or 0)
        metrics.tokens_total.labels(self._name, "completion").inc(counted)
        return counted

    def _save(self, outcome: Outcome) -> bool:
        """Write text, outcome and what it has used; False when the database did not take them.

        Where somebody else has ended the message meanwhile (see `generations.Generations.reap`) only the text is
        written: it is what its readers saw.
        """
        text, _ = self.snapshot()
        ended = {
            "how": outcome.status,
            "why": outcome.finish_reason,
            "trouble": outcome.error,
            "prompt": outcome.prompt_tokens,
            "completion": outcome.completion_tokens,
            "clock": now(),
        }
        mine, reaped = {"message": self.message_id, "text": text}, False
        try:
            if self._database.combines and self._save_used(mine | ended):
                return True
            with self._database.statements(transaction=True) as run:
                if not run(_SAVE, **mine, **ended):
                    reaped = any(row.finish_reason == WORKER_LOST for row in run(_KEEP_TEXT, **mine))
                if self._account_id is not None and self._answer is not None and not reaped:
                    # Also where the message is gone: deleting it gives no tokens back.
                    usage.record(run, self._account_id, self._prompt_used(), self._counted())
        except SQLAlchemyError as failure:
            log.warning("could not save an answer: %s", type(failure).__name__, extra={"message_id": self._stream})
            return False
        return True

    def _save_used(self, values: dict[str, object]) -> bool:
        """Write the end and what it has used at once; False where somebody else has ended the message meanwhile."""
        if self._account_id is None or self._answer is None:
            return False
        used = self._prompt_used(), self._counted()
        with self._database.statements() as run:
            return usage.save_and_record(run, _SAVE_USED, values, self._account_id, *used)
