import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from chatbot.factory import create_app
from fake_openai import FakeOpenAI
from flask import Flask
from flask.testing import FlaskClient
from support import close, create_schema, make_settings, signed_in
from valkey_server import PASSWORD, valkey_server


def make_app(fake: FakeOpenAI, directory: Path, **more: str) -> Flask:
    settings = make_settings(
        fake.url, f"sqlite:///{directory}/test.db", rate_limit="3 per minute", rate_limit_address="5 per minute", **more
    )
    create_schema(settings)
    return create_app(settings)


@pytest.fixture
def app(fake: FakeOpenAI, tmp_path: Path) -> Iterator[Flask]:
    app = make_app(fake, tmp_path)
    yield app
    close(app.extensions["database"])


def statuses(client: FlaskClient, count: int, address: str = "192.0.2.1") -> list[int]:
    headers = {"X-Forwarded-For": address}
    conversation = client.post("/api/v1/conversations").get_json()["id"]
    return [
        client.post(
            f"/api/v1/conversations/{conversation}/messages", json={"content": "x"}, headers=headers, buffered=True
        ).status_code
        for _ in range(count)
    ]


def browser(app: Flask) -> FlaskClient:
    """Of a person of their own."""
    return signed_in(app, f"{uuid.uuid4()}@example.org")


def test_an_account_has_its_limit_and_the_answer_says_until_when(app: Flask) -> None:
    client = browser(app)
    assert statuses(client, 2) == [200, 200]
    client = signed_in(app, client.get("/api/v1/account").get_json()["email"])  # another browser of the same person
    assert statuses(client, 2) == [200, 429]
    refused = client.post(
        "/api/v1/conversations/00000000-0000-4000-8000-000000000000/messages",
        json={},
        headers={"X-Forwarded-For": "192.0.2.1"},
    )
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 61  # rounded up
    assert refused.get_json()["detail"] == "At most 3 per 1 minute; try again later."


def test_other_accounts_do_not_lift_the_limit_of_the_address(app: Flask) -> None:
    assert statuses(browser(app), 3) == [200] * 3
    assert statuses(browser(app), 3) == [200, 200, 429]


def test_addresses_are_told_apart_behind_the_proxy(app: Flask) -> None:
    assert [statuses(browser(app), 3, "192.0.2.1")[-1] for _ in range(2)] == [200, 429]
    assert statuses(browser(app), 1, "192.0.2.2") == [200]
    assert statuses(browser(app), 1, "203.0.113.9, 192.0.2.1") == [429]  # only what nginx appended counts


def test_an_ipv6_client_has_one_network_not_many_addresses(app: Flask) -> None:
    assert statuses(browser(app), 3, "2001:db8::1") == [200] * 3
    assert statuses(browser(app), 3, "2001:db8::2:2") == [200, 200, 429]
    assert statuses(browser(app), 1, "2001:db8:0:1::1") == [200]


def test_reading_is_not_limited(app: Flask) -> None:
    client = browser(app)
    assert {client.get("/api/v1/conversations").status_code for _ in range(20)} == {200}


def test_workers_count_together_in_valkey(fake: FakeOpenAI, tmp_path: Path) -> None:
    with valkey_server() as url:
        apps = [make_app(fake, tmp_path, valkey_url=url, valkey_password=PASSWORD) for _ in range(2)]
        results = [status for app in apps for status in statuses(signed_in(app), 2)]
        assert results == [200, 200, 200, 429]
        for app in apps:
            close(app.extensions["database"])
            app.extensions["valkey"].connection_pool.disconnect()


def test_without_valkey_chat_works_and_is_still_limited(fake: FakeOpenAI, tmp_path: Path) -> None:
    app = make_app(fake, tmp_path, valkey_url="unix:///nonexistent/socket")
    assert statuses(browser(app), 4) == [200, 200, 200, 429]
    close(app.extensions["database"])
