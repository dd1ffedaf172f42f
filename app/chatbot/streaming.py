"""An answer as Server-Sent Events, from its log and from the database: for whoever asked, and whoever comes back.

The identifier of an event is the number of characters that its reader has with it. So a Last-Event-ID fits every
process, every log and the database.
"""

import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing

from flask import Response
from sqlalchemy.exc import SQLAlchemyError

from chatbot import metrics
from chatbot.database import Message, Status
from chatbot.drain import Drain
from chatbot.generation import Outcome
from chatbot.generations import outcome_of
from chatbot.problems import Problem, model_problem
from chatbot.sse import PING, encode
from chatbot.streamlog import Entry, LogUnavailableError, StreamLog

log = logging.getLogger(__name__)

# A silent stream sends a comment this often (seconds): proxies keep it open, and a reader who left is noticed.
PING_EVERY = 10.0
# So often (seconds) the database is asked while the log has nothing of what the reader needs.
POLL_EVERY = 1.0
# A reader who is told to resume and knows no better waits so long (milliseconds).
RETRY_MS = 500

type Load = Callable[[uuid.UUID], Message | None]


def event_response(
    start: dict[str, object], offset: int, events: Iterator[bytes], on_close: Callable[[], None] | None = None
) -> Response:
    """A response that begins with `start` and goes on with `events`; `on_close` is called when that has ended."""
    return Response(
        EventStream(encode("start", offset, start), events, on_close),
        mimetype="text/event-stream",
        # nginx must pass every event on at once, and nobody may transform or keep it.
        headers={"X-Accel-Buffering": "no", "Cache-Control": "no-store, no-transform"},
    )


class EventStream:
    """Counts itself as open until the server closes it, which it also does when the reader has gone."""

    def __init__(self, start: bytes, events: Iterator[bytes], on_close: Callable[[], None] | None = None) -> None:
        self._start: bytes | None = start
        self._events = events
        self._on_close = on_close
        self._open = True
        metrics.open_streams.inc()

    def __iter__(self) -> "EventStream":
        return self

    def __next__(self) -> bytes:
        if self._start is not None:
            start, self._start = self._start, None
            return start
        try:
            return next(self._events)
        except StopIteration:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the log. The answer goes on without this reader."""
        if self._open:
            self._open = False
            metrics.open_streams.dec()
            if self._on_close is not None:
                self._on_close()
            self._events.close()  # type: ignore[attr-defined]  # a generator


class Readers:
    """How many streams of existing answers each account has open in this process."""

    def __init__(self) -> None:
        self._open: Counter[uuid.UUID] = Counter()
        self._lock = threading.Lock()

    def enter(self, account_id: uuid.UUID, limit: int) -> Callable[[], None]:
        """Count one more, until the function that this returns is called. A Problem (429) beyond the limit."""
        with self._lock:
            if self._open[account_id] >= limit:
                metrics.refusals.labels("streams").inc()
                raise Problem(
                    429,
                    "Too many streams at once",
                    f"You have {limit} streams open already; close one of them.",
                    retry_after=5,
                    type="urn:chatbot:streams-limit",
                )
            self._open[account_id] += 1
        return lambda: self._leave(account_id)

    def _leave(self, account_id: uuid.UUID) -> None:
        with self._lock:
            self._open[account_id] -= 1
            if not self._open[account_id]:
                del self._open[account_id]


class Follower:
    """One reader of one answer, who has the first `after` characters. `load` gives the message from the database."""

    def __init__(
        self, stream_log: StreamLog, load: Load, message_id: uuid.UUID, after: int, drain: Drain | None = None
    ) -> None:
        self._log = stream_log
        self._load = load
        self._message_id = message_id
        self._position = after
        self._silent = False
        self._drain = drain or Drain()

    def events(self) -> Iterator[bytes]:
        """What comes behind those characters, to the end of the answer or of this process."""
        cut: str | None = "client"  # unless something else ends it first
        try:
            while not self._drain.over:
                outcome = yield from self._from_log()
                if outcome is None and not self._drain.over:
                    outcome = yield from self._from_database()
                if outcome is not None:
                    cut = None
                    yield end_event(self._message_id, self._position, outcome)
                    return
            cut = "drain"
            yield resume_event(self._message_id, self._position)
        except Exception:  # not when the reader leaves: that is no Exception
            cut = "error"
            raise
        finally:
            if cut is not None:
                self._drain.count_cut(cut)

    def _from_log(self) -> Generator[bytes, None, Outcome | None]:
        """Follow the log to the answer's end; None when it is silent, cannot be read, or has lost what comes next."""
        subscribed = closing(self._log.subscribe(str(self._message_id), self._position))
        with subscribed as subscription, self._drain.watching(subscription):
            while True:
                try:
                    entries = subscription.read(PING_EVERY)
                except LogUnavailableError:
                    self._silent = False
                    return None
                text, outcome, whole = self._join(entries)
                if text:
                    yield self._delta(text)
                if outcome is not None:
                    return Outcome.decoded(outcome)
                if not entries or not whole:
                    self._silent = not entries
                    return None

    def _join(self, entries: list[Entry]) -> tuple[str, bytes | None, bool]:
        """The entries' text behind the reader's position, the outcome, and whether nothing is missing."""
        text: list[str] = []
        position = self._position
        for entry in entries:
            start = entry.end - len(entry.text)
            if start > position:
                return "".join(text), None, False
            text.append(entry.text[position - start :])
            position = max(position, entry.end)
            if entry.outcome is not None:
                return "".join(text), entry.outcome, True
        return "".join(text), None, True

    def _from_database(self) -> Generator[bytes, None, Outcome | None]:
        """What was saved beyond the reader's position; the outcome where the answer has ended."""
        try:
            message = self._load(self._message_id)
        except SQLAlchemyError as failure:
            log.warning("could not look an answer up: %s", type(failure).__name__)
        else:
            if message is None:
                return Outcome(Status.INTERRUPTED, "deleted")
            text = message.content[self._position :]
            if text:
                yield self._delta(text)
            if message.status != Status.STREAMING:
                return outcome_of(message)
            if text:
                return None
        yield PING
        if not self._silent:
            time.sleep(POLL_EVERY)
        return None

    def _delta(self, text: str) -> bytes:
        self._position += len(text)
        return encode("delta", self._position, {"text": text})


def resume_event(message_id: uuid.UUID, position: int) -> bytes:
    """The last event of a process that ends before the answer: another one goes on from that position."""
    return b"retry: %d\n" % RETRY_MS + encode("resume", position, {"message_id": message_id, "position": position})


def end_event(message_id: uuid.UUID, position: int, outcome: Outcome) -> bytes:
    """The last event: `done`, or `error` with a problem document."""
    if outcome.status is Status.FAILED:
        problem = model_problem(outcome.error_status, outcome.error or "The model failed.", message_id=message_id)
        return encode("error", position, problem.document())
    usage = {"prompt_tokens": outcome.prompt_tokens, "completion_tokens": outcome.completion_tokens}
    data = {
        "message_id": message_id,
        "status": outcome.status,
        "finish_reason": outcome.finish_reason,
        "usage": usage,
    }
    return encode("done", position, data)
