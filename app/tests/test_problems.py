from typing import NoReturn

import pytest
from chatbot.problems import Problem
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.exc import OperationalError
from support import signed_in


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    def fail(kind: str) -> NoReturn:
        if kind == "database":
            raise OperationalError("SELECT", {}, Exception("private words"))
        if kind == "problem":
            raise Problem(418, "Teapot", "It is short and stout.", retry_after=3, handle="left")
        raise RuntimeError("private words")

    app.add_url_rule("/api/v1/fail/<kind>", view_func=fail)
    return signed_in(app)


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/nothing", 404, "nothing at /nothing"),
        ("GET", "/api/v1/nothing", 404, "nothing at /api/v1/nothing"),
        ("PUT", "/api/v1/conversations", 405, "does not answer PUT"),
        ("GET", "/api/v1/fail/unexpected", 500, "identifier leads to the log"),
        ("GET", "/api/v1/fail/database", 503, "database does not answer"),
        ("GET", "/api/v1/fail/problem", 418, "short and stout"),
    ],
)
def test_every_error_is_a_problem_document(
    client: FlaskClient, method: str, path: str, status: int, words: str
) -> None:
    response = client.open(path, method=method)
    problem = response.get_json()
    assert (response.status_code, response.mimetype) == (status, "application/problem+json")
    assert {"type", "title", "status", "detail", "request_id"} <= set(problem)
    assert words in problem["detail"]
    assert "private" not in response.text


def test_further_members_and_headers(client: FlaskClient) -> None:
    response = client.get("/api/v1/fail/problem")
    assert response.get_json()["handle"] == "left"
    assert response.headers["Retry-After"] == "3"
    assert "POST" in client.put("/api/v1/conversations").headers["Allow"]


def test_a_redirect_is_no_error(app: Flask) -> None:
    app.add_url_rule("/folder/", view_func=lambda: "here", endpoint="folder")
    assert app.test_client().get("/folder").status_code == 308


def test_a_database_error_does_not_quote_rows(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    client.get("/api/v1/fail/database")
    assert "private" not in caplog.text
