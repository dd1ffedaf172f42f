"""Who gets in: nothing is open by accident, cookies need a CSRF token, tokens have scopes, other sites stay out."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from chatbot.database import Account, ApiToken, now
from chatbot.factory import create_app
from chatbot.identity import Access
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update
from support import (
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
from werkzeug.test import TestResponse

FRONT = "https://chat.example.org"
ID = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Flask]:
    """The application with a front end elsewhere."""
    settings = make_settings(
        database_url=f"sqlite:///{tmp_path}/front.db", cors_origins=f"{FRONT} http://localhost:5173"
    )
    create_schema(settings)
    app = create_app(settings)
    yield app
    close(app.extensions["database"])


def program(client: FlaskClient, *scopes: str) -> FlaskClient:
    """A program with a token of the client's account."""
    response = client.post("/api/v1/tokens", json={"name": "program", "scopes": scopes})
    assert response.status_code == 201
    return bearer(client.application, response.get_json()["token"])


def bearer(app: Flask, token: str) -> FlaskClient:
    client = app.test_client(use_cookies=False)
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {token}"
    return client


def api_requests(app: Flask) -> list[tuple[str, str, Access | None]]:
    """Every request that the API knows, and what is said of who may make it."""
    found = []
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith("/api/"):
            path = rule.rule
            for name in rule.arguments:
                path = path.replace(f"<uuid:{name}>", ID)
            access = getattr(app.view_functions[rule.endpoint], "access", None)
            found += [(method, path, access) for method in (rule.methods or set()) - {"OPTIONS", "HEAD"}]
    return found


def test_everything_needs_an_account_but_what_is_listed_here(app: Flask) -> None:
    public = {(method, path) for method, path, access in api_requests(app) if access is Access.ANYBODY}
    assert public == {
        ("GET", "/api/v1/health"),
        ("GET", "/api/v1/ready"),
        ("GET", "/api/v1/openapi.json"),
        ("GET", "/api/v1/session"),
        ("POST", "/api/v1/session"),
        ("DELETE", "/api/v1/session"),
        ("POST", "/api/v1/account"),
    }
    client = app.test_client()
    for method, path, _ in api_requests(app):
        if (method, path) not in public:
            response = client.open(path, method=method)
            assert (response.status_code, response.get_json()["type"]) == (401, "urn:chatbot:sign-in-required"), path
            assert response.headers["WWW-Authenticate"] == "Bearer"


def test_a_cookie_needs_the_csrf_token_for_everything_that_changes_something(app: Flask) -> None:
    client = signed_in(app)
    token = client.environ_base.pop("HTTP_X_CSRFTOKEN")
    tried = 0
    for method, path, access in api_requests(app):
        if method != "GET" and access is not Access.ADMIN:
            for headers in ({}, {"X-CSRFToken": "forged"}):
                response = client.open(path, method=method, json={}, headers=headers)
                assert (response.status_code, response.get_json()["type"]) == (403, "urn:chatbot:csrf"), (method, path)
            tried += 1
    assert tried > 12
    assert client.post("/api/v1/conversations", headers={"X-CSRFToken": token}).status_code == 201


def test_the_csrf_token_belongs_to_its_cookie_and_changes_with_the_sign_in(app: Flask) -> None:
    make_account(app)
    client = app.test_client()
    before = client.get("/api/v1/session").get_json()["csrf_token"]
    sign_in(client)
    stranger = signed_in(app, "stranger@example.org").environ_base["HTTP_X_CSRFTOKEN"]
    for token in (before, stranger):
        assert client.post("/api/v1/conversations", headers={"X-CSRFToken": token}).status_code == 403
    use_csrf_token(client, client.get("/api/v1/session"))
    assert client.post("/api/v1/conversations").status_code == 201


def test_signing_in_without_any_cookie_needs_no_csrf_token_but_json(app: Flask) -> None:
    make_account(app)
    body = {"email": EMAIL, "password": PASSWORD}
    assert app.test_client().post("/api/v1/session", data=body).status_code == 415  # what a foreign form can send
    assert app.test_client().post("/api/v1/session", json=body).status_code == 200


def test_what_a_token_may_do(app: Flask) -> None:
    client = signed_in(app)
    conversation = client.post("/api/v1/conversations").get_json()["id"]
    path = f"/api/v1/conversations/{conversation}"
    reader, writer = program(client, "read"), program(client, "chat")
    assert reader.get(path).status_code == writer.get(path).status_code == 200
    refused = reader.post("/api/v1/conversations")
    assert (refused.status_code, refused.get_json()["detail"]) == (403, "This API token lacks the scope chat.")
    assert reader.delete(path).status_code == 403
    assert writer.post("/api/v1/conversations").status_code == 201
    assert writer.delete(path).status_code == 204
    assert reader.get("/api/v1/account").get_json()["email"] == EMAIL
    assert reader.get("/api/v1/account/usage").status_code == 200


def test_no_token_manages_credentials(app: Flask) -> None:
    token = program(signed_in(app, role="admin"), "read", "chat", "admin")
    tried = 0
    for method, path, access in api_requests(app):
        if access is Access.IN_PERSON:
            assert token.open(path, method=method, json={}).status_code == 403, (method, path)
            tried += 1
    assert tried == 9


def test_administration_needs_the_role_and_with_a_token_the_scope(app: Flask) -> None:
    admin, user = signed_in(app, "admin@example.org", "admin"), signed_in(app)
    allowed = program(admin, "admin")
    assert user.get("/api/v1/admin/accounts").status_code == 403
    assert admin.get("/api/v1/admin/accounts").status_code == 200
    assert program(admin, "read", "chat").get("/api/v1/admin/accounts").status_code == 403
    assert allowed.get("/api/v1/admin/accounts").status_code == 200
    assert allowed.get("/api/v1/conversations").status_code == 403
    assert user.post("/api/v1/tokens", json={"name": "x", "scopes": ["admin"]}).status_code == 403
    with app.extensions["database"].session() as session:  # a token outlives the role, but not its power
        session.execute(update(Account).values(role="user"))
    assert allowed.get("/api/v1/admin/accounts").status_code == 403


@pytest.mark.parametrize("header", ["Bearer cbt_guessed", "Bearer ", "bearer x", "Bearer a b"])
def test_a_wrong_token_is_not_replaced_by_the_cookie(app: Flask, header: str) -> None:
    response = signed_in(app).get("/api/v1/account", headers={"Authorization": header})
    assert response.status_code == 401


def test_the_proxys_own_password_is_not_ours(app: Flask) -> None:
    assert signed_in(app).get("/api/v1/account", headers={"Authorization": "Basic dTpw"}).status_code == 200


def test_tokens_are_listed_without_secrets_and_revoked(app: Flask) -> None:
    client = signed_in(app)
    other = signed_in(app, "other@example.org")
    made = client.post("/api/v1/tokens", json={"name": " laptop ", "scopes": ["chat", "read"]}).get_json()
    assert (made["name"], made["scopes"], made["expires_at"]) == ("laptop", ["read", "chat"], None)
    assert made["token"].startswith("cbt_")
    token = bearer(app, made.pop("token"))
    assert client.get("/api/v1/tokens").get_json() == {"tokens": [made]}
    assert token.get("/api/v1/account").status_code == 200
    assert client.get("/api/v1/tokens").get_json()["tokens"][0]["last_used_at"] is not None
    assert other.get("/api/v1/tokens").get_json() == {"tokens": []}
    assert other.delete(f"/api/v1/tokens/{made['id']}").status_code == 404
    assert client.delete(f"/api/v1/tokens/{made['id']}").status_code == 204
    assert token.get("/api/v1/account").status_code == 401


def test_tokens_expire(app: Flask) -> None:
    client = signed_in(app)
    body = {"name": "x", "scopes": ["read"], "expires_at": (now() + timedelta(hours=1)).isoformat()}
    token = bearer(app, client.post("/api/v1/tokens", json=body).get_json()["token"])
    assert token.get("/api/v1/account").status_code == 200
    with app.extensions["database"].session() as session:
        session.execute(update(ApiToken).values(expires_at=now() - timedelta(seconds=1)))
    assert token.get("/api/v1/account").status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["root"]},
        {"name": "", "scopes": ["read"]},
        {"scopes": ["read"]},
        {"name": "x", "scopes": ["read"], "expires_at": "2020-01-01T00:00:00Z"},
        {"name": "x", "scopes": ["read"], "expires_at": "2099-01-01T00:00:00"},
    ],
)
def test_wrong_tokens(app: Flask, body: object) -> None:
    assert signed_in(app).post("/api/v1/tokens", json=body).status_code == 422


def test_no_token_is_left_of_a_deleted_account(app: Flask) -> None:
    client = signed_in(app)
    token = program(client, "chat")
    assert client.delete("/api/v1/account", json={"password": PASSWORD}).status_code == 204
    assert token.get("/api/v1/account").status_code == 401
    with app.extensions["database"].session() as session:
        assert session.scalars(select(ApiToken)).all() == []


def preflight(app: Flask, origin: str) -> TestResponse:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type, x-csrftoken",
    }
    return app.test_client().options("/api/v1/conversations", headers=headers)


def test_without_a_setting_no_other_site_may_read(app: Flask) -> None:
    for response in (preflight(app, FRONT), signed_in(app).get("/api/v1/account", headers={"Origin": FRONT})):
        assert not [name for name, _ in response.headers if name.startswith("Access-Control")]


def test_a_front_end_elsewhere(front: Flask) -> None:
    allowed = preflight(front, FRONT).headers
    assert allowed["Access-Control-Allow-Origin"] == FRONT
    assert allowed["Access-Control-Allow-Credentials"] == "true"
    assert "POST" in allowed["Access-Control-Allow-Methods"]
    assert "x-csrftoken" in allowed["Access-Control-Allow-Headers"].lower()
    refused = front.test_client().get("/api/v1/conversations", headers={"Origin": FRONT})
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, FRONT)
    assert "Retry-After" in refused.headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize("origin", ["https://evil.example", f"{FRONT}.evil.example", "null", "http://chat.example.org"])
def test_no_other_front_end(front: Flask, origin: str) -> None:
    assert "Access-Control-Allow-Origin" not in preflight(front, origin).headers


def test_the_cookie_travels_to_another_site_only_where_one_is_named(app: Flask, front: Flask) -> None:
    https = {"X-Forwarded-Proto": "https"}
    assert "SameSite=Lax" in app.test_client().get("/api/v1/session", headers=https).headers["Set-Cookie"]
    assert "SameSite=Lax" in front.test_client().get("/api/v1/session").headers["Set-Cookie"]
    cookie = front.test_client().get("/api/v1/session", headers=https).headers["Set-Cookie"]
    assert "SameSite=None" in cookie
    assert "Secure" in cookie


def test_reading_across_origins_without_the_csrf_token_changes_nothing(front: Flask) -> None:
    client = signed_in(front)
    del client.environ_base["HTTP_X_CSRFTOKEN"]
    assert client.post("/api/v1/conversations", headers={"Origin": "https://evil.example"}).status_code == 403
