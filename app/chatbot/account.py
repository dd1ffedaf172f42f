"""The API of one's own account."""

import logging

from flask import Blueprint, Response
from pydantic import BaseModel, ConfigDict

from chatbot import accounts, schemas, services
from chatbot.bodies import read_body, respond
from chatbot.conversations import clean_up
from chatbot.database import Account, Conversation, now
from chatbot.guessing import client_address
from chatbot.identity import end_session, in_person, own_account, principal
from chatbot.openapi import operation
from chatbot.passwords import hash_password
from chatbot.problems import Problem
from chatbot.removal import delete_conversations
from chatbot.signin import BODY, Name, Password, confirm_password, refuse_weak
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
@operation({200: schemas.Account})
def show() -> Response:
    """The account that is asking."""
    return respond(schemas.Account.model_validate(_own()))


@blueprint.patch("")
@in_person
@operation({200: schemas.Account}, body=AccountChange, problems=BODY)
def change() -> Response:
    """Change the name."""
    body = read_body(AccountChange)
    with services.database().session() as session:
        account = own_account(session)
        account.name = body.name
    return respond(schemas.Account.model_validate(account))


@blueprint.post("/password")
@in_person
@operation({204: ()}, body=NewPassword, problems=(*BODY, 409, 429))
def change_password() -> tuple[str, int]:
    """Change the password, which ends all other sign-ins.

    API tokens stay: they are revoked one by one.
    """
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
@operation({204: ()}, body=Farewell, body_optional=True, problems=(*BODY, 409, 429))
def delete() -> tuple[str, int]:
    """Delete the account with all that belongs to it.

    An account without a password needs no confirmation.
    """
    body = read_body(Farewell, optional=True)
    account = _own()
    if account.password_hash is not None:
        confirm_password(account, body.password, "password")
    with services.database().session() as session:
        account = own_account(session)
        if accounts.is_last_admin(session, account):
            raise Problem(409, "Conflict", "The last administrator cannot be deleted.")
        gone = delete_conversations(session, Conversation.account_id == account.id)
        session.delete(account)
    clean_up(gone)
    log.info("account deleted", extra={"account": str(account.id), "address": client_address()})
    end_session()
    return "", 204


@blueprint.get("/usage")
@operation({200: schemas.MonthlyUsage})
def usage() -> Response:
    """The tokens of this month and how many there may be.

    Those of the whole service only for administrators.
    """
    asking, settings = principal(), services.settings()
    with services.database().session() as session:
        prompt, completion = used_by(session, asking.account_id)
        everybodys = used_by_all(session) if asking.is_admin else None
    return respond(
        schemas.MonthlyUsage(
            month=month_of(now()),
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            budget=budget_of(asking.monthly_token_budget, settings),
            instance_total_tokens=everybodys,
            instance_budget=settings.instance_token_budget if asking.is_admin else None,
        )
    )


def _own() -> Account:
    with services.database().session() as session:
        return own_account(session)
