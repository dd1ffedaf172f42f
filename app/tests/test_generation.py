import threading
import uuid
from collections.abc import Iterator
from datetime import timedelta

import pytest
from chatbot.database import Conversation, Database, Message, Status, now
from chatbot.generation import Generation, Job, Outcome
from chatbot.generations import LEASE, Generations
from chatbot.model import Model
from chatbot.settings import Settings
from chatbot.streamlog import MemoryLog
from fake_openai import FakeOpenAI
from sqlalchemy import delete, select, update
from sqlalchemy.exc import OperationalError
from support import close, create_schema, eventually, make_settings, watched_turns


class Harness:
    """A message that waits for its text, and what becomes of it."""

    def __init__(self, settings: Settings) -> None:
        create_schema(settings)
        self.database = Database(settings)
        self.model = Model(settings)
        self.log = MemoryLog()
        self.generations = Generations(self.database, self.model, self.log, 60)
        self.message_id = uuid.uuid4()
        with self.database.session() as session:
            conversation = Conversation(id=uuid.uuid4())
            session.add(conversation)
            session.flush()
            session.add(
                Message(id=self.message_id, conversation_id=conversation.id, role="assistant", status="streaming")
            )

    def start(self, text: str = "") -> Generation:
        return self.generations.start(Job(self.message_id, [], text))

    def start_long(self, fake: FakeOpenAI) -> Generation:
        """Start one that takes ten seconds, and wait for its first words."""
        fake.pieces, fake.between = ["x"] * 1000, 0.01
        generation = self.start()
        eventually(self.text)
        return generation

    def message(self) -> Message:
        with self.database.session() as session:
            return session.scalars(select(Message)).one()

    def text(self) -> str:
        """What the log holds."""
        return "".join(entry.text for entry in self.log.tail(str(self.message_id)))

    def outcome(self, generation: Generation) -> Outcome:
        """How it ended, as its readers are told."""
        eventually(lambda: generation.finished)
        (last,) = [entry for entry in self.log.tail(str(self.message_id)) if entry.outcome]
        assert last.outcome
        return Outcome.decoded(last.outcome)


@pytest.fixture
def harness(fake: FakeOpenAI, database_url: str) -> Iterator[Harness]:
    harness = Harness(make_settings(fake.url, database_url))
    yield harness
    close(harness.database)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Running answers are looked after all the time."""
    monkeypatch.setattr("chatbot.generations.TICK", 0.02)
    monkeypatch.setattr("chatbot.generations.SAVE_EVERY", 0.0)


def test_an_answer_is_told_and_saved(harness: Harness) -> None:
    outcome = harness.outcome(harness.start())
    assert outcome == Outcome(Status.COMPLETE, "stop", 7, 3)
    assert harness.text() == "Hello world"
    message = harness.message()
    assert (message.content, message.status, message.finish_reason) == ("Hello world", "complete", "stop")
    assert (message.prompt_tokens, message.completion_tokens) == (7, 3)


def test_the_question_is_not_kept_while_its_answer_is_written(harness: Harness, fake: FakeOpenAI) -> None:
    fake.pieces, fake.between = ["x"] * 1000, 0.01
    with watched_turns() as (turns, kept):
        generation = harness.generations.start(Job(harness.message_id, turns.pop()))
        eventually(harness.text)
        assert kept() is None
        assert not generation.finished
    generation.stop(Status.STOPPED, "stopped")


def test_pieces_are_counted_where_the_server_does_not(harness: Harness, fake: FakeOpenAI) -> None:
    fake.usage = False
    assert harness.outcome(harness.start()) == Outcome(Status.COMPLETE, "stop", None, 3)


@pytest.mark.usefixtures("often")
def test_the_text_is_saved_while_it_grows_and_leaves_the_log(harness: Harness, fake: FakeOpenAI) -> None:
    gate = threading.Event()
    fake.waits = {2: lambda: gate.wait(10)}
    generation = harness.start()
    eventually(lambda: harness.message().content == "Hello ")
    assert harness.message().status == "streaming"
    # The entry that ends where the database does may stay.
    eventually(lambda: len(harness.log.tail(str(harness.message_id))) <= 1)
    gate.set()
    harness.outcome(generation)
    assert harness.message().content == "Hello world"


@pytest.mark.usefixtures("often")
def test_a_silent_answer_renews_its_lease(harness: Harness, fake: FakeOpenAI) -> None:
    gate = threading.Event()
    fake.waits = {0: lambda: gate.wait(10)}
    generation = harness.start()
    before = harness.message().updated_at
    eventually(lambda: harness.message().updated_at > before + timedelta(seconds=0.1))
    gate.set()
    harness.outcome(generation)


def test_stopping_keeps_the_text_and_stops_the_model(harness: Harness, fake: FakeOpenAI) -> None:
    generation = harness.start_long(fake)
    harness.generations.stop(harness.message_id)
    outcome = harness.outcome(generation)
    message = harness.message()
    assert (message.status, message.finish_reason) == (outcome.status, outcome.finish_reason) == ("stopped", "stopped")
    assert message.content == harness.text()
    assert message.completion_tokens == len(message.content)
    eventually(lambda: fake.left)
    assert fake.sent < 500


@pytest.mark.parametrize("phase", ["before the headers", "before the first token"])
def test_stopping_a_silent_model_does_not_wait_for_it(harness: Harness, fake: FakeOpenAI, phase: str) -> None:
    gate = threading.Event()
    if phase == "before the headers":
        fake.before_headers = 2
    fake.waits = {0: lambda: gate.wait(10)}
    generation = harness.start()
    eventually(lambda: fake.requests)
    harness.generations.stop(harness.message_id)
    eventually(lambda: generation.finished, 1)
    assert harness.generations.running() == 0
    gate.set()
    assert (harness.message().status, harness.message().content) == ("stopped", "")


@pytest.mark.usefixtures("often")
def test_an_answer_that_takes_too_long_is_ended_also_in_silence(harness: Harness, fake: FakeOpenAI) -> None:
    gate = threading.Event()
    fake.waits = {1: lambda: gate.wait(10)}
    harness.generations._max_seconds = 0.3
    outcome = harness.outcome(harness.start())
    gate.set()
    assert (outcome.status, outcome.finish_reason) == (Status.INTERRUPTED, "time_limit")
    assert harness.message().content == "Hello"


def test_an_endless_answer_does_not_fill_the_memory(
    harness: Harness, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.generation.MAX_CHARS", 500)
    fake.pieces = ["x" * 100] * 1000
    fake.between = 0.01
    outcome = harness.outcome(harness.start())
    assert (outcome.status, outcome.finish_reason) == (Status.INTERRUPTED, "size_limit")
    assert 500 < len(harness.message().content) < 5000


def test_a_handover_keeps_the_text_and_leaves_the_log_open(harness: Harness, fake: FakeOpenAI) -> None:
    harness.start_long(fake)
    assert harness.generations.running() == 1
    for _ in range(2):
        harness.generations.hand_over()
    eventually(lambda: harness.generations.running() == 0)
    message = harness.message()
    assert (message.status, message.finish_reason) == ("streaming", "handed_over")
    assert message.content == harness.text()
    assert message.completion_tokens == len(message.content)
    assert not [entry for entry in harness.log.tail(str(harness.message_id)) if entry.outcome]
    eventually(lambda: fake.left)
    assert fake.sent < 500


@pytest.mark.usefixtures("often")
def test_whoever_hands_over_saves_nothing_afterwards(harness: Harness, fake: FakeOpenAI) -> None:
    """Its keeper may be in the middle of a save, with a text that is shorter."""
    generation = harness.start_long(fake)
    late = dict.fromkeys([generation.message_id], ("too short", 9))
    harness.generations.hand_over()
    eventually(lambda: harness.generations.running() == 0)
    before = harness.message()
    generation.snapshot = lambda: late[generation.message_id]  # type: ignore[method-assign]
    harness.generations._save([generation])
    after = harness.message()
    assert (after.content, after.updated_at) == (before.content, before.updated_at)


def test_what_was_handed_over_can_be_stopped_before_anybody_claims_it(harness: Harness, fake: FakeOpenAI) -> None:
    generation = harness.start_long(fake)
    harness.generations.hand_over()
    eventually(lambda: harness.generations.running() == 0)
    other = Generations(harness.database, harness.model, harness.log, 60)
    other.stop(harness.message_id)
    assert (harness.message().status, harness.message().finish_reason) == ("stopped", "stopped")
    assert harness.outcome(generation).status is Status.STOPPED


def test_what_nobody_claims_is_lost_after_the_lease(harness: Harness, fake: FakeOpenAI) -> None:
    generation = harness.start_long(fake)
    harness.generations.hand_over()
    eventually(lambda: harness.generations.running() == 0)
    text = harness.message().content
    with harness.database.session() as session:
        session.execute(update(Message).values(updated_at=now() - LEASE * 2))
    Generations(harness.database, harness.model, harness.log, 60).reap_all()
    message = harness.message()
    assert (message.content, message.status, message.finish_reason) == (text, "interrupted", "worker_lost")
    assert harness.outcome(generation).finish_reason == "worker_lost"


def test_a_continued_answer_keeps_its_beginning(harness: Harness) -> None:
    with harness.database.session() as session:
        session.execute(update(Message).values(content="Oh. "))
    harness.outcome(harness.start("Oh. "))
    assert harness.message().content == "Oh. Hello world"
    assert harness.log.tail(str(harness.message_id))[0].end > len("Oh. ")


def test_a_model_error_is_kept_with_the_message(harness: Harness, fake: FakeOpenAI) -> None:
    fake.status = 401
    generation = harness.start()
    assert generation.wait_for_model(5) is generation.refusal is not None
    message = harness.message()
    assert message.status == "failed"
    assert "administrator" in str(message.error)


def test_a_stream_that_breaks_keeps_its_text(harness: Harness, fake: FakeOpenAI) -> None:
    fake.cut = True
    assert harness.outcome(harness.start()).status is Status.FAILED
    assert (harness.message().status, harness.message().content) == ("failed", "Hello world")


def test_a_stream_without_end_is_not_taken_for_complete(harness: Harness, fake: FakeOpenAI) -> None:
    fake.raw = b'data: {"choices": [{"delta": {"content": "Hal"}}]}\n\ndata: [DONE]\n\n'
    assert "broke off" in str(harness.outcome(harness.start()).error)
    assert harness.message().content == "Hal"


@pytest.mark.usefixtures("often")
def test_deleting_the_message_ends_the_generation(harness: Harness, fake: FakeOpenAI) -> None:
    generation = harness.start_long(fake)
    with harness.database.session() as session:
        session.execute(delete(Message))
    assert harness.outcome(generation).finish_reason == "superseded"
    assert fake.sent < 500


def test_a_database_that_is_away_for_a_moment(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatbot.generation.LAST_SAVE_PAUSE", 0.01)
    real, failures = harness.database.statements, iter([True, True])

    def statements(*, transaction: bool = False) -> object:
        if next(failures, False):
            raise OperationalError("UPDATE", {}, Exception("away"))
        return real(transaction=transaction)

    monkeypatch.setattr(harness.database, "statements", statements)
    harness.outcome(harness.start())
    monkeypatch.undo()
    assert (harness.message().status, harness.message().content) == ("complete", "Hello world")


def test_an_unexpected_error_is_told_without_details(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*_: object) -> None:
        raise RuntimeError("private words")

    monkeypatch.setattr("chatbot.model.Model.answer", answer)
    outcome = harness.outcome(harness.start())
    assert "private" not in str(outcome.error)
    assert harness.message().status == "failed"


def test_a_dead_process_leaves_all_that_it_wrote(harness: Harness) -> None:
    """The database has the beginning, the log also what came after it."""
    stream = str(harness.message_id)
    harness.log.open(stream)
    for end, text in ((3, "Hel"), (5, "lo"), (7, " w")):
        harness.log.append(stream, end, text)
    with harness.database.session() as session:
        session.execute(update(Message).values(content="Hell"))
    harness.generations.reap_all()
    assert harness.message().status == "streaming"  # its lease has not expired
    with harness.database.session() as session:
        session.execute(update(Message).values(updated_at=now() - LEASE * 2))
    for _ in range(2):
        harness.generations.reap_all()
    message = harness.message()
    assert (message.content, message.status, message.finish_reason) == ("Hello w", "interrupted", "worker_lost")
    assert [entry.end for entry in harness.log.tail(stream) if entry.outcome] == [7]


def test_nobody_hears_of_an_end_that_was_not_saved(harness: Harness) -> None:
    stream = str(harness.message_id)
    harness.log.open(stream)
    harness.log.append(stream, 3, "Hel")
    with harness.database.session() as session:
        session.execute(update(Message).values(updated_at=now() - LEASE * 2))
    with pytest.raises(ZeroDivisionError), harness.database.session() as session:
        harness.generations.reap(session)
        raise ZeroDivisionError
    assert harness.message().status == "streaming"
    assert [entry.outcome for entry in harness.log.tail(stream)] == [None]
    harness.generations.reap_all()
    assert harness.log.tail(stream)[-1].outcome is not None


@pytest.mark.usefixtures("often")
def test_whoever_was_taken_for_dead_gives_up_and_adds_its_last_words(harness: Harness, fake: FakeOpenAI) -> None:
    generation = harness.start_long(fake)
    with harness.database.session() as session:
        session.execute(update(Message).values(status="interrupted", content=""))
    eventually(lambda: generation.finished)
    assert fake.sent < 500
    assert harness.message().status == "interrupted"
    assert harness.message().content.startswith("x")
