"""The API of API tokens."""

import uuid
from datetime import datetime
from typing import Annotated, Any, Literal

from flask import Blueprint
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy import delete, select

from chatbot import services
from chatbot.accounts import issue_token
from chatbot.bodies import read_body, storable
from chatbot.database import ApiToken, now
from chatbot.identity import account_id, in_person, principal
from chatbot.problems import Problem

blueprint = Blueprint("tokens", __name__, url_prefix="/api/v1/tokens")


class NewToken(BaseModel):
    """Body of POST /tokens."""

    model_config = ConfigDict(extra="forbid")
    name: Annotated[
        str,
        StringConstraints(strict=True, strip_whitespace=True, min_length=1, max_length=100),
        AfterValidator(storable),
    ]
    scopes: list[Literal["read", "chat", "admin"]] = Field(min_length=1)
    expires_at: AwareDatetime | None = None


@blueprint.get("")
@in_person
def index() -> dict[str, Any]:
    """The account's tokens, without their secrets."""
    mine = select(ApiToken).where(ApiToken.account_id == account_id()).order_by(ApiToken.created_at)
    with services.database().session() as session:
        return {"tokens": [token_json(token) for token in session.scalars(mine)]}


@blueprint.post("")
@in_person
def create() -> tuple[dict[str, Any], int]:
    """A new token. The answer is the only place where its secret is ever shown."""
    body = read_body(NewToken)
    if "admin" in body.scopes and not principal().is_admin:
        raise Problem(403, "Forbidden", "Only administrators may have tokens with the scope admin.")
    if body.expires_at is not None and body.expires_at <= now():
        raise Problem(422, "Invalid request", "expires_at: must be in the future")
    with services.database().session() as session:
        token, secret = issue_token(session, account_id(), body.name, body.scopes, body.expires_at)
    return token_json(token) | {"token": secret}, 201


@blueprint.delete("/<uuid:token_id>")
@in_person
def revoke(token_id: uuid.UUID) -> tuple[str, int]:
    """Revoke a token, from the next request on."""
    mine = delete(ApiToken).where(ApiToken.id == token_id, ApiToken.account_id == account_id())
    with services.database().session() as session:
        if not session.scalars(mine.returning(ApiToken.id)).all():
            raise Problem(404, "Not found", "There is no such token in this account.")
    return "", 204


def token_json(token: ApiToken) -> dict[str, Any]:
    """A token without its secret."""
    return {
        "id": str(token.id),
        "name": token.name,
        "scopes": token.scopes.split(),
        "created_at": token.created_at.isoformat(),
        "expires_at": _time(token.expires_at),
        "last_used_at": _time(token.last_used_at),
    }


def _time(clock: datetime | None) -> str | None:
    return clock.isoformat() if clock else None
