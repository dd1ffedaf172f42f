"""Answers that one process leaves in the middle and another one writes to their ends."""

import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from chatbot.database import Message
from chatbot.factory import create_app
from chatbot.handover import take_over
from chatbot.settings import Settings
from fake_openai import FakeOpenAI
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select
from support import close, create_schema, eventually, make_settings, parse_events, signed_in
from test_metrics import value
from test_usage import API, say, used


@pytest.fixture
def settings(fake: FakeOpenAI, database_url: str) -> Settings:
    fake.continues = True
    return make_settings(fake.url, database_url, title_model="titles", system_prompt="Be brief.")


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    """The process that ends."""
    create_schema(settings)
    app = create_app(settings)
    yield app
    close(app.extensions["database"])


@pytest.fixture
def successor(settings: Settings, app: Flask) -> Iterator[Flask]:
    """The process that goes on, on the same database."""
    del app  # makes the schema
    successor = create_app(settings)
    yield successor
    close(successor.extensions["database"])


def begin(client: FlaskClient, fake: FakeOpenAI, words: int = 1) -> tuple[str, str, Iterator[bytes], threading.Event]:
    """An answer that stands still behind so many words: the conversation, the message, its events to come, the gate."""
    gate = threading.Event()
    fake.waits = {words: lambda: gate.wait(20)}
    conversation = f"{API}/{client.post(API).get_json()['id']}"
    response = say(client, conversation, "Hi")
    message = str(client.get(conversation).get_json()["messages"][1]["id"])
    events, text = response.iter_encoded(), ""
    while text != "".join(fake.pieces[:words]):
        text += "".join(data["text"] for name, data in parse_events(next(events)) if name == "delta")
    return conversation, message, events, gate


def hand_over(app: Flask) -> None:
    """What worker.py does when the time is over."""
    app.extensions["drain"].begin()
    app.extensions["generations"].hand_over()
    app.extensions["drain"].end()
    eventually(lambda: not app.extensions["generations"].running())


def message(client: FlaskClient, conversation: str) -> dict[str, Any]:
    return dict(client.get(conversation).get_json()["messages"][1])


def read(client: FlaskClient, conversation: str, message_id: str, after: int) -> list[tuple[str, dict[str, Any]]]:
    return parse_events(
        client.get(f"{conversation}/messages/{message_id}/stream", headers={"Last-Event-ID": str(after)}).data
    )


def test_a_reader_is_told_to_resume_and_reads_the_rest_elsewhere(
    app: Flask, successor: Flask, client: FlaskClient, fake: FakeOpenAI
) -> None:
    conversation, message_id, events, gate = begin(client, fake)
    series = 'chatbot_streams_cut_total{reason="drain"}'
    before = value(client, series)
    hand_over(app)
    told = b"".join(events)
    assert told.startswith(b"retry: 500\nevent: resume\nid: 5\ndata: ")
    ((name, data),) = parse_events(told.removeprefix(b"retry: 500\n"))
    assert (name, data) == ("resume", {"message_id": message_id, "position": 5})
    app.extensions["drain"].publish(None)
    assert value(client, series) == before + 1
    waiting = message(client, conversation)
    assert (waiting["content"], waiting["status"], waiting["finish_reason"]) == ("Hello", "streaming", "handed_over")
    gate.set()
    fake.waits = {}
    assert take_over(successor) == 1
    rest = read(signed_in(successor), conversation, message_id, 5)
    assert "".join(data["text"] for name, data in rest if name == "delta") == " world"
    assert (rest[-1][0], rest[-1][1]["status"]) == ("done", "complete")
    whole = message(client, conversation)
    assert (whole["content"], whole["status"], whole["finish_reason"]) == ("Hello world", "complete", "stop")
    # The first part's prompt ("Be brief." and "Hi") is estimated and its one piece counted; the model counts the rest.
    assert whole["usage"] == {"prompt_tokens": 7, "completion_tokens": 1 + 2}
    assert used(client)[0] >= 4 + 7
    assert [turn["role"] for turn in fake.requests[1]["messages"]] == ["system", "user", "assistant", "user"]
    assert fake.requests[1]["messages"][2]["content"] == "Hello"
    # The successor also does what the first process would have done at the end.
    eventually(lambda: [request["model"] for request in fake.requests] == ["test-model", "test-model", "titles"])


def test_every_token_is_counted_once(app: Flask, successor: Flask, client: FlaskClient, fake: FakeOpenAI) -> None:
    successor.extensions["titles"] = None
    conversation, message_id, _, gate = begin(client, fake)
    hand_over(app)
    gate.set()
    fake.waits = {}
    assert used(client) == (4, 1)
    take_over(successor)
    eventually(lambda: message(client, conversation)["status"] == "complete")
    assert used(client) == (4 + 7, 1 + 2)
    assert message_id == message(client, conversation)["id"]


def test_an_answer_without_a_word_is_asked_for_again(
    app: Flask, successor: Flask, client: FlaskClient, fake: FakeOpenAI
) -> None:
    conversation, message_id, _, gate = begin(client, fake, words=0)
    hand_over(app)
    gate.set()
    fake.waits = {}
    assert take_over(successor) == 1
    rest = read(signed_in(successor), conversation, message_id, 0)
    assert "".join(data["text"] for name, data in rest if name == "delta") == "Hello world"
    assert fake.requests[1]["messages"] == fake.requests[0]["messages"]


def test_a_model_that_refuses_to_go_on_fails_the_answer_and_keeps_its_text(
    app: Flask, successor: Flask, client: FlaskClient, fake: FakeOpenAI
) -> None:
    conversation, message_id, _, gate = begin(client, fake)
    hand_over(app)
    gate.set()
    fake.status = 400
    take_over(successor)
    ((start, _), (name, problem)) = read(signed_in(successor), conversation, message_id, 5)
    assert (start, name, problem["status"]) == ("start", "error", 502)
    kept = message(client, conversation)
    assert (kept["content"], kept["status"], kept["usage"]["completion_tokens"]) == ("Hello", "failed", 1)
    assert used(client) == (4, 1)


def test_an_answer_whose_reader_has_left_is_continued_as_well(
    app: Flask, successor: Flask, client: FlaskClient, fake: FakeOpenAI
) -> None:
    conversation, _, events, gate = begin(client, fake)
    series = 'chatbot_streams_cut_total{reason="client"}'
    before = value(client, series)
    events.close()  # type: ignore[attr-defined]  # a generator
    assert value(client, series) == before + 1
    hand_over(app)
    gate.set()
    fake.waits = {}
    take_over(successor)
    eventually(lambda: message(client, conversation)["status"] == "complete")
    assert message(client, conversation)["content"] == "Hello world"


def test_one_of_many_gets_it(
    app: Flask, successor: Flask, client: FlaskClient, fake: FakeOpenAI, settings: Settings
) -> None:
    conversation, _, _, gate = begin(client, fake)
    hand_over(app)
    gate.set()
    fake.waits = {}
    processes = [successor, *(create_app(settings) for _ in range(3))]
    taken: list[int] = []
    threads = [threading.Thread(target=lambda app=app: taken.append(take_over(app))) for app in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(taken) == [0, 0, 0, 1]
    eventually(lambda: message(client, conversation)["status"] == "complete")
    assert [request["model"] for request in fake.requests].count("test-model") == 2
    for process in processes:
        close(process.extensions["database"])


def test_a_process_that_ends_takes_nothing_over(app: Flask, client: FlaskClient, fake: FakeOpenAI) -> None:
    conversation, message_id, _, gate = begin(client, fake)
    hand_over(app)
    gate.set()
    assert take_over(app) == 0
    with app.extensions["database"].session() as session:
        assert session.scalar(select(Message.finish_reason).where(Message.id == uuid.UUID(message_id))) == "handed_over"
    assert message(client, conversation)["status"] == "streaming"


def test_whoever_asks_at_the_last_moment_is_sent_on(app: Flask, client: FlaskClient, fake: FakeOpenAI) -> None:
    """The response begins after the readers were told: it must not wait for a word that does not come from here."""
    gate = threading.Event()
    fake.waits = {0: lambda: gate.wait(20)}
    conversation = f"{API}/{client.post(API).get_json()['id']}"
    app.extensions["drain"].begin()
    app.extensions["drain"].end()
    events = parse_events(say(client, conversation).data.replace(b"retry: 500\n", b""))
    assert [name for name, _ in events] == ["start", "resume"]
    app.extensions["generations"].hand_over()
    gate.set()


def test_whoever_does_not_take_the_word_is_counted_apart(app: Flask, client: FlaskClient, fake: FakeOpenAI) -> None:
    _, _, events, gate = begin(client, fake)
    series = 'chatbot_streams_cut_total{reason="shutdown"}'
    before = value(client, series)
    hand_over(app)
    events.close()  # type: ignore[attr-defined]  # a generator, in the middle of sending a word
    gate.set()
    assert value(client, series) == before  # nobody asks this process any more
    app.extensions["drain"].publish(None)
    assert value(client, series) == before + 1


def test_an_exception_of_ours_counts_as_one(
    app: Flask, client: FlaskClient, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, events, gate = begin(client, fake)
    series = 'chatbot_streams_cut_total{reason="error"}'
    before = value(client, series)
    monkeypatch.setattr("chatbot.streaming.Outcome.decoded", lambda _: 1 // 0)
    gate.set()
    with pytest.raises(ZeroDivisionError):
        list(events)
    assert value(client, series) == before + 1
    assert app.extensions["generations"].running() == 0


def test_a_whole_answer_is_no_cut_stream(client: FlaskClient) -> None:
    names = [f'chatbot_streams_cut_total{{reason="{reason}"}}' for reason in ("drain", "client", "error", "shutdown")]
    before = [value(client, name) for name in names]
    conversation = f"{API}/{client.post(API).get_json()['id']}"
    assert say(client, conversation).data
    assert [value(client, name) for name in names] == before
    text = client.get("/metrics").text
    assert all(name in text for name in names)
