import threading
import uuid
from typing import Any

import pytest
from chatbot.database import Message, now
from chatbot.factory import create_app
from chatbot.generations import LEASE
from chatbot.settings import Settings
from chatbot.titles import title_of
from fake_openai import FakeOpenAI
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update
from support import close, create_schema, eventually, make_settings, parse_events, signed_in
from werkzeug.test import TestResponse

API = "/api/v1/conversations"


@pytest.fixture
def settings(settings_with_room: Settings) -> Settings:
    return settings_with_room


@pytest.fixture
def conversation(client: FlaskClient) -> str:
    return str(client.post(API).get_json()["id"])


def say(client: FlaskClient, conversation: str, content: str = "Hi", **more: object) -> TestResponse:
    return client.post(f"{API}/{conversation}/messages", json={"content": content, **more})


def messages(client: FlaskClient, conversation: str) -> list[dict[str, Any]]:
    return list(client.get(f"{API}/{conversation}").get_json()["messages"])


def test_a_message_is_answered_in_pieces_and_kept(client: FlaskClient, conversation: str) -> None:
    response = say(client, conversation, "What is  the\nsea?")
    assert response.status_code == 200
    assert response.mimetype == "text/event-stream"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert "no-transform" in response.headers["Cache-Control"]
    events = parse_events(response.data)
    names = [name for name, _ in events]
    assert (names[0], set(names[1:-1]), names[-1]) == ("start", {"delta"}, "done")
    assert "".join(data["text"] for name, data in events if name == "delta") == "Hello world"
    start, done = events[0][1], events[-1][1]
    assert start["title"] == "What is the sea?"
    assert done == {
        "message_id": start["message_id"], "status": "complete", "finish_reason": "stop",
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }  # fmt: skip
    question, answer = messages(client, conversation)
    assert (question["id"], question["parent_id"], question["content"]) == (
        start["user_message_id"],
        None,
        "What is  the\nsea?",
    )
    assert (answer["id"], answer["parent_id"], answer["content"]) == (
        start["message_id"],
        question["id"],
        "Hello world",
    )
    assert (answer["status"], answer["model"], answer["usage"]["completion_tokens"]) == ("complete", "test-model", 3)


def test_the_model_gets_the_branch_that_leads_to_the_question(
    client: FlaskClient, conversation: str, fake: FakeOpenAI
) -> None:
    first = parse_events(say(client, conversation, "one").data)[0][1]["message_id"]
    assert say(client, conversation, "two").data
    assert say(client, conversation, "three", parent_id=first).data
    assert say(client, conversation, "four", parent_id=None).data
    asked = [[turn["content"] for turn in request["messages"]] for request in fake.requests]
    assert asked == [["one"], ["one", "Hello world", "two"], ["one", "Hello world", "three"], ["four"]]
    assert [turn["role"] for turn in fake.requests[1]["messages"]] == ["user", "assistant", "user"]


def test_a_question_without_answer_is_not_sent_again(client: FlaskClient, conversation: str, fake: FakeOpenAI) -> None:
    fake.status = 500
    assert say(client, conversation, "lost").status_code == 502
    fake.status = 200
    assert say(client, conversation, "again").data
    assert [turn["content"] for turn in fake.requests[-1]["messages"]] == ["again"]


def test_old_messages_leave_a_full_context_window(fake: FakeOpenAI, tmp_path: object) -> None:
    settings = make_settings(
        fake.url,
        f"sqlite:///{tmp_path}/small.db",
        model_context_tokens="256",
        model_max_tokens="56",
        system_prompt="Be brief.",
    )  # 200 tokens, 600 characters
    create_schema(settings)
    app = create_app(settings)
    client = signed_in(app)
    conversation = client.post(API).get_json()["id"]
    for number in range(6):
        assert say(client, conversation, f"{number}" * 120).data
    close(app.extensions["database"])
    assert [turn["content"][:1] for turn in fake.requests[-1]["messages"]] == ["B", "2", "H", "3", "H", "4", "H", "5"]


def test_conversations_belong_to_their_account(app: Flask) -> None:
    mine, other = signed_in(app), signed_in(app, "other@example.org")
    conversation = mine.post(API, json={"title": "Mine"}).get_json()
    assert [item["title"] for item in mine.get(API).get_json()["conversations"]] == ["Mine"]
    assert other.get(API).get_json() == {"conversations": [], "next_cursor": None}
    for response in (
        other.get(f"{API}/{conversation['id']}"),
        other.delete(f"{API}/{conversation['id']}"),
        say(other, conversation["id"]),
    ):
        assert response.status_code == 404
    assert app.test_client().get(f"{API}/{conversation['id']}").status_code == 401
    assert mine.get(f"{API}/{conversation['id']}").get_json()["messages"] == []


def test_the_most_recent_conversation_is_listed_first(client: FlaskClient) -> None:
    first, second = (client.post(API, json={"title": title}).get_json()["id"] for title in ("first", "second"))
    assert say(client, first).data
    assert [item["id"] for item in client.get(API).get_json()["conversations"]] == [first, second]


def test_deleting_a_conversation(client: FlaskClient, conversation: str) -> None:
    assert say(client, conversation).data
    assert client.delete(f"{API}/{conversation}").status_code == 204
    assert client.get(f"{API}/{conversation}").status_code == 404


def test_creating_says_where(client: FlaskClient) -> None:
    response = client.post(API, json={"title": " Sea "})
    assert response.status_code == 201
    assert client.get(response.headers["Location"]).get_json()["title"] == "Sea"


@pytest.mark.parametrize(
    ("body", "content_type", "status", "words"),
    [
        (b'{"content": "x"', "application/json", 400, "not valid JSON"),
        (b"", "application/json", 400, "not valid JSON"),
        (b"\xff\xfe", "application/json", 400, "not valid JSON"),
        (b'{"content": "\\ud800"}', "application/json", 400, "not valid JSON"),
        (b'{"content": NaN}', "application/json", 400, "not valid JSON"),
        (b"[" * 5000, "application/json", 400, "not valid JSON"),
        (b'{"content": "x"}', "text/plain", 415, "application/json"),
        (b"content=x", "application/x-www-form-urlencoded", 415, "application/json"),
        (b"[]", "application/json", 422, "body: "),
        (b"null", "application/json", 422, "body: "),
        (b"{}", "application/json", 422, "content: Field required"),
        (b'{"content": 1}', "application/json", 422, "content: "),
        (b'{"content": ["x"]}', "application/json", 422, "content: "),
        (b'{"content": " \\n"}', "application/json", 422, "blank"),
        (b'{"content": "a\\u0000b"}', "application/json", 422, "NUL"),
        (b'{"content": "x", "parent_id": "1"}', "application/json", 422, "parent_id: "),
        (
            b'{"content": "x", "parent_id": "00000000-0000-4000-8000-000000000000"}',
            "application/json",
            422,
            "not an answer",
        ),
        (b'{"content": "x", "role": "system"}', "application/json", 422, "role: "),
        (b'{"content": "' + b"x" * 101 + b'"}', "application/json", 422, "may have 100 characters; this one has 101"),
        (b'{"content": "' + b"x" * 2**20 + b'"}', "application/json", 413, "larger than 1048576 bytes"),
    ],
)
def test_wrong_input_is_named_and_leaves_nothing(
    client: FlaskClient, conversation: str, fake: FakeOpenAI, body: bytes, content_type: str, status: int, words: str
) -> None:
    response = client.post(f"{API}/{conversation}/messages", data=body, content_type=content_type)
    problem = response.get_json()
    assert (response.status_code, response.mimetype) == (status, "application/problem+json")
    assert problem["status"] == status
    assert words in problem["detail"]
    assert problem["request_id"] == response.headers["X-Request-ID"]
    assert messages(client, conversation) == []
    assert fake.requests == []


@pytest.mark.parametrize("body", [{"title": 1}, {"title": "x" * 201}, {"title": "\x00"}, {"owner": "me"}])
def test_wrong_titles(client: FlaskClient, body: object) -> None:
    assert client.post(API, json=body).status_code == 422


def test_unknown_conversations(client: FlaskClient) -> None:
    assert say(client, str(uuid.uuid4())).status_code == 404
    assert say(client, "not-a-uuid").status_code == 404


def test_a_question_may_hold_any_text(client: FlaskClient, conversation: str) -> None:
    content = "¿Qué? 漢字 🦀 <script>alert(1)</script> '; DROP TABLE messages; --"
    assert say(client, conversation, content).data
    assert messages(client, conversation)[0]["content"] == content


@pytest.mark.parametrize(("upstream", "status"), [(401, 502), (429, 503), (500, 502)])
def test_a_model_error_before_the_answer_is_a_problem(
    client: FlaskClient, conversation: str, fake: FakeOpenAI, upstream: int, status: int
) -> None:
    fake.status = upstream
    response = say(client, conversation)
    problem = response.get_json()
    assert (response.status_code, response.mimetype) == (status, "application/problem+json")
    answer = messages(client, conversation)[1]
    assert (answer["id"], answer["status"], answer["error"]) == (problem["message_id"], "failed", problem["detail"])
    assert ("Retry-After" in response.headers) == (upstream == 429)


def test_a_model_error_in_the_answer_is_an_event(client: FlaskClient, conversation: str, fake: FakeOpenAI) -> None:
    fake.cut = True
    name, problem = parse_events(say(client, conversation).data)[-1]
    assert (name, problem["status"]) == ("error", 503)
    answer = messages(client, conversation)[1]
    assert (answer["status"], answer["content"]) == ("failed", "Hello world")


def test_a_reader_who_leaves_changes_nothing(client: FlaskClient, conversation: str, fake: FakeOpenAI) -> None:
    gate = threading.Event()
    fake.waits = {1: lambda: gate.wait(10)}
    say(client, conversation).close()
    assert messages(client, conversation)[1]["status"] == "streaming"
    gate.set()
    eventually(lambda: messages(client, conversation)[1]["status"] == "complete")
    assert messages(client, conversation)[1]["content"] == "Hello world"


def test_silence_is_bridged_by_pings(
    client: FlaskClient, conversation: str, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.streaming.PING_EVERY", 0.1)
    monkeypatch.setattr("chatbot.messages.ACCEPTED_WITHIN", 0.1)
    fake.before_headers = 0.35
    fake.between = 0.25
    body = say(client, conversation).data
    before, after = body.split(b"event: delta", 1)
    assert before.count(b": ping\n\n") >= 2
    assert b": ping\n\n" in after
    assert parse_events(body)[-1][0] == "done"


def test_a_late_model_error_is_an_event(
    client: FlaskClient, conversation: str, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.messages.ACCEPTED_WITHIN", 0.1)
    fake.before_headers, fake.status = 0.3, 401
    assert [name for name, _ in parse_events(say(client, conversation).data)] == ["start", "error"]


def test_an_answer_whose_process_died_is_interrupted(
    app: Flask, client: FlaskClient, conversation: str, fake: FakeOpenAI
) -> None:
    gate = threading.Event()
    fake.waits = {1: lambda: gate.wait(10)}
    running = say(client, conversation)
    assert messages(client, conversation)[1]["status"] == "streaming"
    app.extensions["generations"]._running.clear()  # plays the process that comes after the dead one
    with app.extensions["database"].session() as session:
        session.execute(update(Message).where(Message.status == "streaming").values(updated_at=now() - LEASE * 2))
    assert messages(client, conversation)[1]["status"] == "interrupted"
    gate.set()
    running.close()


def test_a_new_message_ends_the_answer_in_progress(client: FlaskClient, conversation: str, fake: FakeOpenAI) -> None:
    fake.pieces, fake.between = ["x"] * 1000, 0.01
    first = say(client, conversation)
    body = first.iter_encoded()
    while b"delta" not in next(body):
        pass
    fake.pieces = ["fine"]
    assert parse_events(say(client, conversation, "Stop that").data)[-1][1]["status"] == "complete"
    ended = parse_events(b"".join(body))[-1]
    assert (ended[0], ended[1]["status"]) == ("done", "stopped")
    assert fake.sent < 500
    kept = messages(client, conversation)
    assert [message["status"] for message in kept] == ["complete", "stopped", "complete", "complete"]
    assert len(kept[1]["content"]) == ended[1]["usage"]["completion_tokens"]
    assert kept[2]["parent_id"] == kept[1]["id"]
    # The model is told what the reader has seen of the answer.
    assert fake.requests[1]["messages"][1]["content"] == kept[1]["content"]


def test_no_connection_is_held_while_streaming(app: Flask, client: FlaskClient, fake: FakeOpenAI) -> None:
    gate = threading.Event()
    fake.waits = {1: lambda: gate.wait(20)}
    running = [say(client, client.post(API).get_json()["id"]) for _ in range(12)]
    with app.extensions["database"].session() as session:
        assert len(session.scalars(select(Message).where(Message.status == "streaming")).all()) == 12
    gate.set()
    assert all(parse_events(response.data)[-1][0] == "done" for response in running)


def test_a_stale_schema_serves_nobody(fake: FakeOpenAI, tmp_path: object) -> None:
    app = create_app(make_settings(fake.url, f"sqlite:///{tmp_path}/empty.db"))
    response = app.test_client().post(API)
    close(app.extensions["database"])
    assert (response.status_code, response.headers["Retry-After"]) == (503, "30")


def test_titles_are_short() -> None:
    assert title_of("short\n one") == "short one"
    assert title_of("word " * 30) == "word " * 10 + "word…"
    assert len(title_of("x" * 500)) == 60
