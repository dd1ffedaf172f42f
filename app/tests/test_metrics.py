import re
import threading

import pytest
from fake_openai import FakeOpenAI
from flask.testing import FlaskClient
from support import eventually

MESSAGES = "/api/v1/conversations/<uuid:conversation_id>/messages"


def value(client: FlaskClient, series: str) -> float:
    """The value of one series, 0 when it does not exist yet."""
    found = re.search(rf"^{re.escape(series)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0


def test_a_chat_is_counted(client: FlaskClient) -> None:
    series = {
        f'chatbot_requests_total{{method="POST",status="200",url_rule="{MESSAGES}"}}': 1,
        f'chatbot_request_duration_seconds_count{{method="POST",status="200",url_rule="{MESSAGES}"}}': 1,
        'chatbot_messages_total{model="test-model",role="user"}': 1,
        'chatbot_messages_total{model="test-model",role="assistant"}': 1,
        'chatbot_tokens_total{model="test-model",type="prompt"}': 7,
        'chatbot_tokens_total{model="test-model",type="completion"}': 3,
        'chatbot_answers_total{model="test-model",status="complete"}': 1,
        'chatbot_time_to_first_token_seconds_count{model="test-model"}': 1,
        'chatbot_stream_duration_seconds_count{model="test-model"}': 1,
        'chatbot_tokens_per_second_count{model="test-model"}': 1,
        "chatbot_waiting_generations": 0,
    }
    streams = value(client, "chatbot_open_streams")
    before = {name: value(client, name) for name in series}
    conversation = client.post("/api/v1/conversations").get_json()["id"]
    response = client.post(f"/api/v1/conversations/{conversation}/messages", json={"content": "x"})
    assert value(client, "chatbot_open_streams") == streams + 1
    assert response.data
    assert value(client, "chatbot_open_streams") == streams
    assert {name: value(client, name) - before[name] for name in series} == series


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, "credentials"), (404, "unknown_model"), (429, "rate_limit"), (400, "rejected"), (500, "failed")],
)
def test_the_models_errors_are_counted_by_kind(client: FlaskClient, fake: FakeOpenAI, status: int, kind: str) -> None:
    series = f'chatbot_model_errors_total{{kind="{kind}",model="test-model"}}'
    before = value(client, series)
    fake.status = status
    conversation = client.post("/api/v1/conversations").get_json()["id"]
    client.post(f"/api/v1/conversations/{conversation}/messages", json={"content": "x"})
    assert value(client, series) - before == 1


def test_answers_wait_until_their_first_piece(client: FlaskClient, fake: FakeOpenAI) -> None:
    gates = [threading.Event(), threading.Event()]
    fake.waits = {0: lambda: gates[0].wait(10), 1: lambda: gates[1].wait(10)}
    before = value(client, "chatbot_waiting_generations")
    conversation = client.post("/api/v1/conversations").get_json()["id"]
    response = client.post(f"/api/v1/conversations/{conversation}/messages", json={"content": "x"})
    assert value(client, "chatbot_waiting_generations") == before + 1
    gates[0].set()
    eventually(lambda: value(client, "chatbot_waiting_generations") == before)
    gates[1].set()
    assert response.data
    assert value(client, "chatbot_waiting_generations") == before


def test_strangers_cannot_make_series(client: FlaskClient) -> None:
    for number in range(20):
        client.get(f"/nothing/{number}")
        client.open("/", method=f"VERB{number}")
    text = client.get("/metrics").text
    assert "/nothing/" not in text
    assert "VERB" not in text
    assert 'url_rule="unmatched"' in text
    assert 'method="other"' in text


def test_the_release_is_a_series(client: FlaskClient) -> None:
    assert value(client, 'chatbot_build_info{colour="",release="development"}') == 1


def test_nobody_behind_the_proxy_reads_the_metrics(client: FlaskClient) -> None:
    assert client.get("/metrics", headers={"X-Forwarded-For": "192.0.2.1"}).status_code == 404
