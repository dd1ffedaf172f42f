"""The API for administrators: accounts and invitations."""

import logging
import uuid
from typing import Annotated, Any

from flask import Blueprint, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy import select

from chatbot import accounts, schemas, services
from chatbot.accounts import Email
from chatbot.bodies import read_body, read_query, respond, storable
from chatbot.database import Account, AccountRole, Invitation, now
from chatbot.identity import account_id, admin_only
from chatbot.openapi import operation
from chatbot.problems import Problem
from chatbot.usage import used_in_month

log = logging.getLogger(__name__)
blueprint = Blueprint("admin", __name__, url_prefix="/api/v1/admin")

LIST_LIMIT = 200


class AccountSearch(BaseModel):
    """Query of GET /admin/accounts."""

    model_config = ConfigDict(extra="forbid")
    search: Annotated[str, StringConstraints(strip_whitespace=True, max_length=254), AfterValidator(storable)] = ""


class AccountAdministration(BaseModel):
    """Body of PATCH /admin/accounts/<id>. A budget of null is the settings'."""

    model_config = ConfigDict(extra="forbid")
    role: AccountRole | None = None
    disabled: bool | None = None
    monthly_token_budget: int | None = Field(default=None, ge=0, le=2**62)


class NewInvitation(BaseModel):
    """Body of POST /admin/invitations; may be missing altogether."""

    model_config = ConfigDict(extra="forbid")
    email: Email | None = None
    expires_in_days: int = Field(default=7, ge=1, le=365)


@blueprint.get("/accounts")
@admin_only
@operation({200: schemas.AccountList}, query=AccountSearch, problems=(422,))
def index() -> Response:
    """Accounts whose e-mail address or name holds `search`, with what they have used this month.

    The first 200 of them.
    """
    wanted = read_query(AccountSearch).search
    with services.database().session() as session:
        found = accounts.search(session, wanted, LIST_LIMIT)
        used = used_in_month(session, [account.id for account in found])
    return respond(schemas.AccountList(accounts=[_account(account, used.get(account.id, 0)) for account in found]))


@blueprint.patch("/accounts/<uuid:target_id>")
@admin_only
@operation({200: schemas.AdministeredAccount}, body=AccountAdministration, problems=(400, 404, 409, 413, 415, 422))
def change(target_id: uuid.UUID) -> Response:
    """Change role, budget, or whether the account may do anything at all."""
    body = read_body(AccountAdministration)
    with services.database().session() as session:
        account = session.get(Account, target_id)
        if account is None:
            raise Problem(404, "Not found", "There is no such account.")
        if (body.disabled or body.role == AccountRole.USER) and accounts.is_last_admin(session, account):
            raise Problem(409, "Conflict", "The last administrator must stay one.")
        if body.role is not None:
            account.role = body.role
        if "monthly_token_budget" in body.model_fields_set:
            account.monthly_token_budget = body.monthly_token_budget
        if body.disabled:
            accounts.disable(session, account)
        elif body.disabled is False:
            account.disabled = False
        used = used_in_month(session, [account.id])
    changes = {"account": str(target_id), "by": str(account_id()), "changed": sorted(body.model_fields_set)}
    log.info("account changed", extra=changes)
    return respond(_account(account, used.get(account.id, 0)))


@blueprint.get("/invitations")
@admin_only
@operation({200: schemas.InvitationList})
def invitations() -> Response:
    """Invitations that can still be used, and those used; without their codes."""
    with services.database().session() as session:
        found = session.scalars(select(Invitation).order_by(Invitation.created_at.desc()).limit(LIST_LIMIT)).all()
    return respond(schemas.InvitationList(invitations=[schemas.Invitation(**_fields(each)) for each in found]))


@blueprint.post("/invitations")
@admin_only
@operation({201: schemas.CreatedInvitation}, body=NewInvitation, body_optional=True, problems=(400, 413, 415, 422))
def invite() -> Response:
    """Invite somebody.

    Whoever has the link, or only the owner of an e-mail address. The code is shown only here.
    """
    body = read_body(NewInvitation, optional=True)
    with services.database().session() as session:
        invitation, code = accounts.invite(session, body.email, body.expires_in_days)
    log.info("invitation created", extra={"invitation": str(invitation.id), "by": str(account_id())})
    return respond(schemas.CreatedInvitation(**_fields(invitation), code=code, url=f"/?invitation={code}"), 201)


@blueprint.delete("/invitations/<uuid:invitation_id>")
@admin_only
@operation({204: ()}, problems=(404,))
def uninvite(invitation_id: uuid.UUID) -> tuple[str, int]:
    """Take an invitation back."""
    with services.database().session() as session:
        if not accounts.uninvite(session, invitation_id):
            raise Problem(404, "Not found", "There is no such invitation.")
    return "", 204


def _account(account: Account, used: int) -> schemas.AdministeredAccount:
    return schemas.AdministeredAccount(
        **schemas.Account.model_validate(account).model_dump(),
        disabled=account.disabled,
        monthly_token_budget=account.monthly_token_budget,
        total_tokens=used,
        last_sign_in_at=account.last_sign_in_at,
    )


def _fields(invitation: Invitation) -> dict[str, Any]:
    return {
        "id": invitation.id,
        "email": invitation.email,
        "created_at": invitation.created_at,
        "expires_at": invitation.expires_at,
        "used_at": invitation.used_at,
        "usable": invitation.used_at is None and invitation.expires_at > now(),
    }
