"""Guessing passwords is slowed down, and the slow-down cannot be turned against the account's owner."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chatbot.cache import connect
from chatbot.factory import create_app
from chatbot.guessing import Guard, network, waiting_time
from flask import Flask
from support import EMAIL, PASSWORD, close, create_schema, make_account, make_settings, sign_in, signed_in
from test_metrics import value
from valkey_server import PASSWORD as VALKEY_PASSWORD
from valkey_server import valkey_server

LIMITS = {
    "sign_in_limit": "3 per minute; 5 per hour",
    "sign_in_limit_address": "8 per hour",
    "sign_in_limit_account": "6 per hour",
}
HERE, THERE = "192.0.2.1", "192.0.2.2"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that limits are counted in."""
    time = [1_000_000.0]
    monkeypatch.setattr("limits.storage.memory.time.time", lambda: time[0])
    return time


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    settings = make_settings(database_url=f"sqlite:///{tmp_path}/test.db", **LIMITS)
    create_schema(settings)
    app = create_app(settings)
    make_account(app)
    yield app
    close(app.extensions["database"])


@pytest.fixture
def guard() -> Guard:
    return Guard(make_settings(**LIMITS), None)


def attempts(
    guard: Guard, count: int, email: str = EMAIL, address: str = HERE, device: str | None = None
) -> list[bool]:
    """Whether each attempt may go on."""
    return [guard.sign_in(email, address, device) is None for _ in range(count)]


def test_slow_down_lock_and_its_end(guard: Guard, clock: list[float]) -> None:
    assert attempts(guard, 5) == [True, True, True, False, False]
    clock[0] += 61  # slowed down
    assert attempts(guard, 3) == [True, True, False]
    clock[0] += 61  # locked: five in the hour; asking for more does not make it longer
    assert attempts(guard, 50) == [False] * 50
    wait = guard.sign_in(EMAIL, HERE, None)
    assert wait is not None
    assert 3400 < wait <= 3600
    clock[0] += 3600
    assert attempts(guard, 1) == [True]


def test_the_account_elsewhere_and_others_here_are_free(guard: Guard) -> None:
    assert attempts(guard, 4)[-1] is False
    assert attempts(guard, 1, address=THERE) == [True]
    assert attempts(guard, 1, email="other@example.org") == [True]


def test_an_address_that_tries_many_accounts(guard: Guard) -> None:
    assert [attempts(guard, 1, email=f"{number}@example.org")[0] for number in range(10)] == [True] * 8 + [False] * 2


def test_many_addresses_that_try_one_account_do_not_keep_its_owner_out(guard: Guard) -> None:
    assert [attempts(guard, 1, address=f"192.0.2.{number}")[0] for number in range(8)] == [True] * 6 + [False] * 2
    assert attempts(guard, 1, address="198.51.100.1", device="known") == [True]


def test_one_address_cannot_use_up_what_all_others_have(guard: Guard) -> None:
    assert attempts(guard, 100).count(True) == 3
    assert attempts(guard, 1, address=THERE) == [True]


def test_the_right_password_clears_the_count(guard: Guard) -> None:
    attempts(guard, 2)
    guard.succeeded(EMAIL, HERE, None)
    assert attempts(guard, 3) == [True] * 3


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("unknown", "unknown"),
    ],
)
def test_what_counts_as_one_client(address: str, expected: str) -> None:
    assert network(address) == expected


def test_times_in_words() -> None:
    assert (waiting_time(45), waiting_time(3500)) == ("45 seconds", "59 minutes")


def test_the_answer_says_how_long_to_wait_and_is_counted(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    client = app.test_client()
    before = value(client, 'chatbot_sign_ins_total{method="password",result="limited"}')
    wrong = [sign_in(client, password="wrong").status_code for _ in range(3)]
    refused = sign_in(client)  # the right one
    assert (wrong, refused.status_code) == ([401] * 3, 429)
    assert 1 <= int(refused.headers["Retry-After"]) <= 61
    assert refused.get_json()["type"] == "urn:chatbot:rate-limited"
    assert "try again in" in refused.get_json()["detail"]
    assert value(client, 'chatbot_sign_ins_total{method="password",result="limited"}') == before + 1
    assert [record.__dict__["result"] for record in caplog.records if record.message == "sign_in_failed"] == [
        "failed",
        "failed",
        "failed",
        "limited",
    ]


def test_unknown_addresses_are_limited_alike(app: Flask) -> None:
    client = app.test_client()
    assert [sign_in(client, "nobody@example.org").status_code for _ in range(4)] == [401, 401, 401, 429]


def test_a_browser_that_was_signed_in_gets_in_while_others_attack_from_its_address(app: Flask) -> None:
    client = signed_in(app)
    client.delete("/api/v1/session")
    attacker = app.test_client()
    assert [sign_in(attacker, password="wrong").status_code for _ in range(4)] == [401, 401, 401, 429]
    assert sign_in(attacker).status_code == 429
    assert sign_in(client).status_code == 200
    # That is worth nothing for other people's accounts.
    make_account(app, "victim@example.org")
    client.delete("/api/v1/session")
    assert [sign_in(client, "victim@example.org", "wrong").status_code for _ in range(3)] != [401] * 3


def test_changing_the_password_is_no_way_to_guess_it(app: Flask) -> None:
    client = signed_in(app)
    body = {"current": "wrong", "new": "another good one"}
    statuses = [client.post("/api/v1/account/password", json=body).status_code for _ in range(4)]
    assert statuses == [422, 422, 422, 429]


def test_workers_count_together_in_valkey() -> None:
    with valkey_server() as url:
        settings = make_settings(valkey_url=url, valkey_password=VALKEY_PASSWORD, **LIMITS)
        clients = [connect(settings) for _ in range(2)]
        guards = [Guard(settings, client) for client in clients]
        assert [attempts(guards[number % 2], 1)[0] for number in range(4)] == [True, True, True, False]
        guards[1].succeeded(EMAIL, HERE, None)
        assert attempts(guards[0], 1) == [True]
        for client in clients:
            assert client is not None
            client.connection_pool.disconnect()


def test_without_valkey_each_worker_counts_and_asks_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_settings(valkey_url="unix:///nonexistent/socket", **LIMITS)
    guard = Guard(settings, connect(settings))
    asked = []
    monkeypatch.setattr("chatbot.guessing.log.warning", lambda *arguments: asked.append(arguments))
    assert attempts(guard, 4) == [True, True, True, False]
    assert len(asked) == 1


def test_a_right_password_is_needed_at_last(app: Flask) -> None:
    client = app.test_client()
    sign_in(client, password="wrong")
    assert sign_in(client, EMAIL, PASSWORD).status_code == 200
