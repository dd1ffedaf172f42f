"""The API of one's own account."""

import contextlib
import logging
import uuid
from typing import Any

from flask import Blueprint
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.orm import Session

from chatbot import accounts, services
from chatbot.bodies import read_body
from chatbot.database import Account, Conversation, Message, Status, now
from chatbot.guessing import client_address
from chatbot.identity import end_session, in_person, own_account, principal
from chatbot.passwords import hash_password
from chatbot.problems import Problem
from chatbot.signin import Name, Password, account_json, confirm_password, refuse_weak
from chatbot.streamlog import LogUnavailableError
from chatbot.usage import budget_of, month_of, used_by, used_by_all

log = logging.getLogger(__name__)
blueprint = Blueprint("account", __name__, url_prefix="/api/v1/account")


class AccountChange(BaseModel):
    """Body of PATCH /account."""

    model_config = ConfigDict(extra="forbid")
    name: Name


class NewPassword(BaseModel):
    """Body of POST /account/password."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    current: Password
    new: Password


class Farewell(BaseModel):
    """Body of DELETE /account."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    password: Password = ""


@blueprint.get("")
def show() -> dict[str, Any]:
    """The account that is asking."""
    with services.database().session() as session:
        return account_json(own_account(session))


@blueprint.patch("")
@in_person
def change() -> dict[str, Any]:
    """Change the name."""
    body = read_body(AccountChange)
    with services.database().session() as session:
        account = own_account(session)
        account.name = body.name
    return account_json(account)


@blueprint.post("/password")
@in_person
def change_password() -> tuple[str, int]:
    """Change the password, which ends all other sign-ins. API tokens stay: they are revoked one by one."""
    body = read_body(NewPassword)
    account = _own()
    confirm_password(account, body.current, "current")
    refuse_weak(body.new, account.email, "new")
    new_hash = hash_password(body.new)
    with services.database().session() as session:
        keep = principal().sign_in_id
        if not accounts.set_password(session, account.id, new_hash, known=account.password_hash, keep=keep):
            raise Problem(409, "Conflict", "The password was changed somewhere else at the same moment.")
    log.info("password changed", extra={"account": str(account.id), "address": client_address()})
    return "", 204


@blueprint.delete("")
@in_person
def delete() -> tuple[str, int]:
    """Delete the account with all that belongs to it. One without a password needs no confirmation."""
    body = read_body(Farewell, optional=True)
    account = _own()
    if account.password_hash is not None:
        confirm_password(account, body.password, "password")
    with services.database().session() as session:
        account = own_account(session)
        if accounts.is_last_admin(session, account):
            raise Problem(409, "Conflict", "The last administrator cannot be deleted.")
        streaming = _streaming(session, account.id)
        session.delete(account)
    for message_id in streaming:
        with contextlib.suppress(LogUnavailableError):  # its process notices when it saves next
            services.generations().stop(message_id)
    log.info("account deleted", extra={"account": str(account.id), "address": client_address()})
    end_session()
    return "", 204


@blueprint.get("/usage")
def usage() -> dict[str, Any]:
    """The tokens of this month and how many there may be; the whole service's for administrators."""
    asking, settings = principal(), services.settings()
    with services.database().session() as session:
        prompt, completion = used_by(session, asking.account_id)
        everybodys = used_by_all(session) if asking.is_admin else None
    return {
        "month": month_of(now()),
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "budget": budget_of(asking.monthly_token_budget, settings),
        "instance_total_tokens": everybodys,
        "instance_budget": settings.instance_token_budget if asking.is_admin else None,
    }


def _own() -> Account:
    with services.database().session() as session:
        return own_account(session)


def _streaming(session: Session, owner: uuid.UUID) -> list[uuid.UUID]:
    """The answers that are being written for an account."""
    mine = select(Conversation.id).where(Conversation.account_id == owner)
    running = select(Message.id).where(Message.status == Status.STREAMING, Message.conversation_id.in_(mine))
    return list(session.scalars(running))
