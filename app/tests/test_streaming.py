"""A reader between a log that forgets and a database that lags."""

import random
import threading
import uuid
from typing import Any

import pytest
from chatbot.database import Message, Status
from chatbot.generation import Outcome
from chatbot.streaming import EventStream, Follower
from chatbot.streamlog import MemoryLog
from sqlalchemy.exc import OperationalError
from support import parse_events

MESSAGE = uuid.uuid4()
STREAM = str(MESSAGE)
DONE = Outcome(Status.COMPLETE, "stop", 1, 2).encoded()
TEXT = "The sea is salt because rivers bring it there. ¿Qué? 漢字 🦀"


class Answer:
    """An answer in a log and in a database, which has its first `saved` characters. None means that it is away."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.saved: int | None = 0
        self.status = "streaming"

    def load(self, _: uuid.UUID) -> Message | None:
        if self.saved is None:
            raise OperationalError("SELECT", {}, Exception("away"))
        return Message(content=TEXT[: self.saved], status=self.status, finish_reason="stop")

    def read(self, after: int = 0) -> tuple[str, dict[str, Any]]:
        """All text, and the data of the last event. Each delta's identifier is where its text ends."""
        body = b"".join(Follower(self.log, self.load, MESSAGE, after).events())
        events = parse_events(body)
        text = "".join(data["text"] for name, data in events if name == "delta")
        return text, events[-1][1]


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Answer:
    monkeypatch.setattr("chatbot.streaming.POLL_EVERY", 0.01)
    monkeypatch.setattr("chatbot.streaming.PING_EVERY", 0.05)
    return Answer()


@pytest.mark.parametrize("trimmed", [0, 10, 30, len(TEXT)])
def test_every_split_point(answer: Answer, trimmed: int) -> None:
    """The log has lost its beginning, the database has it and a little more."""
    answer.log.open(STREAM)
    for end in range(5, len(TEXT) + 1, 5):
        answer.log.append(STREAM, end, TEXT[end - 5 : end])
    answer.log.append(STREAM, len(TEXT), TEXT[len(TEXT) // 5 * 5 :])
    answer.log.close(STREAM, len(TEXT), DONE)
    answer.log.trim(STREAM, trimmed)
    answer.saved = min(trimmed + 3, len(TEXT))
    for after in range(len(TEXT) + 1):
        text, last = answer.read(after)
        assert text == TEXT[after:], after
        assert last["status"] == "complete"


def test_a_random_writer(answer: Answer) -> None:
    """Whatever gets lost in the log: readers end with the whole text, since the database follows."""
    chance = random.Random(3)  # noqa: S311 - a repeatable test
    results: list[str] = []
    readers = [threading.Thread(target=lambda: results.append(answer.read()[0])) for _ in range(5)]
    answer.log.open(STREAM)
    for reader in readers:
        reader.start()
    end = 0
    while end < len(TEXT):
        start, end = end, min(len(TEXT), end + chance.randrange(1, 6))
        if chance.random() < 0.6:
            answer.log.append(STREAM, end, TEXT[start:end])
        if chance.random() < 0.3:
            answer.saved = end
            answer.log.trim(STREAM, chance.randrange(end + 1))
        threading.Event().wait(0.005)
    answer.saved, answer.status = len(TEXT), "complete"
    answer.log.close(STREAM, len(TEXT), DONE)
    for reader in readers:
        reader.join(10)
    assert results == [TEXT] * 5


def test_without_any_log_the_database_is_enough(answer: Answer) -> None:
    def write() -> None:
        for answer.saved in (5, 20, None, len(TEXT)):
            threading.Event().wait(0.05)
        answer.status = "interrupted"

    thread = threading.Thread(target=write)
    thread.start()
    text, end = answer.read()
    thread.join()
    assert (text, end["status"]) == (TEXT, "interrupted")


def test_a_deleted_answer_ends(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "load", lambda _: None)
    assert answer.read()[1]["finish_reason"] == "deleted"


def test_a_stream_that_was_never_read_is_closed() -> None:
    stream = EventStream(b"start", Follower(MemoryLog(), lambda _: None, MESSAGE, 0).events())
    stream.close()
    stream.close()
