"""Branches, stopping, continuing and following an answer, through the API."""

import threading
import uuid
from typing import Any

import pytest
from chatbot.context import CONTINUE
from chatbot.database import Message, now
from chatbot.generations import LEASE
from chatbot.settings import Settings
from fake_openai import FakeOpenAI
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import update
from support import eventually, parse_events
from werkzeug.test import TestResponse

API = "/api/v1/conversations"


@pytest.fixture
def settings(settings_with_room: Settings) -> Settings:
    return settings_with_room


@pytest.fixture
def conversation(client: FlaskClient) -> str:
    return f"{API}/{client.post(API).get_json()['id']}"


def start(response: TestResponse) -> dict[str, Any]:
    """Read the whole stream; the identifiers of its first event."""
    return parse_events(response.data)[0][1]


def say(client: FlaskClient, conversation: str, content: str = "Hi", **more: object) -> dict[str, Any]:
    return start(client.post(f"{conversation}/messages", json={"content": content, **more}))


def branch(client: FlaskClient, conversation: str) -> list[str]:
    """The texts of the current branch."""
    found = client.get(conversation).get_json()
    texts = {message["id"]: message["content"] for message in found["messages"]}
    return [texts[message] for message in found["current_branch"]]


def running(client: FlaskClient, conversation: str, fake: FakeOpenAI) -> tuple[TestResponse, str, threading.Event]:
    """An answer that stands still behind its first word: the response, the message, and what lets it go on."""
    gate = threading.Event()
    fake.waits = {1: lambda: gate.wait(10)}
    response = client.post(f"{conversation}/messages", json={"content": "Hi"})
    message = client.get(conversation).get_json()["messages"][1]["id"]
    body = response.iter_encoded()
    while b"delta" not in next(body):
        pass
    return response, message, gate


def test_regenerating_adds_a_sibling_and_shows_it(client: FlaskClient, conversation: str, fake: FakeOpenAI) -> None:
    first = say(client, conversation, "one")
    fake.pieces = ["Again"]
    second = start(client.post(f"{conversation}/messages/{first['message_id']}/regenerate"))
    assert second["user_message_id"] == first["user_message_id"]
    assert fake.requests[1]["messages"] == fake.requests[0]["messages"]
    assert branch(client, conversation) == ["one", "Again"]
    say(client, conversation, "two")
    assert [turn["content"] for turn in fake.requests[2]["messages"]] == ["one", "Again", "two"]


def test_editing_adds_a_sibling_question(client: FlaskClient, conversation: str, fake: FakeOpenAI) -> None:
    say(client, conversation, "one")
    second = say(client, conversation, "two")
    edited = start(client.post(f"{conversation}/messages/{second['user_message_id']}/edit", json={"content": "other"}))
    assert branch(client, conversation) == ["one", "Hello world", "other", "Hello world"]
    assert [turn["content"] for turn in fake.requests[2]["messages"]] == ["one", "Hello world", "other"]
    parents = {item["id"]: item["parent_id"] for item in client.get(conversation).get_json()["messages"]}
    assert parents[edited["user_message_id"]] == parents[second["user_message_id"]]


def test_the_first_question_can_be_edited(client: FlaskClient, conversation: str) -> None:
    first = say(client, conversation, "one")
    start(client.post(f"{conversation}/messages/{first['user_message_id']}/edit", json={"content": "other"}))
    assert branch(client, conversation) == ["other", "Hello world"]


def test_the_branch_can_be_chosen(client: FlaskClient, conversation: str, fake: FakeOpenAI) -> None:
    first = say(client, conversation, "one")
    say(client, conversation, "two")
    fake.pieces = ["Again"]
    client.post(f"{conversation}/messages/{first['message_id']}/regenerate").close()
    eventually(lambda: branch(client, conversation) == ["one", "Again"])
    changed = client.patch(conversation, json={"current_message_id": first["message_id"]})
    assert changed.status_code == 200
    assert branch(client, conversation) == ["one", "Hello world", "two", "Hello world"]  # on to the newest
    say(client, conversation, "three")
    assert branch(client, conversation)[-2:] == ["three", "Again"]
    assert client.patch(conversation, json={"current_message_id": str(uuid.uuid4())}).status_code == 422
    assert client.patch(conversation, json={"current_message_id": "newest"}).status_code == 422


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "regenerate"),
        ("POST", "continue"),
        ("POST", "edit"),
        ("POST", "stop"),
        ("GET", "stream"),
    ],
)
def test_unknown_messages_and_those_of_the_wrong_kind(
    client: FlaskClient, conversation: str, method: str, path: str
) -> None:
    known = say(client, conversation)
    wrong = known["message_id"] if path == "edit" else known["user_message_id"]
    for message in (wrong, str(uuid.uuid4()), "not-a-uuid"):
        url = f"{conversation}/messages/{message}/{path}"
        response = client.open(url, method=method, json={"content": "x"})
        assert (response.status_code, response.mimetype) == (404, "application/problem+json")
    other = f"{API}/{client.post(API).get_json()['id']}"
    right = known["user_message_id"] if path == "edit" else known["message_id"]
    assert client.open(f"{other}/messages/{right}/{path}", method=method, json={"content": "x"}).status_code == 404


def test_an_edited_question_may_not_be_too_long(client: FlaskClient, conversation: str) -> None:
    known = say(client, conversation)
    path = f"{conversation}/messages/{known['user_message_id']}/edit"
    assert client.post(path, json={"content": "x" * 101}).status_code == 422


def test_stopping_keeps_the_text(client: FlaskClient, conversation: str, fake: FakeOpenAI) -> None:
    response, message, gate = running(client, conversation, fake)
    for _ in range(2):  # twice is as good as once
        stopped = client.post(f"{conversation}/messages/{message}/stop")
        assert (stopped.status_code, stopped.get_json()) == (200, {"message_id": message, "status": "stopped"})
    gate.set()
    assert parse_events(b"".join(response.iter_encoded()))[-1][1]["status"] == "stopped"
    kept = client.get(conversation).get_json()["messages"][1]
    assert (kept["content"], kept["status"], kept["finish_reason"]) == ("Hello", "stopped", "stopped")


def test_a_cut_answer_can_be_continued(client: FlaskClient, conversation: str, fake: FakeOpenAI) -> None:
    response, message, gate = running(client, conversation, fake)
    client.post(f"{conversation}/messages/{message}/stop")
    gate.set()
    response.close()
    fake.waits, fake.pieces = {}, [" and", " more"]
    events = parse_events(client.post(f"{conversation}/messages/{message}/continue").data)
    assert events[0][1]["message_id"] == message
    assert "".join(data["text"] for name, data in events if name == "delta") == " and more"
    assert [turn["content"] for turn in fake.requests[-1]["messages"]] == ["Hi", "Hello", CONTINUE]
    assert branch(client, conversation) == ["Hi", "Hello and more"]
    again = client.post(f"{conversation}/messages/{message}/continue")
    assert (again.status_code, again.mimetype) == (409, "application/problem+json")


def test_following_from_every_place(client: FlaskClient, conversation: str) -> None:
    message = say(client, conversation)["message_id"]
    path = f"{conversation}/messages/{message}/stream"
    for after in range(len("Hello world") + 1):
        events = parse_events(client.get(path, headers={"Last-Event-ID": str(after)}).data)
        assert "".join(data["text"] for name, data in events if name == "delta") == "Hello world"[after:]
        assert (events[0][0], events[-1][0], events[-1][1]["status"]) == ("start", "done", "complete")


def test_identifiers_of_no_event(client: FlaskClient, conversation: str) -> None:
    message = say(client, conversation)["message_id"]
    path = f"{conversation}/messages/{message}/stream"
    for identifier in ("-1", "x", "1-1", "1" * 10, ""):
        assert client.get(path, headers={"Last-Event-ID": identifier}).status_code == 400, identifier


def test_following_a_failed_answer(client: FlaskClient, conversation: str, fake: FakeOpenAI) -> None:
    fake.cut = True
    message = say(client, conversation)["message_id"]
    events = parse_events(client.get(f"{conversation}/messages/{message}/stream").data)
    assert [name for name, _ in events] == ["start", "delta", "error"]


def test_following_an_answer_whose_process_has_died(
    app: Flask, client: FlaskClient, conversation: str, fake: FakeOpenAI
) -> None:
    response, message, gate = running(client, conversation, fake)
    app.extensions["generations"]._running.clear()  # plays the process that comes after the dead one
    with app.extensions["database"].session() as session:
        session.execute(update(Message).where(Message.status == "streaming").values(updated_at=now() - LEASE * 2))
    events = parse_events(client.get(f"{conversation}/messages/{message}/stream").data)
    assert (events[1][1]["text"], events[-1][1]["status"]) == ("Hello", "interrupted")
    gate.set()
    response.close()


def test_deleting_the_conversation_stops_its_answers(client: FlaskClient, conversation: str, fake: FakeOpenAI) -> None:
    fake.pieces, fake.between = ["x"] * 1000, 0.02
    client.post(f"{conversation}/messages", json={"content": "Hi"}).close()
    assert client.delete(conversation).status_code == 204
    eventually(lambda: fake.left)
