import math
from collections.abc import Iterator

import pytest
from chatbot.cache import connect
from chatbot.sessions import ActiveSessions
from flask import Flask
from flask.testing import FlaskClient
from support import make_settings
from valkey import Valkey
from valkey_server import PASSWORD, valkey_server


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    with valkey_server() as url:
        client = connect(make_settings(valkey_url=url, valkey_password=PASSWORD))
        assert client is not None
        yield client
        client.connection_pool.disconnect()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [1000.0]
    monkeypatch.setattr("chatbot.sessions.time.time", lambda: time[0])
    monkeypatch.setattr("chatbot.sessions.time.monotonic", lambda: time[0])
    return time


def test_the_cookie_cannot_be_read_by_scripts(app: Flask) -> None:
    cookie = app.test_client().get("/api/v1/session").headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Secure" not in cookie


def test_over_https_the_cookie_stays_there(client: FlaskClient) -> None:
    assert "Secure" in client.get("/api/v1/session", headers={"X-Forwarded-Proto": "https"}).headers["Set-Cookie"]


def test_only_the_session_itself_sets_cookies(client: FlaskClient) -> None:
    for path in ("/", "/api/v1/conversations", "/api/v1/account"):
        assert "Set-Cookie" not in client.get(path).headers
    renewed = client.get("/api/v1/session").headers["Set-Cookie"]
    assert "Expires=" in renewed


def test_a_forged_cookie_is_no_session(client: FlaskClient) -> None:
    client.set_cookie("chatbot_session", "eyJpZCI6ImFkbWluIn0.aaaa.bbbb")
    assert client.get("/api/v1/conversations").status_code == 401


def test_active_sessions_of_one_process(clock: list[float]) -> None:
    active = ActiveSessions(None)
    for identifier in ("a", "b", "a"):
        active.touch(identifier)
    assert active.count() == 2
    clock[0] += 200
    active.touch("a")
    clock[0] += 200
    assert active.count() == 1


def test_active_sessions_of_several_processes(valkey: Valkey, clock: list[float]) -> None:
    first, second = ActiveSessions(valkey), ActiveSessions(valkey)
    first.touch("a")
    second.touch("a")
    second.touch("b")
    assert first.count() == second.count() == 2
    clock[0] += 301
    assert first.count() == 0


def test_without_an_answer_the_number_is_unknown_and_nothing_fails() -> None:
    active = ActiveSessions(connect(make_settings(valkey_url="unix:///nonexistent/socket")))
    active.touch("a")
    active.touch("b")
    assert math.isnan(active.count())


def test_memory_stays_bounded(clock: list[float]) -> None:
    active = ActiveSessions(None)
    for number in range(10_000):
        active.touch(str(number))
    clock[0] += 400
    active.touch("one more")
    assert len(active._seen) == 1


def test_every_request_of_a_session_counts(app: Flask, client: FlaskClient) -> None:
    client.get("/api/v1/conversations")
    client.get("/api/v1/account")
    app.test_client().get("/api/v1/conversations")
    assert "chatbot_active_sessions 1.0" in client.get("/metrics").text
