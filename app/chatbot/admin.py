"""The API for administrators: accounts and invitations."""

import logging
import uuid
from typing import Any

from flask import Blueprint, request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from chatbot import accounts, services
from chatbot.accounts import Email
from chatbot.bodies import read_body
from chatbot.database import Account, AccountRole, Invitation, now
from chatbot.identity import account_id, admin_only
from chatbot.problems import Problem
from chatbot.signin import account_json
from chatbot.usage import used_in_month

log = logging.getLogger(__name__)
blueprint = Blueprint("admin", __name__, url_prefix="/api/v1/admin")

LIST_LIMIT = 200


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
def index() -> dict[str, Any]:
    """Accounts whose e-mail address or name holds `search`, at most LIST_LIMIT, with what they have used this month."""
    with services.database().session() as session:
        found = accounts.search(session, request.args.get("search", "").replace("\x00", ""), LIST_LIMIT)
        used = used_in_month(session, [account.id for account in found])
    return {"accounts": [_account_json(account, used.get(account.id, 0)) for account in found]}


@blueprint.patch("/accounts/<uuid:target_id>")
@admin_only
def change(target_id: uuid.UUID) -> dict[str, Any]:
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
    return _account_json(account, used.get(account.id, 0))


@blueprint.get("/invitations")
@admin_only
def invitations() -> dict[str, Any]:
    """Invitations that can still be used, and those used; without their codes."""
    with services.database().session() as session:
        found = session.scalars(select(Invitation).order_by(Invitation.created_at.desc()).limit(LIST_LIMIT)).all()
    return {"invitations": [invitation_json(invitation) for invitation in found]}


@blueprint.post("/invitations")
@admin_only
def invite() -> tuple[dict[str, Any], int]:
    """Invite somebody: whoever has the link, or only the owner of an e-mail address. The code is shown only here."""
    body = read_body(NewInvitation, optional=True)
    with services.database().session() as session:
        invitation, code = accounts.invite(session, body.email, body.expires_in_days)
    log.info("invitation created", extra={"invitation": str(invitation.id), "by": str(account_id())})
    return invitation_json(invitation) | {"code": code, "url": f"/?invitation={code}"}, 201


@blueprint.delete("/invitations/<uuid:invitation_id>")
@admin_only
def uninvite(invitation_id: uuid.UUID) -> tuple[str, int]:
    """Take an invitation back."""
    with services.database().session() as session:
        if not accounts.uninvite(session, invitation_id):
            raise Problem(404, "Not found", "There is no such invitation.")
    return "", 204


def _account_json(account: Account, used: int) -> dict[str, Any]:
    return account_json(account) | {
        "disabled": account.disabled,
        "monthly_token_budget": account.monthly_token_budget,
        "total_tokens": used,
        "last_sign_in_at": account.last_sign_in_at.isoformat() if account.last_sign_in_at else None,
    }


def invitation_json(invitation: Invitation) -> dict[str, Any]:
    """An invitation without its code."""
    return {
        "id": str(invitation.id),
        "email": invitation.email,
        "created_at": invitation.created_at.isoformat(),
        "expires_at": invitation.expires_at.isoformat(),
        "used_at": invitation.used_at.isoformat() if invitation.used_at else None,
        "usable": invitation.used_at is None and invitation.expires_at > now(),
    }
