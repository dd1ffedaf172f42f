"""Signing in through an OpenID Connect provider, whose fake answers over HTTP."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chatbot import accounts
from chatbot.database import Account
from chatbot.factory import create_app
from chatbot.settings import SettingsError
from fake_openid import CLIENT_ID, CLIENT_SECRET, FakeOpenID
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update
from support import close, create_schema, make_account, make_settings, sign_in
from test_metrics import value

EMAIL = "ada@example.org"


@pytest.fixture
def provider() -> Iterator[FakeOpenID]:
    with FakeOpenID() as provider:
        yield provider


@pytest.fixture
def app(request: pytest.FixtureRequest, provider: FakeOpenID, tmp_path: Path) -> Iterator[Flask]:
    """The application with this provider; whoever it vouches for gets an account, unless the test says otherwise."""
    settings = {
        "openid_issuer": provider.url,
        "openid_client_id": CLIENT_ID,
        "openid_client_secret": CLIENT_SECRET,
        "openid_name": "Example",
        "openid_sign_up": "true",
    } | getattr(request, "param", {})
    app = create_app(make_settings(database_url=f"sqlite:///{tmp_path}/test.db", **settings))
    create_schema(app.extensions["settings"])
    yield app
    close(app.extensions["database"])


def with_settings(**more: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("app", [more], indirect=True, ids=[""])


def enter(client: FlaskClient, provider: FakeOpenID) -> str:
    """Go through the whole sign-in; where it leads to."""
    begun = client.get("/api/v1/openid/sign-in")
    assert begun.status_code == 302
    back = client.get(provider.authorize(begun.headers["Location"]))
    assert back.status_code == 302
    return back.headers["Location"]


def who(client: FlaskClient) -> dict[str, Any] | None:
    account: dict[str, Any] | None = client.get("/api/v1/session").get_json()["account"]
    return account


def test_somebody_new_gets_an_account_and_finds_it_again(app: Flask, provider: FakeOpenID) -> None:
    client = app.test_client()
    assert client.get("/api/v1/session").get_json()["openid"] == {"name": "Example"}
    assert enter(client, provider) == "/"
    account = who(client)
    assert account is not None
    assert (account["email"], account["name"], account["role"]) == (EMAIL, "Ada", "user")
    provider.claims |= {"email": "married@example.org", "email_verified": None}
    again = app.test_client()
    assert enter(again, provider) == "/"
    assert who(again) == account  # by issuer and subject, whatever the address is today
    assert sign_in(app.test_client(), EMAIL, "").status_code == 401  # there is no password


def test_the_cookie_is_new_and_the_session_can_be_revoked(app: Flask, provider: FakeOpenID) -> None:
    client = app.test_client()
    with client.session_transaction() as session:
        session["id"] = "planted"
    enter(client, provider)
    with client.session_transaction() as session:
        assert set(session) == {"_permanent", "token", "device", "csrf_token"}
    client.environ_base["HTTP_X_CSRFTOKEN"] = client.get("/api/v1/session").get_json()["csrf_token"]
    assert client.delete("/api/v1/sessions").status_code == 204
    assert who(client) is None


@pytest.mark.parametrize(
    "forged",
    [
        {"iss": "https://evil.example"},
        {"aud": "another client"},
        {"nonce": "another sign-in"},
        {"nonce": None},
        {"exp": int(time.time()) - 3600},
        {"sub": None},
    ],
)
def test_a_token_that_is_not_for_us(app: Flask, provider: FakeOpenID, forged: dict[str, Any]) -> None:
    provider.forged = forged
    client = app.test_client()
    assert enter(client, provider) == "/?openid_error=failed"
    assert who(client) is None


def test_a_token_that_somebody_else_has_signed(
    app: Flask, provider: FakeOpenID, caplog: pytest.LogCaptureFixture
) -> None:
    provider.wrong_key = True
    client = app.test_client()
    before = value(client, 'chatbot_sign_ins_total{method="openid",result="failed"}')
    assert enter(client, provider) == "/?openid_error=failed"
    assert value(client, 'chatbot_sign_ins_total{method="openid",result="failed"}') == before + 1
    assert [record.__dict__["method"] for record in caplog.records if record.message == "sign_in_failed"] == ["openid"]
    assert CLIENT_SECRET not in caplog.text


def test_the_callback_belongs_to_the_browser_that_began(app: Flask, provider: FakeOpenID) -> None:
    victim, attacker = app.test_client(), app.test_client()
    back = provider.authorize(attacker.get("/api/v1/openid/sign-in").headers["Location"])
    assert victim.get(back).headers["Location"] == "/?openid_error=failed"
    assert who(victim) is None
    assert attacker.get(back).headers["Location"] == "/"
    assert attacker.get(back).headers["Location"] == "/?openid_error=failed"  # a code and a state are good once


@pytest.mark.parametrize("query", ["", "?code=x", "?state=x", "?error=access_denied&state=x", "?code=x&state=y"])
def test_nonsense_at_the_callback(app: Flask, query: str) -> None:
    response = app.test_client().get(f"/api/v1/openid/callback{query}")
    assert (response.status_code, response.headers["Location"]) == (302, "/?openid_error=failed")


@pytest.mark.parametrize(
    "claims", [{"email": None}, {"email_verified": False}, {"email_verified": None}, {"email": "x"}]
)
def test_an_address_that_is_not_certain_makes_no_account(
    app: Flask, provider: FakeOpenID, claims: dict[str, Any]
) -> None:
    provider.claims |= claims
    provider.userinfo = {"sub": "1"}
    assert enter(app.test_client(), provider) == "/?openid_error=no_email"


def test_the_address_may_come_from_the_userinfo_endpoint(app: Flask, provider: FakeOpenID) -> None:
    provider.userinfo = provider.claims | {"sub": "2"}
    provider.claims = {"sub": "1"}
    assert enter(app.test_client(), provider) == "/?openid_error=failed"  # of somebody else
    provider.userinfo["sub"] = "1"
    client = app.test_client()
    assert enter(client, provider) == "/"
    assert (who(client) or {})["email"] == EMAIL


def test_an_account_with_a_password_is_not_taken_over(app: Flask, provider: FakeOpenID) -> None:
    account = make_account(app, EMAIL)
    client = app.test_client()
    assert enter(client, provider) == "/?openid_error=password"
    assert who(client) is None
    with app.extensions["database"].session() as session:
        accounts.set_password(session, account, None)
    assert enter(client, provider) == "/"
    assert (who(client) or {})["id"] == str(account)
    provider.claims["sub"] = "2"  # another person with the same address
    assert enter(app.test_client(), provider) == "/?openid_error=password"


def test_a_disabled_account_stays_outside(app: Flask, provider: FakeOpenID) -> None:
    enter(app.test_client(), provider)
    with app.extensions["database"].session() as session:
        session.execute(update(Account).values(disabled=True))
    assert enter(app.test_client(), provider) == "/?openid_error=disabled"


@with_settings(openid_sign_up="false")
def test_signing_up_is_closed_for_everybody(app: Flask, provider: FakeOpenID) -> None:
    assert enter(app.test_client(), provider) == "/?openid_error=no_account"
    with app.extensions["database"].session() as session:
        assert session.scalars(select(Account)).all() == []
    make_account(app, EMAIL, password=None)
    assert enter(app.test_client(), provider) == "/"


@with_settings(openid_sign_up="false", sign_up="invitation")
def test_an_invitation_in_the_persons_name_does(app: Flask, provider: FakeOpenID) -> None:
    def invite(email: str | None) -> None:
        with app.extensions["database"].session() as session:
            accounts.invite(session, email, 1)

    invite(None)
    invite("other@example.org")
    assert enter(app.test_client(), provider) == "/?openid_error=no_account"
    invite(EMAIL)
    assert enter(app.test_client(), provider) == "/"
    provider.claims |= {"sub": "2"}
    with app.extensions["database"].session() as session:
        session.execute(update(Account).values(email="renamed@example.org"))
    assert enter(app.test_client(), provider) == "/?openid_error=no_account"  # spent


def test_a_provider_that_does_not_answer(tmp_path: Path) -> None:
    more = {"openid_client_id": CLIENT_ID, "openid_client_secret": CLIENT_SECRET}
    settings = make_settings(database_url=f"sqlite:///{tmp_path}/test.db", openid_issuer="http://127.0.0.1:9", **more)
    create_schema(settings)
    app = create_app(settings)  # the start does not wait for it
    response = app.test_client().get("/api/v1/openid/sign-in")
    assert (response.status_code, response.headers["Location"]) == (302, "/?openid_error=unavailable")
    close(app.extensions["database"])


def test_the_settings_belong_together() -> None:
    with pytest.raises(SettingsError, match="given together or not at all"):
        make_settings(openid_issuer="https://id.example.org", openid_client_id="x")


def test_no_provider_is_404(tmp_path: Path) -> None:
    settings = make_settings(database_url=f"sqlite:///{tmp_path}/test.db")
    create_schema(settings)
    app = create_app(settings)
    for path in ("sign-in", "callback"):
        assert app.test_client().get(f"/api/v1/openid/{path}").status_code == 404
    close(app.extensions["database"])
