"""Who is asking: a browser with a cookie, or a program with an API token. Nobody else gets past `/api/`.

Every view there needs an account unless it says otherwise: a new one is protected before anybody thinks of it.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

from flask import Flask, current_app, g, request, session
from flask_wtf.csrf import generate_csrf, validate_csrf
from sqlalchemy import ColumnElement, Select, Table, bindparam, or_, select, update
from sqlalchemy.orm import Session
from wtforms import ValidationError

from chatbot import services
from chatbot.accounts import digest
from chatbot.database import ACCOUNTS, API_TOKENS, SIGN_INS, Account, AccountRole, now
from chatbot.guessing import client_address
from chatbot.problems import Problem

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# When a sign-in or a token was used last is written this often at the most.
SEEN_EVERY = timedelta(minutes=1)
# Where the cookie keeps its token.
TOKEN = "token"  # noqa: S105


class Access(StrEnum):
    """Who may use a view that is not for every account."""

    ANYBODY = "anybody"
    IN_PERSON = "in person"  # no API token: it manages passwords, sign-ins and tokens
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """The account that asks. A sign-in may do everything that its account may, a token what its `scopes` say."""

    account_id: uuid.UUID
    role: str
    monthly_token_budget: int | None
    sign_in_id: uuid.UUID | None = None
    scopes: frozenset[str] = frozenset()

    def may(self, scope: str) -> bool:
        """Whether this way of asking covers it; `chat` includes `read`."""
        return self.sign_in_id is not None or scope in self.scopes or (scope == "read" and "chat" in self.scopes)

    @property
    def is_admin(self) -> bool:
        """Whether the account is an administrator's."""
        return self.role == AccountRole.ADMIN


def anybody[View: Callable[..., object]](view: View) -> View:
    """Mark a view that needs no account."""
    return _marked(view, Access.ANYBODY)


def in_person[View: Callable[..., object]](view: View) -> View:
    """Mark a view that API tokens cannot use."""
    return _marked(view, Access.IN_PERSON)


def admin_only[View: Callable[..., object]](view: View) -> View:
    """Mark a view for administrators; API tokens need the scope `admin`."""
    return _marked(view, Access.ADMIN)


def init_identity(app: Flask) -> None:
    """Ask every request under `/api/` who it is."""
    app.config["WTF_CSRF_TIME_LIMIT"] = None  # a token is as good as its cookie
    app.before_request(_admit)


def current() -> Principal | None:
    """Who is asking, None where nobody is signed in. Raises a Problem (401) for an API token that is not valid."""
    if "principal" not in g:
        g.principal = _by_token() if _bearer() is not None else _by_cookie()
    principal: Principal | None = g.principal
    return principal


def principal() -> Principal:
    """Who is asking; a Problem (401) where nobody is signed in."""
    found = current()
    if found is None:
        raise _nobody("Sign in to use this.")
    return found


def account_id() -> uuid.UUID:
    """The account that is asking."""
    return principal().account_id


def own_account(database_session: Session) -> Account:
    """Its row. A Problem (401) when it was deleted a moment ago."""
    account = database_session.get(Account, account_id())
    if account is None:
        raise _nobody("This account does not exist any more.")
    return account


def begin_session(token: str, device: dict[str, str]) -> str:
    """Sign the browser in: a new cookie, of which nothing of the old one is left. The new CSRF token."""
    session.clear()
    session.permanent = True
    session[TOKEN] = token
    session["device"] = device
    return _new_csrf_token()


def end_session() -> None:
    """Sign the browser out. It is remembered as one that has signed in before: see `guessing`."""
    device = session.get("device")
    session.clear()
    if device:
        session["device"] = device
        session.permanent = True


def csrf_token() -> str:
    """The token that unsafe requests with this cookie must send; renews the cookie's time to live."""
    session.modified = True
    return str(generate_csrf())


def _new_csrf_token() -> str:
    g.pop("csrf_token", None)
    return str(generate_csrf())


def _marked[View: Callable[..., object]](view: View, access: Access) -> View:
    view.access = access  # type: ignore[attr-defined]
    return view


def _admit() -> None:
    rule = request.url_rule
    if rule is None or not rule.rule.startswith("/api/") or request.method == "OPTIONS":
        return
    access = getattr(current_app.view_functions[rule.endpoint], "access", None)
    if access is not Access.ANYBODY:
        _check_access(principal(), access)
    if request.method not in SAFE_METHODS and _bearer() is None and _has_cookie():
        _check_csrf()


def _check_access(asking: Principal, access: Access | None) -> None:
    if access is Access.IN_PERSON:
        if asking.sign_in_id is None:
            raise _forbidden("An API token cannot do this; sign in with a browser.")
    elif access is Access.ADMIN:
        if not asking.is_admin:
            raise _forbidden("Only administrators may do this.")
        _check_scope(asking, "admin")
    else:
        _check_scope(asking, "read" if request.method in SAFE_METHODS else "chat")


def _check_scope(asking: Principal, scope: str) -> None:
    if not asking.may(scope):
        raise _forbidden(f"This API token lacks the scope {scope}.")


def _check_csrf() -> None:
    try:
        validate_csrf(request.headers.get("X-CSRFToken"))
    except ValidationError as error:
        raise Problem(403, "Forbidden", f"{error} Get one from /api/v1/session.", type="urn:chatbot:csrf") from None


def _has_cookie() -> bool:
    return current_app.config["SESSION_COOKIE_NAME"] in request.cookies


def _bearer() -> str | None:
    """The API token. Other kinds of authorization belong to the proxy."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _asking(table: Table, *columns: ColumnElement[Any]) -> Select[Any]:
    """The account to which the row of `table` with the hash `hash` belongs, unless it is disabled."""
    return (
        select(
            ACCOUNTS.c.id.label("account_id"), ACCOUNTS.c.role, ACCOUNTS.c.monthly_token_budget, table.c.id, *columns
        )
        .join(table, table.c.account_id == ACCOUNTS.c.id)
        .where(table.c.token_hash == bindparam("hash"), ACCOUNTS.c.disabled.is_(False))
    )


# Every request asks one of these two.
_BY_TOKEN = _asking(API_TOKENS, API_TOKENS.c.last_used_at, API_TOKENS.c.scopes).where(
    or_(API_TOKENS.c.expires_at.is_(None), API_TOKENS.c.expires_at > bindparam("clock"))
)
_BY_COOKIE = _asking(SIGN_INS, SIGN_INS.c.last_seen_at).where(SIGN_INS.c.last_seen_at > bindparam("oldest"))
_USED = update(API_TOKENS).where(API_TOKENS.c.id == bindparam("token")).values(last_used_at=bindparam("clock"))
_SEEN = (
    update(SIGN_INS)
    .where(SIGN_INS.c.id == bindparam("sign_in"))
    .values(last_seen_at=bindparam("clock"), address=bindparam("seen_from"))
)


def _by_token() -> Principal:
    clock = now()
    with services.database().statements() as run:
        rows = run(_BY_TOKEN, hash=digest(_bearer() or ""), clock=clock)
        if not rows:
            raise _nobody("The API token is not valid: it is unknown, expired or revoked.")
        found = rows[0]
        if found.last_used_at is None or clock - found.last_used_at > SEEN_EVERY:
            run(_USED, token=found.id, clock=clock)
    scopes = frozenset(found.scopes.split())
    return Principal(found.account_id, found.role, found.monthly_token_budget, scopes=scopes)


def _by_cookie() -> Principal | None:
    secret = session.get(TOKEN)
    if not isinstance(secret, str):
        return None
    clock = now()
    oldest = clock - timedelta(days=services.settings().session_days)
    with services.database().statements() as run:
        rows = run(_BY_COOKIE, hash=digest(secret), oldest=oldest)
        if not rows:
            return None
        found = rows[0]
        if clock - found.last_seen_at > SEEN_EVERY:
            run(_SEEN, sign_in=found.id, clock=clock, seen_from=client_address()[:45])
    return Principal(found.account_id, found.role, found.monthly_token_budget, sign_in_id=found.id)


def _nobody(detail: str) -> Problem:
    return Problem(401, "Unauthorized", detail, type="urn:chatbot:sign-in-required")


def _forbidden(detail: str) -> Problem:
    return Problem(403, "Forbidden", detail)
