"""Finding, naming, exporting and configuring conversations."""

import re
import threading
import uuid
from collections.abc import Iterator

import pytest
from chatbot.database import Conversation, Message
from chatbot.factory import create_app
from chatbot.titles import clean
from fake_openai import FakeOpenAI
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import update
from support import close, create_schema, eventually, make_settings, signed_in

API = "/api/v1/conversations"


@pytest.fixture
def more() -> dict[str, str]:
    """Settings that a test changes."""
    return {}


@pytest.fixture
def app(fake: FakeOpenAI, database_url: str, more: dict[str, str]) -> Iterator[Flask]:
    """The application on both kinds of database."""
    limits = {"rate_limit": "1000 per minute", "rate_limit_address": "1000 per minute"}
    settings = make_settings(fake.url, database_url, **(limits | more))
    create_schema(settings)
    app = create_app(settings)
    yield app
    close(app.extensions["database"])


def new(client: FlaskClient, **body: object) -> str:
    response = client.post(API, json=body)
    assert response.status_code == 201, response.text
    return str(response.headers["Location"])


def say(client: FlaskClient, conversation: str, content: str = "Hi") -> None:
    assert client.post(f"{conversation}/messages", json={"content": content}, buffered=True).status_code == 200


def titles(client: FlaskClient, **query: object) -> list[str]:
    found = client.get(API, query_string=query).get_json()["conversations"]
    return [conversation["title"] for conversation in found]


def test_search_looks_in_titles_and_messages(client: FlaskClient, fake: FakeOpenAI) -> None:
    fake.pieces = ["The Ocean is wide"]
    said, named, other = new(client, title="First"), new(client, title="50% of an Ocean"), new(client, title="Third")
    say(client, said)
    fake.pieces = ["Nothing"]
    say(client, other, "About deserts")
    assert named
    assert titles(client, search="oCEAN") == ["First", "50% of an Ocean"]
    assert titles(client, search="about deserts") == ["Third"]
    assert titles(client, search="  ") == ["Third", "First", "50% of an Ocean"]
    assert titles(client, search="missing") == []
    assert titles(client, search="0% o") == ["50% of an Ocean"]
    assert titles(client, search="5_%") == titles(client, search="\\") == []


def test_search_finds_only_ones_own(app: Flask, client: FlaskClient) -> None:
    new(client, title="Mine")
    other = signed_in(app, "other@example.org")
    assert titles(other, search="Mine") == []


def test_pages_show_everything_once(app: Flask, client: FlaskClient) -> None:
    for number in range(7):
        new(client, title=f"Number {number}")
    with app.extensions["database"].session() as session:  # some of the very same moment
        some = session.query(Conversation).filter(Conversation.title.in_(["Number 2", "Number 3", "Number 4"])).all()
        session.execute(
            update(Conversation).where(Conversation.id.in_([c.id for c in some])).values(updated_at=some[0].updated_at)
        )
    seen: list[str] = []
    cursor = None
    for size in (3, 3, 1):
        page = client.get(API, query_string={"limit": 3, "search": "Number"} | ({"cursor": cursor} if cursor else {}))
        shown = [conversation["title"] for conversation in page.get_json()["conversations"]]
        assert len(shown) == size
        seen += shown
        cursor = page.get_json()["next_cursor"]
    assert cursor is None
    assert sorted(seen) == [f"Number {number}" for number in range(7)]
    assert (seen[:2], seen[-2:]) == (["Number 6", "Number 5"], ["Number 1", "Number 0"])


def test_renaming_does_not_change_the_order(client: FlaskClient) -> None:
    first, second = new(client, title="First"), new(client, title="Second")
    assert second
    changed = client.patch(first, json={"title": "  Renamed "}).get_json()
    assert changed["title"] == "Renamed"
    assert titles(client) == ["Second", "Renamed"]


def test_deleting_all_leaves_those_of_others(app: Flask, client: FlaskClient, fake: FakeOpenAI) -> None:
    other = signed_in(app, "other@example.org")
    theirs = new(other, title="Theirs")
    gate = threading.Event()
    fake.waits = {1: lambda: gate.wait(10)}
    mine = new(client)
    running = client.post(f"{mine}/messages", json={"content": "x"})
    assert client.delete(API).status_code == 204
    gate.set()
    assert b"event: done" in running.data
    assert titles(client) == []
    assert client.get(mine).status_code == 404
    assert other.get(theirs).status_code == 200


def test_what_it_cost(client: FlaskClient) -> None:
    conversation = new(client)
    say(client, conversation)
    say(client, conversation)
    found = client.get(conversation).get_json()
    assert found["usage"] == {"prompt_tokens": 14, "completion_tokens": 6}
    assert found["messages"][1]["usage"] == {"prompt_tokens": 7, "completion_tokens": 3}


def test_a_continued_answer_has_cost_both_parts(app: Flask, client: FlaskClient) -> None:
    conversation = new(client)
    say(client, conversation)
    answer = client.get(conversation).get_json()["messages"][1]["id"]
    with app.extensions["database"].session() as session:
        session.execute(update(Message).where(Message.id == uuid.UUID(answer)).values(status="stopped"))
    assert b'"completion_tokens":6' in client.post(f"{conversation}/messages/{answer}/continue").data
    assert client.get(conversation).get_json()["usage"] == {"prompt_tokens": 14, "completion_tokens": 6}


@pytest.mark.parametrize("more", [{"system_prompt": "Be polite."}])
def test_the_system_prompt_of_a_conversation_follows_the_configured_one(client: FlaskClient, fake: FakeOpenAI) -> None:
    conversation = new(client, system_prompt="Be brief.")
    say(client, conversation)
    assert fake.requests[-1]["messages"][0] == {"role": "system", "content": "Be polite.\n\nBe brief."}
    assert client.patch(conversation, json={"system_prompt": None}).get_json()["system_prompt"] is None
    say(client, conversation)
    assert fake.requests[-1]["messages"][0]["content"] == "Be polite."


def test_a_conversation_has_a_model(client: FlaskClient, fake: FakeOpenAI) -> None:
    conversation = new(client, model="other-model")
    say(client, conversation)
    assert fake.requests[-1]["model"] == "other-model"
    found = client.get(conversation).get_json()
    assert (found["model"], found["messages"][1]["model"]) == ("other-model", "other-model")
    assert client.patch(conversation, json={"model": "unknown"}).status_code == 422
    assert client.patch(conversation, json={"model": None}).get_json()["model"] == "test-model"
    say(client, conversation)
    assert fake.requests[-1]["model"] == "test-model"


def test_the_models_are_the_providers(client: FlaskClient, fake: FakeOpenAI) -> None:
    fake.models = ["b", "test-model", "x" * 101, "a"]
    for _ in range(3):
        assert client.get("/api/v1/models").get_json()["models"] == [
            {"id": "test-model", "default": True},
            {"id": "b", "default": False},
            {"id": "a", "default": False},
        ]
    assert fake.listed == 1


@pytest.mark.parametrize("broken", [b"{}", b'{"data": 1}', b"[]", b"<html>", b'{"data": [1, {"id": 2}]}'])
def test_a_provider_without_a_list_offers_the_default(client: FlaskClient, fake: FakeOpenAI, broken: bytes) -> None:
    fake.models = broken
    for _ in range(2):
        assert client.get("/api/v1/models").get_json()["models"] == [{"id": "test-model", "default": True}]
    assert fake.listed == 1


def test_a_silent_provider_is_not_waited_for(
    client: FlaskClient, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.selection.PATIENCE", 0.2)
    fake.before_headers = 2
    assert client.get("/api/v1/models").get_json()["models"] == [{"id": "test-model", "default": True}]


@pytest.mark.parametrize("more", [{"models": "small, large"}])
def test_the_selection_of_the_administrator(app: Flask, client: FlaskClient, fake: FakeOpenAI) -> None:
    offered = client.get("/api/v1/models").get_json()["models"]
    assert [model["id"] for model in offered] == ["test-model", "small", "large"]
    assert fake.listed == 0
    assert client.post(API, json={"model": "other-model"}).status_code == 422
    conversation = new(client, model="small")
    with app.extensions["database"].session() as session:  # was in the selection once
        session.execute(update(Conversation).values(model="withdrawn"))
    assert client.get(conversation).get_json()["model"] == "test-model"
    say(client, conversation)
    assert fake.requests[-1]["model"] == "test-model"


def test_export_as_markdown_shows_the_branch(client: FlaskClient) -> None:
    conversation = new(client, title='Näh "und"\n# Meer', system_prompt="Be brief.")
    say(client, conversation, "Was ist *das*?")
    question = client.get(conversation).get_json()["messages"][0]["id"]
    client.post(f"{conversation}/messages/{question}/edit", json={"content": "Und nun?"}, buffered=True)
    response = client.get(f"{conversation}/export")
    assert response.headers["Content-Disposition"] == 'attachment; filename="nah-und-meer.md"'
    assert response.content_type == "text/markdown; charset=utf-8"
    text = re.sub(r"\*[-0-9: ]+ UTC\*", "*when*", response.text)
    assert text == (
        '# Näh "und" \\# Meer\n\n*when*\n\n## System prompt\n\nBe brief.\n\n'
        "## You\n\nUnd nun?\n\n## Assistant (test-model)\n\nHello world\n"
    )


def test_export_as_json_has_everything(client: FlaskClient) -> None:
    conversation = new(client)
    say(client, conversation, "One")
    question = client.get(conversation).get_json()["messages"][0]["id"]
    client.post(f"{conversation}/messages/{question}/edit", json={"content": "Two"}, buffered=True)
    response = client.get(f"{conversation}/export?format=json")
    assert response.get_json() == client.get(conversation).get_json()
    assert len(response.get_json()["messages"]) == 4
    assert response.headers["Content-Disposition"] == 'attachment; filename="one.json"'
    assert client.get(f"{API}/{uuid.uuid4()}/export").status_code == 404


def total_tokens(client: FlaskClient) -> int:
    return int(client.get("/api/v1/account/usage").get_json()["total_tokens"])


class TestTitlesFromAModel:
    """With a model for titles."""

    @pytest.fixture
    def more(self) -> dict[str, str]:
        """Such a model."""
        return {"title_model": "title-model"}

    @pytest.fixture
    def title(self, fake: FakeOpenAI) -> list[str]:
        """The pieces that it answers."""
        fake.answers["title-model"] = ["**Title: The ", "wide sea.**"]
        return fake.answers["title-model"]

    def test_the_first_answer_gives_the_title(self, client: FlaskClient, fake: FakeOpenAI, title: list[str]) -> None:
        assert title
        conversation = new(client)
        say(client, conversation, "What is the sea?")
        eventually(lambda: titles(client) == ["The wide sea"])
        assert "What is the sea?" in fake.requests[1]["messages"][0]["content"]
        say(client, conversation, "And a lake?")
        assert [request["model"] for request in fake.requests] == ["test-model", "title-model", "test-model"]

    def test_the_title_counts_for_the_account(self, client: FlaskClient, fake: FakeOpenAI, title: list[str]) -> None:
        assert title
        say(client, new(client), "What is the sea?")
        used = eventually(lambda: total_tokens(client) > 10 and total_tokens(client))
        assert used == 10 + 7 + 2
        fake.usage = False  # of a question like "What? Give this conversation a title …" it is estimated
        say(client, new(client), "What is a lake?")
        eventually(lambda: total_tokens(client) > used + 40)

    def test_a_given_title_stays(self, client: FlaskClient, fake: FakeOpenAI, title: list[str]) -> None:
        assert title
        say(client, new(client, title="Mine"))
        assert [request["model"] for request in fake.requests] == ["test-model"]

    def test_a_title_that_is_given_meanwhile_stays(
        self, app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        conversation = new(client)
        asked, named = threading.Event(), threading.Event()

        def ask(*_: object) -> str:
            asked.set()
            named.wait(10)
            return "Too late"

        monkeypatch.setattr(app.extensions["titles"], "_ask", ask)
        say(client, conversation, "What is the sea?")
        assert asked.wait(10)
        client.patch(conversation, json={"title": "Mine"})
        named.set()
        close(app.extensions["database"])  # when everything has ended
        assert titles(client) == ["Mine"]

    @pytest.mark.parametrize("pieces", [[""], ["..."], ["<think>hm"]])
    def test_without_a_useful_answer_the_words_stay(
        self, client: FlaskClient, fake: FakeOpenAI, pieces: list[str]
    ) -> None:
        fake.answers["title-model"] = pieces
        say(client, new(client), "What is the sea?")
        eventually(lambda: len(fake.requests) == 2)
        assert titles(client) == ["What is the sea?"]

    def test_a_failed_answer_asks_for_no_title(self, client: FlaskClient, fake: FakeOpenAI) -> None:
        fake.cut = True
        say(client, new(client), "What?")
        assert (titles(client), len(fake.requests)) == (["What?"], 1)


@pytest.mark.parametrize(
    ("said", "title"),
    [
        ("The Sea", "The Sea"),
        ('"The Sea."', "The Sea"),
        ("Here is a title:\n\n**Title: The Sea**\n", "The Sea"),
        ("one two three four five six seven", "one two three four five six"),
        ("<think>\nhm\n</think>\nThe Sea", "The Sea"),
        ("What is the sea?", "What is the sea?"),
        ("Titel: Das Meer", "Das Meer"),
        ("「海」", "海"),
        ("x" * 100, "x" * 59 + "…"),
        ("<think> never ends", ""),
        ("---", ""),
        ("", ""),
    ],
)
def test_titles_are_cleaned(said: str, title: str) -> None:
    assert clean(said) == title
