"""One answer being written: a thread of its own reads the model, saves the text as it grows and tells a reader.

Under gunicorn the thread is a greenlet. Nothing here knows of HTTP.
"""

import logging
import queue
import threading
import time
import uuid
from dataclasses import dataclass

from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError

from chatbot import metrics
from chatbot.database import Conversation, Database, Message, Status, now
from chatbot.model import Model, ModelError, Turn

log = logging.getLogger(__name__)

# Text older than this (seconds) is in the database, whatever happens to this process.
SAVE_EVERY = 1.0
# The last save is tried again for as long as a killed PostgreSQL needs to come back.
LAST_SAVE_ATTEMPTS = 10
LAST_SAVE_PAUSE = 1.0


@dataclass(frozen=True, slots=True)
class Opened:
    """The model accepted the question."""


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of text."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The answer has ended and is saved. Token counts are None where the model did not tell."""

    status: Status
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer has ended with an error; the text so far is saved."""

    error: ModelError


Event = Opened | Delta | Done | Failed


class Generation:
    """Writes the message `message_id`, which is in the database with the status `streaming`.

    `events` ends with exactly one Done or Failed, unless `cancel` was called.
    """

    def __init__(
        self, database: Database, model: Model, message_id: uuid.UUID, turns: list[Turn], max_seconds: float
    ) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.message_id = message_id
        self._database = database
        self._model = model
        self._turns = turns
        self._max_seconds = max_seconds
        self._started = time.monotonic()
        self._pieces: list[str] = []
        self._prompt_tokens: int | None = None
        self._completion_tokens: int | None = None
        self._lock = threading.Lock()
        self._ended = False
        self._unwanted = False  # somebody else ended or deleted the message

    def start(self) -> None:
        """Begin to ask the model."""
        threading.Thread(target=self._run, name=f"generation-{self.message_id}", daemon=True).start()

    def cancel(self) -> None:
        """End the answer here and keep its text as interrupted. Does nothing when it has ended."""
        self._end(Status.INTERRUPTED)

    def heartbeat(self) -> None:
        """Tell the database that a silent generation is alive (see `conversations.mark_dead_generations`)."""
        if not self._ended:
            self._save(Status.STREAMING)

    def _run(self) -> None:
        try:
            self.events.put(self._generate())
        except ModelError as error:
            self._end(Status.FAILED, error=error.detail)
            self.events.put(Failed(error))
        except Exception:
            log.exception("generation broke", extra={"message_id": str(self.message_id)})
            broken = ModelError(500, "The answer broke off because of an internal error.")
            self._end(Status.FAILED, error=broken.detail)
            self.events.put(Failed(broken))

    def _generate(self) -> Done:
        finish_reason = None
        saved = self._started
        with self._model.answer(self._turns) as chunks:
            self.events.put(Opened())
            for chunk in chunks:
                if self._ended or self._unwanted:
                    break
                clock = time.monotonic()
                finish_reason = chunk.finish_reason or finish_reason
                self._prompt_tokens = chunk.prompt_tokens or self._prompt_tokens
                self._completion_tokens = chunk.completion_tokens or self._completion_tokens
                if chunk.text:
                    if not self._pieces:
                        metrics.first_token.labels(self._model.name).observe(clock - self._started)
                    self._pieces.append(chunk.text)
                    self.events.put(Delta(chunk.text))
                if clock - saved >= SAVE_EVERY:
                    saved = clock
                    self._save(Status.STREAMING)
                if clock - self._started > self._max_seconds:
                    finish_reason = "time_limit"
                    break
        stopped = self._ended or self._unwanted
        if finish_reason is None and not stopped:
            raise ModelError(502, "The model broke off in the middle of the answer.")
        status = Status.INTERRUPTED if finish_reason == "time_limit" or stopped else Status.COMPLETE
        self._end(status)
        return Done(status, finish_reason, self._prompt_tokens, self._counted())

    def _counted(self) -> int:
        """The answer's tokens: the model's count, or the number of pieces when it was cut before it could tell."""
        return self._completion_tokens if self._completion_tokens is not None else len(self._pieces)

    def _end(self, status: Status, *, error: str | None = None) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = True
        name = self._model.name
        metrics.messages_total.labels("assistant", name).inc()
        metrics.answers_total.labels(name, status.value).inc()
        metrics.tokens_total.labels(name, "prompt").inc(self._prompt_tokens or 0)
        metrics.tokens_total.labels(name, "completion").inc(self._counted())
        metrics.stream_duration.labels(name).observe(time.monotonic() - self._started)
        log.info(
            "answer ended",
            extra={
                "message_id": str(self.message_id),
                "status": status.value,
                "seconds": round(time.monotonic() - self._started, 3),
                "prompt_tokens": self._prompt_tokens,
                "completion_tokens": self._counted(),
            },
        )
        for _ in range(LAST_SAVE_ATTEMPTS):
            if self._save(status, error=error):
                return
            time.sleep(LAST_SAVE_PAUSE)
        log.error("the end of an answer could not be saved", extra={"message_id": str(self.message_id)})

    def _save(self, status: Status, *, error: str | None = None) -> bool:
        """Write the text so far; False when the database did not take it.

        Where the message is no longer `streaming` somebody else has ended it, and the generation ends, too. Its last
        words may still be added to an interrupted message, so that the text is what the reader saw.
        """
        values: dict[str, object] = {
            "content": "".join(self._pieces),
            "status": status,
            "updated_at": now(),
            "error": error,
        }
        open_states = [Status.STREAMING]
        if status is not Status.STREAMING:
            values |= {"prompt_tokens": self._prompt_tokens, "completion_tokens": self._counted()}
            open_states.append(Status.INTERRUPTED)
            if self._unwanted:
                values["status"] = Status.INTERRUPTED
        mine = (Message.id == self.message_id, Message.status.in_(open_states))
        statement = update(Message).where(*mine).values(values).returning(Message.conversation_id)
        try:
            with self._database.session() as session:
                rows = session.execute(statement).scalars().all()
                if rows and status is not Status.STREAMING:
                    session.execute(update(Conversation).where(Conversation.id == rows[0]).values(updated_at=now()))
        except SQLAlchemyError as failure:
            log.warning(
                "could not save an answer: %s", type(failure).__name__, extra={"message_id": str(self.message_id)}
            )
            return False
        if not rows:
            self._unwanted = True
        return True
