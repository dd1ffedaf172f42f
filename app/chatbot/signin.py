"""The API of signing in and out, of the browsers that are signed in, and of signing up."""

import logging
import secrets
import uuid
from datetime import timedelta
from typing import Annotated, Any

from flask import Blueprint, Response, request, session
from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints
from sqlalchemy import delete, select

from chatbot import accounts, metrics, schemas, services
from chatbot.accounts import Email, EmailTakenError, InvitationError
from chatbot.bodies import invalid, read_body, respond, storable
from chatbot.database import Account, SignIn, now
from chatbot.guessing import client_address, guard, refuse_until
from chatbot.identity import (
    account_id,
    anybody,
    begin_session,
    csrf_token,
    current,
    end_session,
    in_person,
    own_account,
    principal,
)
from chatbot.openapi import operation
from chatbot.passwords import hash_password, is_outdated, verify_password
from chatbot.problems import Problem

log = logging.getLogger(__name__)
blueprint = Blueprint("signin", __name__, url_prefix="/api/v1")

# What may be wrong with any body.
BODY = (400, 413, 415, 422)
# The same for an unknown address and a wrong password: nobody learns who has an account.
WRONG = "E-mail address or password is wrong."

Password = Annotated[str, StringConstraints(strict=True, max_length=accounts.MAX_PASSWORD_CHARS)]
Name = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, max_length=100), AfterValidator(storable)]


class Credentials(BaseModel):
    """Body of POST /session."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    email: Email
    password: Password


class NewAccount(Credentials):
    """Body of POST /account."""

    name: Name = ""
    invitation: Annotated[str, StringConstraints(strict=True, max_length=100)] | None = None


@blueprint.get("/session")
@anybody
@operation({200: schemas.SessionState}, problems=(401,))
def show() -> Response:
    """Who is signed in, and what a client needs to know before anybody is.

    Begins or renews the cookie. 401 only for an API token that is not valid.
    """
    settings = services.settings()
    account = None
    if current() is not None:
        with services.database().session() as database_session:
            account = schemas.Account.model_validate(own_account(database_session))
    return respond(
        schemas.SessionState(
            account=account,
            csrf_token=csrf_token(),
            sign_up=settings.sign_up,
            openid=schemas.Provider(name=settings.openid_name) if settings.openid_issuer else None,
            release=settings.release,
            demo_model=settings.demo_model,
            limits=schemas.Limits(
                max_message_chars=settings.max_message_chars,
                max_upload_bytes=settings.max_upload_bytes,
                max_attachments=settings.max_attachments,
                upload_types=services.uploads().types(),
                password_min_length=settings.password_min_length,
            ),
        )
    )


@blueprint.post("/session")
@anybody
@operation({200: schemas.SignedIn}, body=Credentials, problems=(*BODY, 401, 403, 429))
def sign_in() -> Response:
    """Sign in with e-mail and password.

    401: they are wrong, 403: the account is disabled, 429: too many attempts.
    """
    body = read_body(Credentials)
    device = _device(body.email)
    wait = guard().sign_in(body.email, client_address(), device)
    if wait is not None:
        count_failure("password", "limited")
        refuse_until(wait)
    with services.database().session() as database_session:
        account = accounts.find(database_session, body.email)
    right = verify_password(account.password_hash if account else None, body.password)
    if account is None or not right:
        count_failure("password", "failed")
        raise Problem(401, "Unauthorized", WRONG, type="urn:chatbot:sign-in-required")
    if account.disabled:
        count_failure("password", "disabled")
        raise Problem(403, "Forbidden", "This account is disabled; ask the administrator.")
    outdated = account.password_hash is not None and is_outdated(account.password_hash)
    token = complete(account, "password", new_hash=hash_password(body.password) if outdated else None)
    guard().succeeded(body.email, client_address(), device)
    return respond(_signed_in(account, token))


@blueprint.delete("/session")
@anybody
@operation({204: ()}, problems=(401, 403))
def sign_out() -> tuple[str, int]:
    """Sign this browser out; fine when nobody is signed in."""
    asking = current()
    if asking is not None and asking.sign_in_id is not None:
        _end(SignIn.id == asking.sign_in_id)
    end_session()
    return "", 204


@blueprint.get("/sessions")
@in_person
@operation({200: schemas.SignInList})
def index() -> Response:
    """The account's browsers that are signed in, the one used last first."""
    asking = principal()
    oldest = now() - timedelta(days=services.settings().session_days)
    with services.database().session() as database_session:
        found = database_session.scalars(
            select(SignIn)
            .where(SignIn.account_id == asking.account_id, SignIn.last_seen_at > oldest)
            .order_by(SignIn.last_seen_at.desc())
        ).all()
    return respond(
        schemas.SignInList(
            sessions=[
                schemas.SignIn(
                    id=each.id,
                    current=each.id == asking.sign_in_id,
                    created_at=each.created_at,
                    last_seen_at=each.last_seen_at,
                    address=each.address,
                    user_agent=each.user_agent,
                )
                for each in found
            ]
        )
    )


@blueprint.delete("/sessions/<uuid:sign_in_id>")
@in_person
@operation({204: ()}, problems=(404,))
def revoke(sign_in_id: uuid.UUID) -> tuple[str, int]:
    """Sign another browser (or this one) out."""
    if not _end(SignIn.id == sign_in_id, SignIn.account_id == account_id()):
        raise Problem(404, "Not found", "There is no such session in this account.")
    if sign_in_id == principal().sign_in_id:
        end_session()
    return "", 204


@blueprint.delete("/sessions")
@in_person
@operation({204: ()})
def sign_out_everywhere() -> tuple[str, int]:
    """Sign all of the account's browsers out, also this one."""
    with services.database().session() as database_session:
        accounts.sign_out(database_session, account_id())
    end_session()
    return "", 204


@blueprint.post("/account")
@anybody
@operation({201: schemas.SignedIn}, body=NewAccount, problems=(*BODY, 401, 403, 409, 429))
def sign_up() -> Response:
    """Make an account and sign in to it.

    Where the settings allow that: to everybody, or with an invitation; 403 otherwise.
    """
    settings = services.settings()
    body = read_body(NewAccount)
    if settings.sign_up == "closed":
        raise Problem(403, "Forbidden", "Signing up is closed; ask the administrator for an account.")
    if settings.sign_up == "invitation" and not body.invitation:
        raise _no_invitation()
    refuse_until(guard().sign_up(client_address()))
    refuse_weak(body.password, body.email, "password")
    password_hash = hash_password(body.password)
    try:
        with services.database().session() as database_session:
            if settings.sign_up == "invitation":
                accounts.use_invitation(database_session, body.invitation or "", body.email)
            account = accounts.create(database_session, body.email, name=body.name, password_hash=password_hash)
    except InvitationError:
        raise _no_invitation() from None
    except EmailTakenError:
        raise Problem(409, "Conflict", "There is an account with this e-mail address already; sign in.") from None
    log.info("account created", extra={"account": str(account.id), "address": client_address()})
    return respond(_signed_in(account, complete(account, "password")), 201)


def complete(account: Account, method: str, *, new_hash: str | None = None) -> str:
    """Sign the browser in to an account whose owner has proved to be one; the new CSRF token.

    Conversations that the browser has from before there were accounts come along.
    """
    settings = services.settings()
    with services.database().session() as database_session:
        token = accounts.sign_in(
            database_session, account, client_address(), request.headers.get("User-Agent", ""), new_hash=new_hash
        )
        if token is not None:
            accounts.forget_old_sign_ins(database_session, account.id, settings.session_days)
            if isinstance(owner := session.get("id"), str):
                accounts.adopt(database_session, account.id, owner)
    if token is None:
        count_failure(method, "failed")
        raise Problem(401, "Unauthorized", WRONG, type="urn:chatbot:sign-in-required")
    metrics.sign_ins.labels(method, "success").inc()
    log.info("sign_in", extra={"address": client_address(), "method": method, "account": str(account.id)})
    return begin_session(token, {"email": accounts.digest(account.email), "id": secrets.token_hex(16)})


def count_failure(method: str, result: str) -> None:
    """One line for fail2ban, whose form app/README.md promises, and one more in the metrics."""
    metrics.sign_ins.labels(method, result).inc()
    log.warning("sign_in_failed", extra={"address": client_address(), "method": method, "result": result})


def refuse_weak(password: str, email: str, field: str) -> None:
    """A Problem (422) for a password that is too short, or is the address."""
    least = services.settings().password_min_length
    reason = None
    if len(password) < least:
        reason = f"must have {least} characters or more"
    elif password.strip().lower() == email:
        reason = "must not be the e-mail address"
    if reason:
        raise invalid(field, reason)


def confirm_password(account: Account, password: str, field: str) -> None:
    """A Problem (422) unless it is the account's password. Guessing is slowed down here as well."""
    device = _device(account.email)
    refuse_until(guard().sign_in(account.email, client_address(), device))
    if not verify_password(account.password_hash, password):
        raise invalid(field, "is wrong")
    guard().succeeded(account.email, client_address(), device)


def _signed_in(account: Account, token: str) -> schemas.SignedIn:
    return schemas.SignedIn(account=schemas.Account.model_validate(account), csrf_token=token)


def _device(email: str) -> str | None:
    """The browser's name, where somebody has signed in with it to this account before."""
    device = session.get("device")
    if isinstance(device, dict) and device.get("email") == accounts.digest(email):
        return str(device.get("id"))
    return None


def _end(*which: Any) -> bool:
    with services.database().session() as database_session:
        return bool(database_session.scalars(delete(SignIn).where(*which).returning(SignIn.id)).all())


def _no_invitation() -> Problem:
    return Problem(
        403, "Forbidden", "Signing up needs an invitation; this one is missing, used, expired or somebody else's."
    )
