"""A question over HTTPS, as a person on the internet asks it."""

import json

import pytest
from conftest import STORY


def test_certificate_is_from_the_acme_authority(chat):
    assert chat.certificate_issuer().startswith("Pebble Intermediate CA")


def test_answer_streams_token_by_token(chat):
    text = "".join(chat.ask(STORY))
    assert len(text) > 100
    first, last = chat.first_token_seconds, chat.total_seconds
    print(f"first token after {first:.2f} s of {last:.2f} s, {len(chat.arrivals)} pieces")
    # Buffered anywhere on the way, all pieces would arrive together at the end.
    assert first < last / 2
    gaps = [later - earlier for earlier, later in zip(chat.arrivals, chat.arrivals[1:], strict=False)]
    assert max(gaps) < last / 2
    assert sum(gap > 0.0005 for gap in gaps) > len(gaps) / 4


def test_lost_connection_resumes_where_it_broke_off(chat):
    """Three times in the middle of one answer, then from its beginning, then from the end."""
    text = ""
    answer = chat.ask(STORY)
    for _ in range(3):
        text += next(answer) + next(answer)
        answer.close()
        answer = chat.resume()
    text += "".join(answer)
    kept = chat.kept()
    assert (text, chat.usage["status"]) == (kept["content"], "complete")
    assert "".join(chat.resume(at="0")) == text
    assert "".join(chat.resume()) == ""


def test_answer_is_stopped_by_another_request_and_continued(chat):
    answer = chat.ask(STORY)
    text = next(answer)
    status, said = chat.call("POST", f"{chat.message}/stop")
    assert (status, said["status"]) == (200, "stopped")
    text += "".join(answer)
    assert (text, chat.usage["status"]) == (chat.kept()["content"], "stopped")
    text += "".join(chat.go_on())
    assert text == chat.kept()["content"]


def test_conversation_is_kept(chat):
    status, conversation = chat.call("POST", "/api/v1/conversations", {})
    assert status == 201
    status, found = chat.call("GET", f"/api/v1/conversations/{conversation['id']}")
    assert (status, found["messages"]) == (200, [])


def test_page_is_served(chat):
    status, page = chat.call("GET", "/")
    assert status == 200
    assert "<html" in page


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        ("{not json", "application/json", 400),
        ("[]", "application/json", 422),
        (json.dumps({"content": ""}), "application/json", 422),
        (json.dumps({"content": 7}), "application/json", 422),
        (json.dumps({"content": "x" * 40_000}), "application/json", 422),
        (json.dumps({"content": "hello"}), "text/plain", 415),
        (json.dumps({"content": "x" * 3_000_000}), "application/json", 413),
        ("x" * 60_000_000, "application/json", 413),
    ],
    ids=["malformed", "not-an-object", "empty", "wrong-type", "too-long", "wrong-kind", "too-large", "huge"],
)
def test_bad_input_gets_a_clear_problem(chat, body, kind, expected):
    _, conversation = chat.call("POST", "/api/v1/conversations", {})
    path = f"/api/v1/conversations/{conversation['id']}/messages"
    status, problem = chat.call("POST", path, body, {"Content-Type": kind})
    assert status == expected, problem
    assert problem["status"] == expected
    assert problem["title"]
    _, found = chat.call("GET", f"/api/v1/conversations/{conversation['id']}")
    assert found["messages"] == []


def test_unreachable_model_gets_a_clear_problem(host, chat):
    host.run_expect([0], "systemctl stop llm")
    try:
        _, conversation = chat.call("POST", "/api/v1/conversations", {})
        status, problem = chat.call(
            "POST", f"/api/v1/conversations/{conversation['id']}/messages", {"content": "Is anybody there?"}
        )
    finally:
        host.run_expect([0], "systemctl start llm")
    assert status in {502, 503, 504}
    assert "model" in problem["detail"].lower()
