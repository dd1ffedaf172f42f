"""What wrong requests are answered: always a problem document that names what is wrong, and never a trace left."""

import io
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from chatbot.factory import create_app
from fake_openai import FakeOpenAI
from flask import Flask
from flask.testing import FlaskClient
from support import close, create_schema, make_settings, signed_in

API = "/api/v1"
JSON = "application/json"
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    """The application with small limits; one for all requests."""
    directory = tmp_path_factory.mktemp("bad-input")
    with FakeOpenAI() as fake:
        settings = make_settings(
            fake.url,
            f"sqlite:///{directory}/test.db",
            data_directory=str(directory),
            max_message_chars="100",
            max_upload_bytes="2048",
            max_body_bytes="4096",
            rate_limit="1000 per minute",
            rate_limit_address="1000 per minute",
            sign_in_limit_address="1000 per minute",
        )
        create_schema(settings)
        app = create_app(settings)
        yield app
        close(app.extensions["database"])


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A browser that is signed in to an account of its own."""
    return signed_in(app, f"{uuid.uuid4()}@example.org")


def body(text: str | bytes, content_type: str = JSON) -> dict[str, Any]:
    """A body as it is."""
    return {"data": text, "content_type": content_type}


def file(data: bytes, name: str = "a.txt") -> dict[str, Any]:
    """A form with a file."""
    return {"data": {"file": (io.BytesIO(data), name)}, "content_type": "multipart/form-data"}


NEW = "POST /conversations"
CHANGE = "PATCH /conversations/{conversation}"
ASK = "POST /conversations/{conversation}/messages"
EDIT = "POST /conversations/{conversation}/messages/{question}/edit"
LIST = "GET /conversations"
FILES = "POST /conversations/{conversation}/attachments"
ANSWER = "/conversations/{conversation}/messages/{answer}"

CASES: list[tuple[str, dict[str, Any], int, str]] = [
    # Not there, or not so
    ("GET /nothing", {}, 404, "There is nothing at"),
    ("GET /conversations/not-a-uuid", {}, 404, "There is nothing at"),
    (f"GET /conversations/{NOBODY}", {}, 404, "no such conversation"),
    (f"DELETE /conversations/{NOBODY}", {}, 404, "no such conversation"),
    (f"PATCH /conversations/{NOBODY}", {"json": {}}, 404, "no such conversation"),
    (f"POST /conversations/{NOBODY}/messages", {"json": {"content": "x"}}, 404, "no such conversation"),
    (f"GET /conversations/{NOBODY}/export", {}, 404, "no such conversation"),
    (f"POST /conversations/{NOBODY}/attachments", file(b"x"), 404, "no such conversation"),
    (f"GET /attachments/{NOBODY}/content", {}, 404, "no such file"),
    (f"DELETE /attachments/{NOBODY}", {}, 404, "no such file"),
    ("PUT /conversations", {}, 405, "does not answer PUT"),
    ("POST /models", {"json": {}}, 405, "does not answer POST"),
    ("GET /conversations/{conversation}/messages", {}, 405, "does not answer GET"),
    # Not for everybody
    ("GET /admin/accounts", {}, 403, "Only administrators"),
    ("POST /account", {"json": {"email": "new@example.org", "password": "long enough for it"}}, 403, "is closed"),
    # Bodies
    (ASK, body(""), 400, "not valid JSON"),
    (ASK, body('{"content": "x"'), 400, "not valid JSON"),
    (ASK, body(b"\xff\xfe\x00"), 400, "not valid JSON"),
    (ASK, body('{"content": "\\ud800"}'), 400, "not valid JSON"),
    (ASK, body('{"content": NaN}'), 400, "not valid JSON"),
    (ASK, body("[" * 2000), 400, "not valid JSON"),
    (ASK, body('{"content": "' + "x" * 5000 + '"}'), 413, "larger than 4096 bytes"),
    (ASK, body('{"content": "x"}', "text/plain"), 415, "application/json"),
    (ASK, body("content=x", "application/x-www-form-urlencoded"), 415, "application/json"),
    (NEW, body("title=x", "text/plain"), 415, "application/json"),
    (ASK, {"json": []}, 422, "body: "),
    (ASK, body("null"), 422, "body: "),
    (ASK, {"json": "text"}, 422, "body: "),
    # Questions
    (ASK, {"json": {}}, 422, "content: Field required"),
    (ASK, {"json": {"content": None}}, 422, "content: "),
    (ASK, {"json": {"content": 1}}, 422, "content: "),
    (ASK, {"json": {"content": ["x"]}}, 422, "content: "),
    (ASK, {"json": {"content": " \n\t"}}, 422, "content: must not be blank"),
    (ASK, {"json": {"content": "a\0b"}}, 422, "content: must not contain NUL"),
    (ASK, {"json": {"content": "x" * 101}}, 422, "may have 100 characters; this one has 101"),
    (ASK, {"json": {"content": "x", "role": "system"}}, 422, "role: "),
    (ASK, {"json": {"content": "x", "parent_id": "1"}}, 422, "parent_id: "),
    (ASK, {"json": {"content": "x", "parent_id": NOBODY}}, 422, "parent_id: is not an answer"),
    (ASK, {"json": {"content": "x", "attachments": "x"}}, 422, "attachments: "),
    (ASK, {"json": {"content": "x", "attachments": [NOBODY]}}, 422, "attachments: is not a file"),
    (ASK, {"json": {"content": "x", "attachments": [NOBODY] * 101}}, 422, "attachments: "),
    (EDIT, {"json": {"content": ""}}, 422, "content: must not be blank"),
    (EDIT, {"json": {"content": "x", "parent_id": None}}, 422, "parent_id: "),
    ("POST " + ANSWER + "/edit", {"json": {"content": "x"}}, 404, "no such question"),
    ("POST /conversations/{conversation}/messages/{question}/regenerate", {}, 404, "no such answer"),
    ("POST /conversations/{conversation}/messages/{question}/stop", {}, 404, "no such answer"),
    ("POST " + ANSWER + "/continue", {}, 409, "Only an answer that was cut"),
    ("GET " + ANSWER + "/stream", {"headers": {"Last-Event-ID": "-1"}}, 400, "Last-Event-ID: "),
    ("GET " + ANSWER + "/stream", {"headers": {"Last-Event-ID": "1" * 10}}, 400, "Last-Event-ID: "),
    # Conversations
    (NEW, {"json": {"title": 1}}, 422, "title: "),
    (NEW, {"json": {"title": "x" * 201}}, 422, "title: "),
    (NEW, {"json": {"title": "\0"}}, 422, "title: must not contain NUL"),
    (NEW, {"json": {"owner": "me"}}, 422, "owner: "),
    (NEW, {"json": {"model": "unknown"}}, 422, "model: is not offered"),
    (NEW, {"json": {"system_prompt": "x" * 8001}}, 413, "larger than"),
    (NEW, {"json": {"system_prompt": {}}}, 422, "system_prompt: "),
    (CHANGE, {"json": {"title": " "}}, 422, "title: "),
    (CHANGE, {"json": {"model": ""}}, 422, "model: "),
    (CHANGE, {"json": {"current_message_id": NOBODY}}, 422, "current_message_id: is not a message"),
    (CHANGE, {"json": {"id": NOBODY}}, 422, "id: "),
    (LIST, {"query_string": {"limit": "0"}}, 422, "limit: "),
    (LIST, {"query_string": {"limit": "101"}}, 422, "limit: "),
    (LIST, {"query_string": {"limit": "many"}}, 422, "limit: "),
    (LIST, {"query_string": "limit=1&limit=2"}, 422, "limit: must be given once"),
    (LIST, {"query_string": {"cursor": "not one"}}, 422, "cursor: is not a cursor"),
    (LIST, {"query_string": {"cursor": "W10="}}, 422, "cursor: is not a cursor"),
    (LIST, {"query_string": {"cursor": "Ä"}}, 422, "cursor: is not a cursor"),
    (LIST, {"query_string": {"search": "x" * 201}}, 422, "search: "),
    (LIST, {"query_string": {"search": "\0"}}, 422, "search: must not contain NUL"),
    (LIST, {"query_string": {"sort": "title"}}, 422, "sort: "),
    ("GET /conversations/{conversation}/export", {"query_string": {"format": "pdf"}}, 422, "format: "),
    # Accounts
    ("POST /session", body("email=x", "application/x-www-form-urlencoded"), 415, "application/json"),
    ("POST /session", {"json": {"email": "x", "password": "x"}}, 422, "email: is not an e-mail address"),
    ("POST /session", {"json": {"email": "a@b", "password": ["x"]}}, 422, "password: "),
    ("PATCH /account", {"json": {"name": "x" * 101}}, 422, "name: "),
    ("PATCH /account", {"json": {"name": "x", "role": "admin"}}, 422, "role: "),
    ("POST /account/password", {"json": {"current": "wrong", "new": "long enough for it"}}, 422, "current: is wrong"),
    ("DELETE /account", {"json": {"password": "wrong"}}, 422, "password: is wrong"),
    ("POST /tokens", {"json": {"name": "x", "scopes": []}}, 422, "scopes: "),
    ("POST /tokens", {"json": {"name": "x", "scopes": ["root"]}}, 422, "scopes.0: "),
    (f"DELETE /tokens/{NOBODY}", {}, 404, "no such token"),
    (f"DELETE /sessions/{NOBODY}", {}, 404, "no such session"),
    # Files
    (FILES, {}, 415, "multipart/form-data"),
    (FILES, {"json": {"file": "x"}}, 415, "multipart/form-data"),
    (FILES, body(b"x", "multipart/form-data"), 422, "file: Field required"),
    (FILES, body(b"x", "multipart/form-data; boundary=y"), 422, "file: Field required"),
    (FILES, {"data": {"other": (io.BytesIO(b"x"), "x")}, "content_type": "multipart/form-data"}, 422, "file: "),
    (FILES, file(b""), 422, "file: is empty"),
    (FILES, file(b"x" * 2049), 413, "2048 bytes"),
    (FILES, file(b"x" * 100_000), 413, "larger than"),
    (FILES, file(b"\x00\x01\x02"), 415, "Only PDF and text"),
    (FILES, file(b"%PDF-1.4 nothing", "a.pdf"), 422, "damaged"),
]


@pytest.mark.parametrize(
    ("request_line", "arguments", "status", "words"),
    CASES,
    ids=[f"{number}-{line.split()[0]}-{status}" for number, (line, _, status, _) in enumerate(CASES)],
)
def test_wrong_requests(
    client: FlaskClient, request_line: str, arguments: dict[str, Any], status: int, words: str
) -> None:
    conversation = client.post(f"{API}/conversations", json={"title": "Before"}).get_json()["id"]
    address = f"{API}/conversations/{conversation}"
    assert client.post(f"{address}/messages", json={"content": "Hi"}, buffered=True).status_code == 200
    before = client.get(address).get_json()
    question, answer = before["current_branch"]
    method, path = request_line.format(conversation=conversation, question=question, answer=answer).split(" ", 1)

    response = client.open(API + path, method=method, **arguments)

    problem = response.get_json()
    assert (response.status_code, response.mimetype) == (status, "application/problem+json"), response.text
    assert words in problem["detail"]
    assert (problem["type"], problem["status"]) == ("about:blank", status)
    assert problem["request_id"] == response.headers["X-Request-ID"]
    if status == 422 and ": " in words:
        assert problem["errors"][0]["field"] == words.partition(":")[0]
    assert client.get(address).get_json() == before
    assert len(client.get(f"{API}/conversations").get_json()["conversations"]) == 1
