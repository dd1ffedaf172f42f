"""Signing in, out and up; sessions that can be revoked, also while something else happens."""

import json
import logging
import re
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError
from chatbot import accounts, passwords
from chatbot.database import Account, Conversation, SignIn, now
from chatbot.factory import create_app
from chatbot.logs import JsonFormatter
from flask import Flask, g
from flask.testing import FlaskClient
from sqlalchemy import select, update
from support import (
    APP,
    EMAIL,
    PASSWORD,
    close,
    create_schema,
    make_account,
    make_settings,
    sign_in,
    signed_in,
    use_csrf_token,
)

WRONG = "not the password"


@pytest.fixture
def app(request: pytest.FixtureRequest, database_url: str) -> Iterator[Flask]:
    """The application on both kinds of database; settings by `pytest.mark.parametrize("app", [{…}], indirect=True)`."""
    app = make_app(database_url, **getattr(request, "param", {}))
    yield app
    close(app.extensions["database"])


def make_app(database_url: str, **more: str) -> Flask:
    settings = make_settings(database_url=database_url, **more)
    create_schema(settings)
    return create_app(settings)


def with_settings(**more: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("app", [more], indirect=True, ids=[""])


def sign_up(client: FlaskClient, email: str = EMAIL, password: str = PASSWORD, **more: object) -> Any:
    use_csrf_token(client, client.get("/api/v1/session"))
    return client.post("/api/v1/account", json={"email": email, "password": password, **more})


def test_the_first_request_says_what_a_client_must_know(app: Flask) -> None:
    found = app.test_client().get("/api/v1/session").get_json()
    assert found.pop("csrf_token")
    assert found == {
        "account": None,
        "sign_up": "closed",
        "openid": None,
        "release": "development",
        "demo_model": False,
        "limits": {
            "max_message_chars": 32000,
            "max_upload_bytes": 10 * 1024 * 1024,
            "max_attachments": 20,
            "upload_types": [],
            "password_min_length": 12,
        },
    }


def test_signing_in_and_out(app: Flask) -> None:
    make_account(app)
    client = app.test_client()
    response = sign_in(client, " User@Example.ORG ")
    account = response.get_json()["account"]
    assert (account["email"], account["role"], account["name"]) == (EMAIL, "user", "")
    assert client.get("/api/v1/session").get_json()["account"] == account
    assert client.get("/api/v1/conversations").status_code == 200
    assert client.delete("/api/v1/session").status_code == 204
    assert client.get("/api/v1/conversations").status_code == 401
    assert client.get("/api/v1/session").get_json()["account"] is None
    with app.extensions["database"].session() as session:
        assert session.scalars(select(SignIn)).all() == []


def test_an_unknown_address_and_a_wrong_password_cannot_be_told_apart(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same text, and the same work: one hash is computed, of the same cost."""
    make_account(app)
    make_account(app, "through-openid@example.org", password=None)
    costs: list[str] = []

    class Hasher:
        def verify(self, known: str, _password: str) -> bool:
            costs.append(known.rpartition("$")[0].rpartition("$")[0])  # kind, version, memory, time, parallelism
            raise VerifyMismatchError

    passwords._hash_of_nobody()
    monkeypatch.setattr("chatbot.passwords.HASHER", Hasher())
    answers = []
    for email in (EMAIL, "nobody@example.org", "through-openid@example.org"):
        response = sign_in(app.test_client(), email, WRONG)
        problem = response.get_json()
        del problem["request_id"]
        answers.append((response.status_code, problem))
    assert answers[0][0] == 401
    assert answers[0] == answers[1] == answers[2]
    assert len(costs) == 3
    assert len(set(costs)) == 1


def test_only_hashes_of_secrets_are_kept(app: Flask) -> None:
    client = signed_in(app)
    secret = client.post("/api/v1/tokens", json={"name": "x", "scopes": ["read"]}).get_json()["token"]
    with client.session_transaction() as session:
        cookie = session["token"]
    with app.extensions["database"].engine.connect() as connection:
        stored = "".join(str(connection.exec_driver_sql(f"SELECT * FROM {table}").all()) for table in  # noqa: S608
                         ("accounts", "sign_ins", "api_tokens"))  # fmt: skip
    for hidden in (secret, cookie, PASSWORD):
        assert hidden not in stored
    assert "$argon2id$" in stored


def test_a_disabled_account_learns_it_only_with_the_right_password(app: Flask) -> None:
    account = make_account(app)
    with app.extensions["database"].session() as session:
        session.execute(update(Account).where(Account.id == account).values(disabled=True))
    assert sign_in(app.test_client(), password=WRONG).status_code == 401
    response = sign_in(app.test_client())
    assert (response.status_code, "disabled" in response.get_json()["detail"]) == (403, True)


def test_a_failed_sign_in_is_the_line_that_the_readme_promises(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    make_account(app)
    sign_in(app.test_client(), password=WRONG, **{"X-Forwarded-For": "203.0.113.7", "X-Request-ID": "0123456789abcdef"})
    (record,) = [record for record in caplog.records if record.message == "sign_in_failed"]
    with app.test_request_context(headers={"X-Request-ID": "0123456789abcdef"}):
        g.request_id = "0123456789abcdef"
        line = JsonFormatter().format(record)
    (promised,) = re.findall(r'^\{"time".*"sign_in_failed".*\}$', (APP / "README.md").read_text(), re.MULTILINE)
    assert list(json.loads(line)) == list(json.loads(promised))
    written = json.loads(line) | {"time": ""}
    assert written == json.loads(promised) | {"time": ""}
    assert WRONG not in caplog.text
    (pattern,) = re.findall(r"^`(\^.*<HOST>.*)` finds it", (APP / "README.md").read_text(), re.MULTILINE)
    found = re.match(pattern.replace("<HOST>", "(?P<host>[0-9a-f.:]+)"), line)
    assert found is not None
    assert found["host"] == "203.0.113.7"


def test_secrets_stay_out_of_the_log(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = signed_in(app)
    sign_in(app.test_client(), password=WRONG)
    app.test_client().post("/api/v1/session", json={"email": EMAIL, "password": [PASSWORD]})
    secret = client.post("/api/v1/tokens", json={"name": "x", "scopes": ["read"]}).get_json()["token"]
    with client.session_transaction() as session:
        cookie = session["token"]
    ours = "".join(str(record.__dict__) for record in caplog.records)
    for hidden in (PASSWORD, WRONG, secret, cookie):
        assert hidden not in ours


def test_a_wrong_body_does_not_come_back(app: Flask) -> None:
    response = app.test_client().post("/api/v1/session", json={"email": "no address", "password": 12345678})
    assert response.status_code == 422
    assert {error["field"] for error in response.get_json()["errors"]} == {"email", "password"}
    assert "12345678" not in response.text


def test_the_list_of_sessions_and_revoking_one(app: Flask) -> None:
    first, second = signed_in(app), signed_in(app)
    stranger = signed_in(app, "stranger@example.org")
    sessions = {session["current"]: session for session in first.get("/api/v1/sessions").get_json()["sessions"]}
    assert sessions[True]["address"] == "127.0.0.1"
    assert "Werkzeug" in sessions[True]["user_agent"]
    path = f"/api/v1/sessions/{sessions[False]['id']}"
    assert stranger.delete(path).status_code == 404
    assert first.delete(path).status_code == 204
    assert second.get("/api/v1/account").status_code == 401
    assert first.get("/api/v1/account").status_code == 200
    assert first.delete(path).status_code == 404
    assert first.delete(f"/api/v1/sessions/{sessions[True]['id']}").status_code == 204
    assert first.get("/api/v1/account").status_code == 401


def test_signing_out_everywhere(app: Flask) -> None:
    clients = [signed_in(app) for _ in range(3)]
    other = signed_in(app, "other@example.org")
    assert clients[0].delete("/api/v1/sessions").status_code == 204
    assert [client.get("/api/v1/account").status_code for client in clients] == [401] * 3
    assert other.get("/api/v1/account").status_code == 200


def test_a_stolen_cookie_is_worth_nothing_after_signing_out(app: Flask) -> None:
    client, thief = signed_in(app), app.test_client()
    cookie = client.get_cookie("chatbot_session")
    assert cookie is not None
    thief.set_cookie("chatbot_session", cookie.value)
    assert thief.get("/api/v1/account").status_code == 200
    client.delete("/api/v1/session")
    assert thief.get("/api/v1/account").status_code == 401


@with_settings(session_days="2")
def test_a_session_ends_when_nobody_uses_it(app: Flask) -> None:
    client = signed_in(app)

    def last_seen(ago: timedelta) -> None:
        with app.extensions["database"].session() as session:
            session.execute(update(SignIn).values(last_seen_at=now() - ago))

    last_seen(timedelta(days=1, hours=23))
    assert client.get("/api/v1/account").status_code == 200
    with app.extensions["database"].session() as session:
        assert now() - session.scalars(select(SignIn.last_seen_at)).one() < timedelta(seconds=30)  # renewed
    last_seen(timedelta(days=2, minutes=1))
    assert client.get("/api/v1/account").status_code == 401
    signed_in(app)
    with app.extensions["database"].session() as session:
        assert len(session.scalars(select(SignIn)).all()) == 1  # the old one was swept away


def test_a_new_password_beats_a_sign_in_that_is_under_way(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has sent the old password in time, but is let in only after it was changed, stays outside."""
    owner = signed_in(app)
    verify, verified, changed = passwords.verify_password, threading.Event(), threading.Event()

    def slow(known: str | None, password: str) -> bool:
        result = verify(known, password)
        verified.set()
        assert changed.wait(10)
        return result

    monkeypatch.setattr("chatbot.signin.verify_password", slow)
    thief, answers = app.test_client(), []
    thread = threading.Thread(target=lambda: answers.append(sign_in(thief).status_code))
    thread.start()
    assert verified.wait(10)
    monkeypatch.setattr("chatbot.signin.verify_password", verify)
    body = {"current": PASSWORD, "new": "another good one"}
    assert owner.post("/api/v1/account/password", json=body).status_code == 204
    changed.set()
    thread.join(10)
    assert answers == [401]
    assert thief.get("/api/v1/account").status_code == 401
    assert owner.get("/api/v1/account").status_code == 200


def test_revoking_among_parallel_requests(app: Flask) -> None:
    """As soon as the answer to the revocation is there no request gets through, whatever was going on meanwhile."""
    clients = [signed_in(app) for _ in range(4)]
    revoked = threading.Event()
    late: list[int] = []

    def use(client: FlaskClient) -> None:
        for _ in range(40):
            after = revoked.is_set()
            status = client.get("/api/v1/account").status_code
            if after:
                late.append(status)
                return

    threads = [threading.Thread(target=use, args=(client,)) for client in clients[1:]]
    for thread in threads:
        thread.start()
    assert clients[0].delete("/api/v1/sessions").status_code == 204
    revoked.set()
    for thread in threads:
        thread.join(30)
    assert late
    assert set(late) == {401}


def test_a_password_with_other_parameters_is_hashed_anew(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    account = make_account(app)
    hasher = PasswordHasher(time_cost=2, memory_cost=16, parallelism=1)
    monkeypatch.setattr("chatbot.passwords.HASHER", hasher)
    assert sign_in(app.test_client()).status_code == 200
    with app.extensions["database"].session() as session:
        known = session.scalars(select(Account.password_hash).where(Account.id == account)).one()
    assert known is not None
    assert not hasher.check_needs_rehash(known)
    assert sign_in(app.test_client()).status_code == 200


def test_conversations_from_before_accounts_follow_their_browser(app: Flask) -> None:
    make_account(app)
    with app.extensions["database"].session() as session:
        session.add_all([Conversation(owner="a" * 32), Conversation(owner="b" * 32), Conversation(owner=None)])
    client = app.test_client()
    with client.session_transaction() as cookie:
        cookie["id"] = "a" * 32
    assert sign_in(client).status_code == 200
    (found,) = client.get("/api/v1/conversations").get_json()["conversations"]
    assert client.get(f"/api/v1/conversations/{found['id']}").status_code == 200
    with app.extensions["database"].session() as session:
        assert len(session.scalars(select(Conversation).where(Conversation.account_id.is_(None))).all()) == 2


def test_signing_up_is_closed_by_default(app: Flask) -> None:
    assert sign_up(app.test_client()).status_code == 403


@with_settings(sign_up="open")
def test_signing_up_where_that_is_open(app: Flask) -> None:
    client = app.test_client()
    response = sign_up(client, name=" Ada ")
    assert response.status_code == 201
    assert (response.get_json()["account"]["name"], response.get_json()["account"]["role"]) == ("Ada", "user")
    assert client.get("/api/v1/account").status_code == 200
    assert sign_up(app.test_client(), EMAIL.upper()).status_code == 409
    assert sign_in(app.test_client()).status_code == 200


@with_settings(sign_up="open")
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"password": "short"}, "password"),
        ({"password": "somebody@example.org", "email": "somebody@example.org"}, "password"),
        ({"password": "x" * 1025}, "password"),
        ({"email": "nobody"}, "email"),
        ({"email": "a b@example.org"}, "email"),
        ({"email": "x@" + "y" * 260}, "email"),
        ({"role": "admin"}, "role"),
    ],
)
def test_wrong_accounts(app: Flask, body: dict[str, str], field: str) -> None:
    response = sign_up(app.test_client(), **body)
    assert response.status_code == 422
    assert [error["field"] for error in response.get_json()["errors"]] == [field]


@with_settings(sign_up="open", sign_up_limit_address="3 per hour")
def test_an_address_makes_only_some_accounts(app: Flask) -> None:
    client = app.test_client()
    assert [sign_up(client, f"{number}@example.org").status_code for number in range(4)] == [201, 201, 201, 429]


@with_settings(sign_up="invitation")
def test_an_invitation_is_good_for_one_account(app: Flask) -> None:
    admin = signed_in(app, "admin@example.org", "admin")
    invitation = admin.post("/api/v1/admin/invitations").get_json()
    assert invitation["url"] == f"/?invitation={invitation['code']}"
    assert sign_up(app.test_client()).status_code == 403
    assert sign_up(app.test_client(), invitation="guessed").status_code == 403
    assert sign_up(app.test_client(), invitation=invitation["code"]).status_code == 201
    assert sign_up(app.test_client(), "second@example.org", invitation=invitation["code"]).status_code == 403


@with_settings(sign_up="invitation")
def test_an_address_that_is_taken_does_not_spend_the_invitation(app: Flask) -> None:
    make_account(app)
    code = signed_in(app, "admin@example.org", "admin").post("/api/v1/admin/invitations").get_json()["code"]
    assert sign_up(app.test_client(), invitation=code).status_code == 409
    assert sign_up(app.test_client(), "second@example.org", invitation=code).status_code == 201


@with_settings(sign_up="invitation")
def test_invitations_for_somebody_else_expired_and_taken_back(app: Flask) -> None:
    admin = signed_in(app, "admin@example.org", "admin")
    personal = admin.post("/api/v1/admin/invitations", json={"email": "Friend@example.org"}).get_json()
    assert sign_up(app.test_client(), invitation=personal["code"]).status_code == 403
    assert sign_up(app.test_client(), "friend@example.org", invitation=personal["code"]).status_code == 201
    with app.extensions["database"].session() as session:
        old, code = accounts.invite(session, None, 1)
        old.expires_at = now() - timedelta(minutes=1)
    assert sign_up(app.test_client(), invitation=code).status_code == 403
    taken_back = admin.post("/api/v1/admin/invitations").get_json()
    assert admin.delete(f"/api/v1/admin/invitations/{taken_back['id']}").status_code == 204
    assert sign_up(app.test_client(), invitation=taken_back["code"]).status_code == 403


@with_settings(sign_up="invitation", sign_up_limit_address="100 per hour")
def test_two_people_in_the_same_moment_cannot_share_an_invitation(app: Flask) -> None:
    with app.extensions["database"].session() as session:
        _, code = accounts.invite(session, None, 1)
    statuses: list[int] = []
    clients = [app.test_client() for _ in range(6)]

    def enter(number: int) -> None:
        statuses.append(sign_up(clients[number], f"{number}@example.org", invitation=code).status_code)

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(statuses) == [201, 403, 403, 403, 403, 403]
