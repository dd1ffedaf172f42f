import threading
import time

import pytest
from chatbot.factory import create_app
from chatbot.health import _check
from flask import Flask
from flask.testing import FlaskClient
from support import close, create_schema, make_settings
from valkey_server import PASSWORD, valkey_server


def ready(app: Flask) -> tuple[int, dict[str, object]]:
    response = app.test_client().get("/api/v1/ready")
    close(app.extensions["database"])
    return response.status_code, response.get_json()


def test_alive(client: FlaskClient) -> None:
    response = client.get("/api/v1/health")
    assert response.get_json() == {"status": "alive", "release": "development"}
    assert response.headers["Cache-Control"] == "no-store"


def test_ready_names_the_release(database_url: str) -> None:
    with valkey_server() as url:
        settings = make_settings(
            database_url=database_url, valkey_url=url, valkey_password=PASSWORD, release="2026-11-22.1", colour="green"
        )
        create_schema(settings)
        app = create_app(settings)
        assert ready(app) == (
            200,
            {
                "status": "ready",
                "release": "2026-11-22.1",
                "colour": "green",
                "checks": {"database": "ok", "valkey": "ok"},
            },
        )
        app.extensions["valkey"].connection_pool.disconnect()


def test_not_ready_without_valkey(tmp_path: object) -> None:
    settings = make_settings(database_url=f"sqlite:///{tmp_path}/test.db", valkey_url="unix:///nonexistent/socket")
    create_schema(settings)
    status, body = ready(create_app(settings))
    assert (status, body["status"], body["checks"]) == (
        503,
        "not ready",
        {"database": "ok", "valkey": "ConnectionError"},
    )


def test_not_ready_without_database() -> None:
    status, body = ready(create_app(make_settings(database_url="postgresql://chatbot:hunter2@/x?host=/nonexistent")))
    assert (status, body["checks"]) == (503, {"database": "OperationalError", "valkey": "not configured"})
    assert "hunter2" not in str(body)


def test_not_ready_on_a_stale_schema(database_url: str) -> None:
    status, body = ready(create_app(make_settings(database_url=database_url)))
    assert status == 503
    assert "run python -m chatbot migrate" in str(body["checks"])


def test_a_dependency_that_hangs_does_not_hang_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatbot.health.CHECK_TIMEOUT", 0.1)
    gate = threading.Event()
    began = time.monotonic()
    assert _check(lambda: gate.wait(10)) == "no answer within 0.1 s"
    assert time.monotonic() - began < 5
    gate.set()
