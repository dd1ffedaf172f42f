"""Uploads through the API: kept, given to the model, and gone with their conversation."""

import base64
import io
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chatbot.attachments import clean_name
from chatbot.database import Conversation
from chatbot.factory import create_app
from fake_openai import FakeOpenAI
from flask import Flask
from flask.testing import FlaskClient
from pdf import make_pdf
from sqlalchemy import delete
from support import PASSWORD, close, create_schema, make_settings, signed_in
from test_extract import PNG
from werkzeug.test import TestResponse

API = "/api/v1/conversations"


@pytest.fixture
def more() -> dict[str, str]:
    """Settings that a test changes."""
    return {}


@pytest.fixture
def app(fake: FakeOpenAI, database_url: str, tmp_path: Path, more: dict[str, str]) -> Iterator[Flask]:
    """The application on both kinds of database, with a directory for files."""
    chosen = {
        "rate_limit": "1000 per minute",
        "rate_limit_address": "1000 per minute",
        "data_directory": str(tmp_path),
        "max_upload_bytes": "4096",
        "max_attachments": "3",
    } | more
    settings = make_settings(fake.url, database_url, **chosen)
    create_schema(settings)
    app = create_app(settings)
    yield app
    close(app.extensions["database"])


@pytest.fixture
def conversation(client: FlaskClient) -> str:
    return str(client.post(API).headers["Location"])


def upload(client: FlaskClient, conversation: str, data: bytes, name: str = "note.txt") -> TestResponse:
    return client.post(f"{conversation}/attachments", data={"file": (io.BytesIO(data), name)})


def identifier(client: FlaskClient, conversation: str, data: bytes = b"some text", name: str = "note.txt") -> str:
    response = upload(client, conversation, data, name)
    assert response.status_code == 201, response.text
    return str(response.get_json()["id"])


def say(client: FlaskClient, conversation: str, content: str = "Hi", **more: object) -> TestResponse:
    return client.post(f"{conversation}/messages", json={"content": content, **more}, buffered=True)


def files(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "uploads").iterdir() if not path.name.startswith(".")}


def last_question(fake: FakeOpenAI) -> Any:
    return fake.requests[-1]["messages"][-1]["content"]


def test_a_file_is_described_and_can_be_downloaded(client: FlaskClient, conversation: str, tmp_path: Path) -> None:
    data = make_pdf("First", "Second")
    response = upload(client, conversation, data, "docs/Bericht ü.pdf")
    attachment = response.get_json()
    assert attachment | {"id": "", "created_at": ""} == {
        "id": "", "name": "Bericht ü.pdf", "type": "application/pdf", "bytes": len(data), "pages": 2,
        "characters": len("First\n\nSecond"), "created_at": "",
    }  # fmt: skip
    assert files(tmp_path) == {attachment["id"]}
    assert client.get(conversation).get_json()["attachments"] == [attachment]
    download = client.get(response.headers["Location"], buffered=True)
    assert download.data == data
    assert download.headers["Content-Disposition"].startswith("attachment;")
    assert download.headers["Content-Security-Policy"].startswith("sandbox")
    assert (download.headers["X-Content-Type-Options"], download.mimetype) == ("nosniff", "application/pdf")


def test_the_model_reads_the_file(client: FlaskClient, conversation: str, fake: FakeOpenAI) -> None:
    first, second = identifier(client, conversation), identifier(client, conversation, b"a;b", "table.csv")
    assert say(client, conversation, "What is it?", attachments=[second, first]).status_code == 200
    assert last_question(fake) == (
        "[Begin of the file table.csv]\na;b\n[End of the file table.csv]\n\n"
        "[Begin of the file note.txt]\nsome text\n[End of the file note.txt]\n\n"
        "What is it?"
    )
    question = client.get(conversation).get_json()["messages"][0]
    assert [file["id"] for file in question["attachments"]] == [second, first]
    assert question["content"] == "What is it?"
    say(client, conversation, "And now?")
    assert "some text" in fake.requests[-1]["messages"][0]["content"]
    assert last_question(fake) == "And now?"


def test_a_file_counts_for_the_account(client: FlaskClient, conversation: str, fake: FakeOpenAI) -> None:
    fake.usage = False
    say(client, conversation, attachments=[identifier(client, conversation, b"x" * 3000)])
    assert client.get("/api/v1/account/usage").get_json()["prompt_tokens"] > 1000


def test_an_edited_question_keeps_its_files_unless_told(
    client: FlaskClient, conversation: str, fake: FakeOpenAI
) -> None:
    file = identifier(client, conversation)
    say(client, conversation, "one", attachments=[file])
    question = client.get(conversation).get_json()["messages"][0]["id"]
    edit = f"{conversation}/messages/{question}/edit"
    client.post(edit, json={"content": "two"}, buffered=True)
    assert "some text" in last_question(fake)
    client.post(edit, json={"content": "three", "attachments": []}, buffered=True)
    assert last_question(fake) == "three"


def test_a_file_is_cut_to_the_context_window(
    client: FlaskClient, conversation: str, fake: FakeOpenAI, app: Flask
) -> None:
    settings = app.extensions["settings"]
    app.extensions["settings"] = settings.model_copy(update={"model_context_tokens": 256, "model_max_tokens": 56})
    file = identifier(client, conversation, b"x" * 4000)
    say(client, conversation, "y" * 100, attachments=[file])
    assert "x" * 500 + "\n[Cut: 500 of 4000 characters fit.]" in last_question(fake)
    assert "x" * 501 not in last_question(fake)
    say(client, conversation, "z" * 100)
    assert "x" * 389 + "\n[Cut: 389 of 4000" in fake.requests[-1]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("data", "name", "status", "words"),
    [
        (b"x" * 4097, "a.txt", 413, "4096 bytes"),
        (b"x" * 400_000, "a.txt", 413, "larger than"),
        (b"", "a.txt", 422, "empty"),
        (b"MZ\x00\x01", "a.txt", 415, "PDF and text"),
        (PNG, "a.png", 415, "cannot see images"),
        (b"%PDF-1.7 broken", "a.pdf", 422, "damaged"),
        (make_pdf(""), "a.pdf", 422, "no text"),
    ],
)
def test_unusable_files_are_refused_and_leave_nothing(
    client: FlaskClient, conversation: str, tmp_path: Path, data: bytes, name: str, status: int, words: str
) -> None:
    response = upload(client, conversation, data, name)
    assert (response.status_code, response.mimetype) == (status, "application/problem+json")
    assert words in response.get_json()["detail"]
    assert not (tmp_path / "uploads").exists() or files(tmp_path) == set()
    assert client.get(conversation).get_json()["attachments"] == []


def test_a_form_without_a_file(client: FlaskClient, conversation: str) -> None:
    assert client.post(f"{conversation}/attachments", json={}).status_code == 415
    form = client.post(f"{conversation}/attachments", data={"file": "text"}, content_type="multipart/form-data")
    assert form.get_json()["errors"] == [{"field": "file", "message": "Field required"}]


def test_too_many_files(client: FlaskClient, conversation: str) -> None:
    for _ in range(3):
        identifier(client, conversation)
    assert upload(client, conversation, b"x").status_code == 409


def test_an_unsent_file_can_be_deleted_a_sent_one_stays(client: FlaskClient, conversation: str, tmp_path: Path) -> None:
    unsent, sent = identifier(client, conversation), identifier(client, conversation)
    say(client, conversation, attachments=[sent])
    assert client.delete(f"/api/v1/attachments/{unsent}").status_code == 204
    assert client.delete(f"/api/v1/attachments/{unsent}").status_code == 404
    assert client.delete(f"/api/v1/attachments/{sent}").status_code == 409
    assert files(tmp_path) == {sent}


def test_files_go_with_their_conversation(client: FlaskClient, conversation: str, tmp_path: Path) -> None:
    other = client.post(API).headers["Location"]
    gone, kept = identifier(client, conversation), identifier(client, other)
    assert client.delete(conversation).status_code == 204
    assert files(tmp_path) == {kept}
    assert client.get(f"/api/v1/attachments/{gone}/content").status_code == 404
    assert client.delete(API).status_code == 204
    assert files(tmp_path) == set()


def test_files_go_with_their_account(app: Flask, client: FlaskClient, conversation: str, tmp_path: Path) -> None:
    identifier(client, conversation)
    other = signed_in(app, "other@example.org")
    kept = identifier(other, other.post(API).headers["Location"])
    assert client.delete("/api/v1/account", json={"password": PASSWORD}).status_code == 204
    assert files(tmp_path) == {kept}


def test_what_is_accepted_is_told_beforehand(app: Flask) -> None:
    limits = app.test_client().get("/api/v1/session").get_json()["limits"]
    assert (limits["max_upload_bytes"], limits["max_attachments"]) == (4096, 3)
    assert limits["upload_types"] == ["application/pdf", "text/plain", "text/markdown", "text/csv"]


def test_the_sweep_removes_what_a_dead_process_left(
    app: Flask, client: FlaskClient, conversation: str, tmp_path: Path
) -> None:
    kept = identifier(client, conversation)
    orphan = identifier(client, client.post(API).headers["Location"])
    half = uuid.uuid4()
    (tmp_path / "uploads" / str(half)).write_bytes(b"half")
    (tmp_path / "uploads" / "README").write_text("not ours")
    with app.extensions["database"].session() as session:  # plays the process that died before it removed the file
        session.execute(delete(Conversation).where(Conversation.id != uuid.UUID(conversation.rpartition("/")[2])))
    app.extensions["uploads"].sweep()
    assert files(tmp_path) == {kept, orphan, str(half), "README"}  # may be in the middle of an upload
    for path in (tmp_path / "uploads").iterdir():
        os.utime(path, (time.time() - 7200,) * 2)
    app.extensions["uploads"].sweep()
    assert files(tmp_path) == {kept, "README"}


def test_files_belong_to_the_owner_of_the_conversation(app: Flask, client: FlaskClient, conversation: str) -> None:
    file = identifier(client, conversation)
    other = signed_in(app, "other@example.org")
    refused = other.get(f"/api/v1/attachments/{file}/content")
    assert (refused.status_code, refused.get_json()["detail"]) == (404, "There is no such file in this account.")
    assert other.delete(f"/api/v1/attachments/{file}").status_code == 404
    assert upload(other, conversation, b"x").status_code == 404
    theirs = other.post(API).headers["Location"]
    refused = say(other, theirs, attachments=[file])
    assert (refused.status_code, refused.get_json()["errors"][0]["field"]) == (422, "attachments")
    assert other.get(theirs).get_json()["messages"] == []


@pytest.mark.parametrize("more", [{"model_vision": "true"}])
def test_a_model_that_sees_gets_images(client: FlaskClient, conversation: str, fake: FakeOpenAI) -> None:
    image = identifier(client, conversation, PNG, "dot.png")
    say(client, conversation, "What is it?", attachments=[image])
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert last_question(fake) == [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What is it?"},
    ]


@pytest.mark.parametrize("more", [{"model_vision": "true"}])
def test_a_lost_image_does_not_end_the_conversation(
    client: FlaskClient, conversation: str, fake: FakeOpenAI, tmp_path: Path
) -> None:
    image = identifier(client, conversation, PNG, "dot.png")
    (tmp_path / "uploads" / image).unlink()
    assert client.get(f"/api/v1/attachments/{image}/content").status_code == 404
    say(client, conversation, "Well?", attachments=[image])
    assert last_question(fake) == "[The image dot.png cannot be shown]\n\nWell?"


def test_without_a_data_directory_nothing_is_taken(app: Flask, client: FlaskClient, conversation: str) -> None:
    uploads = app.extensions["uploads"]
    uploads._directory = None
    assert upload(client, conversation, b"x").status_code == 501
    assert uploads.types() == []


def test_a_full_disk_refuses_files(client: FlaskClient, conversation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatbot.uploads.KEEP_FREE", 2**60)
    assert upload(client, conversation, b"x").status_code == 507


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\a b.txt", "a b.txt"),
        ("", "file"),
        ("..", "file"),
        ("a\r\nSet-Cookie: x", "a Set-Cookie: x"),
        ("invoice\u202efdp.exe", "invoice fdp.exe"),
        ("x" * 300 + ".pdf", "x" * 196 + ".pdf"),
    ],
)
def test_names_are_made_harmless(given: str, name: str) -> None:
    assert clean_name(given) == name
