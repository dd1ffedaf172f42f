"""One's own account, and what administrators do with the others'."""

import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from chatbot.database import Account, Conversation, Message, now
from chatbot.factory import create_app
from fake_openai import FakeOpenAI
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, select
from support import (
    EMAIL,
    PASSWORD,
    close,
    create_schema,
    eventually,
    make_account,
    make_settings,
    parse_events,
    sign_in,
    signed_in,
)
from test_identity import bearer

API = "/api/v1/account"
NEW = "another good one"


@pytest.fixture
def app(fake: FakeOpenAI, database_url: str) -> Iterator[Flask]:
    """The application on both kinds of database."""
    settings = make_settings(fake.url, database_url)
    create_schema(settings)
    app = create_app(settings)
    yield app
    close(app.extensions["database"])


@pytest.fixture
def admin(app: Flask) -> FlaskClient:
    return signed_in(app, "admin@example.org", "admin")


def account_of(client: FlaskClient) -> dict[str, Any]:
    return dict(client.get(API).get_json())


def test_the_name_can_be_changed(client: FlaskClient) -> None:
    changed = client.patch(API, json={"name": " Ada "}).get_json()
    assert (changed["name"], changed) == ("Ada", account_of(client))
    for body in ({"name": 1}, {"name": "x" * 101}, {"role": "admin"}, {"name": "x", "email": "a@b.c"}):
        assert client.patch(API, json=body).status_code == 422
    assert account_of(client)["role"] == "user"


def test_a_new_password_ends_the_other_sessions_but_no_tokens(app: Flask, client: FlaskClient) -> None:
    other = signed_in(app)
    token = bearer(app, client.post("/api/v1/tokens", json={"name": "x", "scopes": ["read"]}).get_json()["token"])
    assert client.post(f"{API}/password", json={"current": PASSWORD, "new": NEW}).status_code == 204
    assert [who.get(API).status_code for who in (client, other, token)] == [200, 401, 200]
    assert sign_in(app.test_client()).status_code == 401
    assert sign_in(app.test_client(), password=NEW).status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"current": "wrong", "new": NEW}, "current"),
        ({"current": PASSWORD, "new": "short"}, "new"),
        ({"current": PASSWORD, "new": EMAIL}, "new"),
        ({"current": PASSWORD}, "new"),
    ],
)
def test_passwords_that_do_not_do(client: FlaskClient, body: dict[str, str], field: str) -> None:
    response = client.post(f"{API}/password", json=body)
    assert (response.status_code, response.get_json()["errors"][0]["field"]) == (422, field)
    assert PASSWORD not in response.text


def test_an_account_goes_with_everything_that_belongs_to_it(app: Flask, client: FlaskClient) -> None:
    conversation = client.post("/api/v1/conversations").get_json()["id"]
    assert client.post(f"/api/v1/conversations/{conversation}/messages", json={"content": "Hi"}).data
    assert client.delete(API, json={"password": "wrong"}).status_code == 422
    assert client.delete(API).status_code == 422
    assert client.delete(API, json={"password": PASSWORD}).status_code == 204
    assert client.get(API).status_code == 401
    assert sign_in(app.test_client()).status_code == 401
    with app.extensions["database"].session() as session:
        for table in (Account, Conversation, Message):
            assert session.scalar(select(func.count()).select_from(table)) == 0


def test_deleting_an_account_stops_its_answers(client: FlaskClient, fake: FakeOpenAI) -> None:
    fake.pieces, fake.between = ["x"] * 1000, 0.02
    conversation = client.post("/api/v1/conversations").get_json()["id"]
    client.post(f"/api/v1/conversations/{conversation}/messages", json={"content": "Hi"}).close()
    assert client.delete(API, json={"password": PASSWORD}).status_code == 204
    eventually(lambda: fake.left)


def test_the_last_administrator_stays(app: Flask, admin: FlaskClient) -> None:
    make_account(app)
    path = f"/api/v1/admin/accounts/{account_of(admin)['id']}"
    for body in ({"role": "user"}, {"disabled": True}):
        assert admin.patch(path, json=body).status_code == 409
    assert admin.delete(API, json={"password": PASSWORD}).status_code == 409
    assert admin.patch(path, json={"role": "admin", "disabled": False}).status_code == 200
    signed_in(app, "second@example.org", "admin")
    assert admin.patch(path, json={"role": "user"}).status_code == 200
    assert admin.get("/api/v1/admin/accounts").status_code == 403


def test_two_administrators_cannot_dismiss_each_other_at_once(postgresql_url: str) -> None:
    settings = make_settings(database_url=postgresql_url)
    create_schema(settings)
    app = create_app(settings)
    clients = [signed_in(app, f"{number}@example.org", "admin") for number in range(2)]
    ids = [account_of(client)["id"] for client in clients]
    statuses: list[int] = []
    gate = threading.Barrier(2)

    def dismiss(number: int) -> None:
        gate.wait()
        path = f"/api/v1/admin/accounts/{ids[1 - number]}"
        statuses.append(clients[number].patch(path, json={"role": "user"}).status_code)

    threads = [threading.Thread(target=dismiss, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    # The slower one meets the lock, or is no administrator any more.
    assert sorted(statuses) in ([200, 409], [200, 403])
    with app.extensions["database"].session() as session:
        assert len(session.scalars(select(Account).where(Account.role == "admin")).all()) == 1
    close(app.extensions["database"])


def test_accounts_are_searched(app: Flask, admin: FlaskClient) -> None:
    make_account(app)
    make_account(app, "hundred%@example.org")
    emails = [account["email"] for account in admin.get("/api/v1/admin/accounts").get_json()["accounts"]]
    assert emails == ["admin@example.org", "hundred%@example.org", EMAIL]
    for text, found in {"USER": [EMAIL], "%": ["hundred%@example.org"], "nobody": [], " ": emails}.items():
        answer = admin.get("/api/v1/admin/accounts", query_string={"search": text}).get_json()["accounts"]
        assert [account["email"] for account in answer] == found
    assert admin.get("/api/v1/admin/accounts", query_string={"search": "\x00"}).status_code == 422


def test_a_disabled_account_is_out_at_once(app: Flask, admin: FlaskClient, client: FlaskClient, fake: FakeOpenAI,
                                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("chatbot.generations.TICK", 0.02)
    monkeypatch.setattr("chatbot.generations.SAVE_EVERY", 0.0)
    fake.pieces, fake.between = ["x"] * 1000, 0.02
    token = bearer(app, client.post("/api/v1/tokens", json={"name": "x", "scopes": ["chat"]}).get_json()["token"])
    conversation = client.post("/api/v1/conversations").get_json()["id"]
    answer = client.post(f"/api/v1/conversations/{conversation}/messages", json={"content": "Hi"})
    path = f"/api/v1/admin/accounts/{account_of(client)['id']}"
    changed = admin.patch(path, json={"disabled": True}).get_json()
    assert changed["disabled"] is True
    assert client.get(API).status_code == token.get(API).status_code == 401
    assert sign_in(app.test_client()).status_code == 403
    assert parse_events(answer.data)[-1][1]["status"] == "interrupted"
    eventually(lambda: fake.left)
    assert admin.patch(path, json={"disabled": False}).status_code == 200
    assert client.get(API).status_code == 401  # signed out for good
    assert token.get(API).status_code == 200
    assert sign_in(app.test_client()).status_code == 200


def test_budgets_are_set_and_unset(admin: FlaskClient, client: FlaskClient) -> None:
    path = f"/api/v1/admin/accounts/{account_of(client)['id']}"
    assert admin.patch(path, json={"monthly_token_budget": 5}).get_json()["monthly_token_budget"] == 5
    assert client.get(f"{API}/usage").get_json()["budget"] == 5
    assert admin.patch(path, json={"role": "user"}).get_json()["monthly_token_budget"] == 5
    assert admin.patch(path, json={"monthly_token_budget": None}).get_json()["monthly_token_budget"] is None
    for body in ({"monthly_token_budget": -1}, {"role": "emperor"}, {"email": "x@example.org"}):
        assert admin.patch(path, json=body).status_code == 422
    assert admin.patch(f"/api/v1/admin/accounts/{uuid.uuid4()}", json={}).status_code == 404


def test_usage_is_the_instances_only_for_administrators(admin: FlaskClient, client: FlaskClient) -> None:
    mine = client.get(f"{API}/usage").get_json()
    assert mine == {
        "month": f"{now():%Y-%m}",
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "total_tokens": 0,
        "budget": None,
        "instance_total_tokens": None,
        "instance_budget": None,
    }
    conversation = client.post("/api/v1/conversations").get_json()["id"]
    assert client.post(f"/api/v1/conversations/{conversation}/messages", json={"content": "Hi"}).data
    assert client.get(f"{API}/usage").get_json()["total_tokens"] == 10
    assert admin.get(f"{API}/usage").get_json()["instance_total_tokens"] == 10
    listed = admin.get("/api/v1/admin/accounts", query_string={"search": EMAIL}).get_json()["accounts"]
    assert listed[0]["total_tokens"] == 10


def test_invitations_are_listed_without_their_codes(admin: FlaskClient) -> None:
    made = admin.post("/api/v1/admin/invitations", json={"expires_in_days": 1, "email": "a@example.org"}).get_json()
    code = made.pop("code")
    del made["url"]
    listed = admin.get("/api/v1/admin/invitations")
    assert listed.get_json() == {"invitations": [made]}
    assert code not in listed.text
    assert admin.post("/api/v1/admin/invitations", json={"expires_in_days": 0}).status_code == 422
    assert admin.delete(f"/api/v1/admin/invitations/{uuid.uuid4()}").status_code == 404
