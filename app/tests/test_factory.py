import logging

import pytest
from flask.testing import FlaskClient


def test_the_proxys_request_identifier_is_used(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    response = client.get(
        "/api/v1/conversations", headers={"X-Request-ID": "0123456789abcdef", "X-Forwarded-For": "192.0.2.7"}
    )
    assert response.headers["X-Request-ID"] == "0123456789abcdef"
    entry = next(record.__dict__ for record in caplog.records if record.message == "request")
    assert (entry["path"], entry["status"], entry["address"]) == ("/api/v1/conversations", 200, "192.0.2.7")


@pytest.mark.parametrize("given", ["short", "x" * 65, 'quote"quote"', "with space"])
def test_a_strange_request_identifier_is_replaced(client: FlaskClient, given: str) -> None:
    assert client.get("/api/v1/health", headers={"X-Request-ID": given}).headers["X-Request-ID"] != given


def test_probes_are_not_logged(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for path in ("/api/v1/health", "/api/v1/ready", "/metrics", "/static/web/assets/index.js"):
        client.get(path).close()
    assert not [record for record in caplog.records if record.message == "request"]


def test_questions_and_answers_stay_out_of_the_log(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    conversation = client.post("/api/v1/conversations").get_json()["id"]
    assert client.post(f"/api/v1/conversations/{conversation}/messages", json={"content": "private words"}).data
    ours = [str(record.__dict__) for record in caplog.records if record.name.startswith("chatbot")]
    assert any("answer ended" in entry for entry in ours)
    assert not any("private words" in entry or "Hello" in entry for entry in ours)


def test_api_answers_stay_out_of_caches(client: FlaskClient) -> None:
    response = client.get("/api/v1/conversations")
    assert (response.headers["Cache-Control"], response.headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
