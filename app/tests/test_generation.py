import threading
import uuid
from collections.abc import Iterator

import pytest
from chatbot.database import Conversation, Database, Message, Status
from chatbot.generation import Delta, Done, Event, Failed, Generation, Opened
from chatbot.migrate import migrate
from chatbot.model import Model
from chatbot.settings import Settings
from fake_openai import FakeOpenAI
from sqlalchemy import delete, select
from sqlalchemy.exc import OperationalError
from support import close, eventually, make_settings


class Harness:
    """A message that waits for its text, and what becomes of it."""

    def __init__(self, settings: Settings) -> None:
        migrate(settings)
        self.settings = settings
        self.database = Database(settings)
        self.message_id = uuid.uuid4()
        with self.database.session() as session:
            conversation = Conversation(id=uuid.uuid4())
            session.add(conversation)
            session.flush()
            session.add(
                Message(id=self.message_id, conversation_id=conversation.id, role="assistant", status="streaming")
            )

    def start(self, max_seconds: float = 60) -> Generation:
        generation = Generation(self.database, Model(self.settings), self.message_id, [], max_seconds)
        generation.start()
        return generation

    def message(self) -> Message:
        with self.database.session() as session:
            return session.scalars(select(Message)).one()


@pytest.fixture
def harness(fake: FakeOpenAI, database_url: str) -> Iterator[Harness]:
    harness = Harness(make_settings(fake.url, database_url))
    yield harness
    close(harness.database)


def all_events(generation: Generation) -> list[Event]:
    events: list[Event] = []
    while not events or not isinstance(events[-1], Done | Failed):
        events.append(generation.events.get(timeout=10))
    return events


def test_an_answer_is_told_and_saved(harness: Harness) -> None:
    events = all_events(harness.start())
    assert events[:2] == [Opened(), Delta("Hello")]
    assert events[-1] == Done(Status.COMPLETE, "stop", 7, 3)
    message = harness.message()
    assert (message.content, message.status, message.prompt_tokens, message.completion_tokens) == (
        "Hello world",
        "complete",
        7,
        3,
    )


def test_pieces_are_counted_where_the_server_does_not(harness: Harness, fake: FakeOpenAI) -> None:
    fake.usage = False
    assert all_events(harness.start())[-1] == Done(Status.COMPLETE, "stop", None, 3)


def test_the_text_is_saved_while_it_grows(harness: Harness, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatbot.generation.SAVE_EVERY", 0)
    gate = threading.Event()
    fake.waits = {2: lambda: gate.wait(10)}
    generation = harness.start()
    eventually(lambda: harness.message().content == "Hello ")
    assert harness.message().status == "streaming"
    gate.set()
    all_events(generation)
    assert harness.message().content == "Hello world"


def test_cancelling_keeps_the_text_and_stops_the_model(harness: Harness, fake: FakeOpenAI) -> None:
    fake.pieces, fake.between = ["x"] * 1000, 0.01
    generation = harness.start()
    while generation.events.get(timeout=5) != Delta("x"):
        pass
    generation.cancel()
    message = harness.message()
    assert message.status == "interrupted"
    assert message.content.startswith("x")
    assert message.completion_tokens == len(message.content)
    eventually(lambda: fake.left)
    assert fake.sent < 500
    generation.heartbeat()
    assert harness.message().status == "interrupted"


def test_cancelling_a_silent_model_does_not_wait_for_it(harness: Harness, fake: FakeOpenAI) -> None:
    gate = threading.Event()
    fake.waits = {0: lambda: gate.wait(10)}
    generation = harness.start()
    assert generation.events.get(timeout=5) == Opened()
    generation.cancel()
    assert harness.message().status == "interrupted"
    gate.set()
    all_events(generation)
    assert (harness.message().status, harness.message().content) == ("interrupted", "")


def test_an_answer_that_takes_too_long_is_ended(harness: Harness, fake: FakeOpenAI) -> None:
    fake.pieces, fake.between = ["x"] * 1000, 0.02
    done = all_events(harness.start(max_seconds=0.2))[-1]
    assert isinstance(done, Done)
    assert (done.status, done.finish_reason) == (Status.INTERRUPTED, "time_limit")
    assert harness.message().content.startswith("x")


def test_a_model_error_is_kept_with_the_message(harness: Harness, fake: FakeOpenAI) -> None:
    fake.status = 401
    assert isinstance(all_events(harness.start())[-1], Failed)
    message = harness.message()
    assert message.status == "failed"
    assert "administrator" in str(message.error)


def test_a_stream_that_breaks_keeps_its_text(harness: Harness, fake: FakeOpenAI) -> None:
    fake.cut = True
    assert isinstance(all_events(harness.start())[-1], Failed)
    assert (harness.message().status, harness.message().content) == ("failed", "Hello world")


def test_a_stream_without_end_is_not_taken_for_complete(harness: Harness, fake: FakeOpenAI) -> None:
    fake.raw = b'data: {"choices": [{"delta": {"content": "Hal"}}]}\n\ndata: [DONE]\n\n'
    failed = all_events(harness.start())[-1]
    assert isinstance(failed, Failed)
    assert "broke off" in failed.error.detail
    assert harness.message().content == "Hal"


def test_deleting_the_message_ends_the_generation(
    harness: Harness, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.generation.SAVE_EVERY", 0.05)
    fake.pieces, fake.between = ["x"] * 1000, 0.02
    generation = harness.start()
    generation.events.get(timeout=5)
    with harness.database.session() as session:
        session.execute(delete(Message))
    done = all_events(generation)[-1]
    assert isinstance(done, Done)
    assert done.status is Status.INTERRUPTED
    assert fake.sent < 500


def test_a_database_that_is_away_for_a_moment(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatbot.generation.LAST_SAVE_PAUSE", 0.01)
    real, failures = harness.database.session, iter([True, True])

    def session() -> object:
        if next(failures, False):
            raise OperationalError("UPDATE", {}, Exception("away"))
        return real()

    monkeypatch.setattr(harness.database, "session", session)
    all_events(harness.start())
    monkeypatch.undo()
    assert (harness.message().status, harness.message().content) == ("complete", "Hello world")


def test_an_unexpected_error_is_told_without_details(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*_: object) -> None:
        raise RuntimeError("private words")

    monkeypatch.setattr("chatbot.model.Model.answer", answer)
    failed = all_events(harness.start())[-1]
    assert isinstance(failed, Failed)
    assert "private" not in failed.error.detail
    assert harness.message().status == "failed"
