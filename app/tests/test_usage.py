"""Tokens that were used are counted once, whatever ends an answer; budgets and the limits on streams hold."""

import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from chatbot import usage
from chatbot.allowance import check_allowance
from chatbot.database import Account, Message, Usage, now
from chatbot.factory import create_app
from chatbot.generations import LEASE
from chatbot.statements import through
from fake_openai import FakeOpenAI
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event, func, select, update
from support import EMAIL, PASSWORD, close, create_schema, eventually, make_settings, parse_events, signed_in
from test_metrics import value
from werkzeug.test import TestResponse

API = "/api/v1/conversations"


@pytest.fixture
def app(request: pytest.FixtureRequest, fake: FakeOpenAI, database_url: str) -> Iterator[Flask]:
    """The application on both kinds of database, with the settings of `with_settings`."""
    settings = make_settings(fake.url, database_url, **getattr(request, "param", {}))
    create_schema(settings)
    app = create_app(settings)
    yield app
    close(app.extensions["database"])


def with_settings(**more: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("app", [more], indirect=True, ids=[""])


@pytest.fixture
def conversation(client: FlaskClient) -> str:
    return f"{API}/{client.post(API).get_json()['id']}"


def say(client: FlaskClient, conversation: str, content: str = "Hi") -> TestResponse:
    return client.post(f"{conversation}/messages", json={"content": content})


def used(client: FlaskClient) -> tuple[int, int]:
    """The account's prompt and completion tokens."""
    found = client.get("/api/v1/account/usage").get_json()
    return found["prompt_tokens"], found["completion_tokens"]


def running(client: FlaskClient, conversation: str, fake: FakeOpenAI) -> tuple[TestResponse, str, threading.Event]:
    """An answer that stands still behind its first word: the response, the message, and what lets it go on."""
    gate = threading.Event()
    fake.waits = {1: lambda: gate.wait(10)}
    response = say(client, conversation)
    message = client.get(conversation).get_json()["messages"][1]["id"]
    body = response.iter_encoded()
    while b"delta" not in next(body):
        pass
    return response, message, gate


def test_a_complete_answer_counts_what_the_model_says(client: FlaskClient, conversation: str) -> None:
    assert say(client, conversation).data
    assert used(client) == (7, 3)
    assert say(client, conversation).data
    assert used(client) == (14, 6)


def test_without_the_models_count_it_is_estimated(client: FlaskClient, conversation: str, fake: FakeOpenAI) -> None:
    fake.usage = False
    assert say(client, conversation, "x" * 30).data
    assert used(client) == (10, 3)


def test_a_stopped_answer_counts_its_pieces(client: FlaskClient, conversation: str, fake: FakeOpenAI) -> None:
    response, message, gate = running(client, conversation, fake)
    assert client.post(f"{conversation}/messages/{message}/stop").status_code == 200
    gate.set()
    response.close()
    assert used(client) == (1, 1)


def test_an_answer_that_breaks_off_counts(client: FlaskClient, conversation: str, fake: FakeOpenAI) -> None:
    fake.cut = True
    assert say(client, conversation).data
    assert used(client) == (1, 3)


def test_what_the_model_refused_costs_nothing(client: FlaskClient, conversation: str, fake: FakeOpenAI) -> None:
    fake.status = 500
    assert say(client, conversation).status_code == 502
    assert used(client) == (0, 0)


def test_deleting_gives_no_tokens_back(app: Flask, client: FlaskClient, conversation: str, fake: FakeOpenAI) -> None:
    response, _, gate = running(client, conversation, fake)
    assert client.delete(conversation).status_code == 204
    gate.set()
    response.close()
    eventually(lambda: used(client)[1])
    total = sum(used(client))
    assert client.delete("/api/v1/account", json={"password": PASSWORD}).status_code == 204
    admin = signed_in(app, "admin@example.org", "admin")
    assert admin.get("/api/v1/account/usage").get_json()["instance_total_tokens"] == total


def test_a_continued_answer_counts_both_parts(client: FlaskClient, conversation: str, fake: FakeOpenAI) -> None:
    response, message, gate = running(client, conversation, fake)
    client.post(f"{conversation}/messages/{message}/stop")
    gate.set()
    response.close()
    fake.waits = {}
    assert client.post(f"{conversation}/messages/{message}/continue").data
    assert used(client) == (1 + 7, 1 + 3)


def forget_process(app: Flask) -> None:
    """Play the process that comes after a dead one."""
    app.extensions["generations"]._running.clear()
    with app.extensions["database"].session() as session:
        session.execute(update(Message).where(Message.status == "streaming").values(updated_at=now() - LEASE * 2))


def test_the_answer_of_a_dead_process_counts_once(
    app: Flask, client: FlaskClient, conversation: str, fake: FakeOpenAI
) -> None:
    response, _, gate = running(client, conversation, fake)
    forget_process(app)
    for _ in range(2):
        assert client.get(conversation).get_json()["messages"][1]["finish_reason"] == "worker_lost"
    assert used(client) == (1, 2)  # "Hi", and "Hello" at three characters a token
    gate.set()  # it was alive after all, and must not count again
    response.close()
    close_generations()
    assert used(client) == (1, 2)


def close_generations() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("generation-"):
            thread.join(10)


def test_a_dead_process_does_not_count_a_first_part_again(
    app: Flask, client: FlaskClient, conversation: str, fake: FakeOpenAI
) -> None:
    fake.pieces = ["x" * 30] * 4
    response, message, gate = running(client, conversation, fake)
    client.post(f"{conversation}/messages/{message}/stop")
    gate.set()
    response.close()
    assert used(client) == (1, 1)
    gate = threading.Event()
    fake.waits = {1: lambda: gate.wait(10)}
    again = client.post(f"{conversation}/messages/{message}/continue")
    body = again.iter_encoded()
    while b"delta" not in next(body):
        pass
    forget_process(app)
    client.get(conversation)
    assert used(client) == (1 + 1, 1 + 19)  # 60 characters are 20 tokens, of which one is counted
    gate.set()
    again.close()
    close_generations()


def test_a_long_conversation_counts_what_fits_into_the_context(
    app: Flask, client: FlaskClient, conversation: str, fake: FakeOpenAI
) -> None:
    response, _, gate = running(client, conversation, fake)
    with app.extensions["database"].session() as session:
        session.execute(update(Message).where(Message.role == "user").values(content="x" * 100_000))
    forget_process(app)
    client.get(conversation)
    assert used(client)[0] == 8192
    gate.set()
    response.close()
    close_generations()


def test_parallel_answers_are_all_counted(postgresql_url: str) -> None:
    settings = make_settings(database_url=postgresql_url)
    create_schema(settings)
    app = create_app(settings)
    database, accounts = app.extensions["database"], [uuid.uuid4() for _ in range(2)]

    def count() -> None:
        for number in range(20):
            with database.statements() as run:
                usage.record(run, accounts[number % 2], 2, 1)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    with database.session() as session:
        assert [usage.used_by(session, account) for account in accounts] == [(160, 80)] * 2
        assert usage.used_by_all(session) == 480
    close(database)


def own_budget(app: Flask, tokens: int | None) -> None:
    with app.extensions["database"].session() as session:
        session.execute(update(Account).where(Account.email == EMAIL).values(monthly_token_budget=tokens))


def refusal(response: TestResponse) -> dict[str, Any]:
    assert response.status_code == 429, response.text
    problem = response.get_json()
    return dict(problem) | {"retry_after": int(response.headers["Retry-After"])}


@with_settings(monthly_token_budget="10")
def test_a_budget_ends_exactly_where_it_says(app: Flask, client: FlaskClient, conversation: str) -> None:
    before = value(client, 'chatbot_refusals_total{reason="account_budget"}')
    own_budget(app, 11)
    assert say(client, conversation).data
    assert used(client) == (7, 3)  # 10 of 11
    assert say(client, conversation).data  # the last one may go beyond
    assert refusal(say(client, conversation))["type"] == "urn:chatbot:budget-reached"
    own_budget(app, 20)
    problem = refusal(say(client, conversation))
    assert problem["detail"].startswith("Your 20 tokens of this month are used up. There are new ones from 1 ")
    assert 0 < problem["retry_after"] <= 31 * 86400
    own_budget(app, 21)
    assert say(client, conversation).data
    own_budget(app, None)
    assert refusal(say(client, conversation))["detail"].startswith("Your 10 tokens")
    assert value(client, 'chatbot_refusals_total{reason="account_budget"}') == before + 3


@with_settings(monthly_token_budget="10")
def test_a_budget_stops_every_way_to_ask(client: FlaskClient, conversation: str, fake: FakeOpenAI) -> None:
    start = parse_events(say(client, conversation).data)[0][1]
    asked = len(fake.requests)
    for path, body in (
        ("messages", {"content": "x"}),
        (f"messages/{start['user_message_id']}/edit", {"content": "x"}),
        (f"messages/{start['message_id']}/regenerate", None),
        (f"messages/{start['message_id']}/continue", None),
    ):
        refusal(client.post(f"{conversation}/{path}", json=body))
    assert len(fake.requests) == asked
    assert len(client.get(conversation).get_json()["messages"]) == 2
    assert client.get(f"{conversation}/messages/{start['message_id']}/stream").status_code == 200  # reading is free


def test_a_budget_of_nothing_closes_an_account(app: Flask, client: FlaskClient, conversation: str) -> None:
    own_budget(app, 0)
    refusal(say(client, conversation))


@with_settings(instance_token_budget="15")
def test_the_instances_budget_is_everybodys(app: Flask, client: FlaskClient, conversation: str) -> None:
    other = signed_in(app, "other@example.org")
    theirs = f"{API}/{other.post(API).get_json()['id']}"
    assert say(client, conversation).data
    assert say(other, theirs).data
    for who, where in ((client, conversation), (other, theirs)):
        assert refusal(say(who, where))["detail"].startswith("This service's tokens of this month are used up.")


@with_settings(monthly_token_budget="10")
def test_every_month_has_its_own_budget(
    app: Flask, client: FlaskClient, conversation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert say(client, conversation).data
    december = datetime(2026, 12, 31, 23, 59, 50, tzinfo=UTC)
    with app.extensions["database"].session() as session:
        session.execute(update(Usage).values(month="2026-12"))
    for module in ("usage", "allowance"):
        monkeypatch.setattr(f"chatbot.{module}.now", lambda: december)
    problem = refusal(say(client, conversation))
    assert "from 1 January (UTC) on" in problem["detail"]
    assert problem["retry_after"] == 10
    for module in ("usage", "allowance"):
        monkeypatch.setattr(f"chatbot.{module}.now", lambda: datetime(2027, 1, 1, tzinfo=UTC))
    assert say(client, conversation).data
    with app.extensions["database"].session() as session:
        assert list(session.scalars(select(Usage.month).order_by(Usage.month))) == ["2026-12", "2027-01"]


@with_settings(answers_per_account="2")
def test_an_account_has_only_some_answers_at_once(app: Flask, client: FlaskClient, fake: FakeOpenAI) -> None:
    gate = threading.Event()
    fake.waits = {1: lambda: gate.wait(20)}
    before = value(client, 'chatbot_refusals_total{reason="answers"}')
    places = [f"{API}/{client.post(API).get_json()['id']}" for _ in range(3)]
    responses = [say(client, place) for place in places[:2]]
    problem = refusal(say(client, places[2]))
    assert problem["type"] == "urn:chatbot:streams-limit"
    assert value(client, 'chatbot_refusals_total{reason="answers"}') == before + 1
    other = signed_in(app, "other@example.org")
    responses.append(say(other, f"{API}/{other.post(API).get_json()['id']}"))
    # Whoever writes on in the same conversation ends the answer there, and is not refused for it.
    responses.append(say(client, places[1], "Rather this"))
    gate.set()
    assert all(parse_events(response.data)[-1][0] == "done" for response in responses)
    assert say(client, places[2]).data


@with_settings(streams_per_account="2")
def test_an_account_has_only_some_readers_at_once(app: Flask, client: FlaskClient, conversation: str) -> None:
    path = f"{conversation}/messages/{parse_events(say(client, conversation).data)[0][1]['message_id']}/stream"
    readers = [client.get(path) for _ in range(2)]
    assert refusal(client.get(path))["type"] == "urn:chatbot:streams-limit"
    readers[0].close()  # without having read anything
    third = client.get(path)
    assert third.status_code == 200
    assert parse_events(third.data)[-1][0] == "done"
    readers[1].close()
    readers[1].close()
    assert [reader.status_code for reader in (client.get(path), client.get(path))] == [200, 200]
    assert app.extensions["readers"]._open.total() == 2


def test_usage_is_one_row_for_each_account_and_month(app: Flask, client: FlaskClient, conversation: str) -> None:
    for _ in range(3):
        assert say(client, conversation).data
    with app.extensions["database"].session() as session:
        assert session.scalar(select(func.count()).select_from(Usage)) == 1


def test_the_check_reads_indexes_only(postgresql_url: str) -> None:
    """PostgreSQL's plan for the check before each question, with much to look through."""
    settings = make_settings(database_url=postgresql_url, monthly_token_budget="10", instance_token_budget="10")
    create_schema(settings)
    app = create_app(settings)
    database, statements = app.extensions["database"], []
    with database.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO usage SELECT '20' || (10 + mod(n, 17)) || '-01', gen_random_uuid(), 1, 1 "
            "FROM generate_series(1, 20000) AS n"
        )
        connection.exec_driver_sql(
            "INSERT INTO conversations (id, title, created_at, updated_at) "
            "SELECT gen_random_uuid(), '', now(), now() FROM generate_series(1, 2000)"
        )
        connection.exec_driver_sql(
            "INSERT INTO messages (id, conversation_id, role, status, content, created_at, updated_at) "
            "SELECT gen_random_uuid(), id, 'user', 'complete', '', now(), now() "
            "FROM conversations, generate_series(1, 10)"
        )
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")

    event.listen(database.engine, "before_cursor_execute", lambda *given: statements.append(given[2:4]))
    with database.session() as session:
        check_allowance(through(session), uuid.uuid4(), None, settings)
    assert len(statements) == 1
    statement, parameters = statements[0]
    with database.engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
        text = "\n".join(row[0] for row in plan)
    assert "Seq Scan" not in text, text
    close(database)
