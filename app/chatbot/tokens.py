"""The API of API tokens."""

import uuid
from typing import Annotated, Any

from flask import Blueprint, Response
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy import delete, select

from chatbot import schemas, services
from chatbot.accounts import issue_token
from chatbot.bodies import invalid, read_body, respond, storable
from chatbot.database import ApiToken, now
from chatbot.identity import account_id, in_person, principal
from chatbot.openapi import operation
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
    scopes: list[schemas.Scope] = Field(min_length=1)
    expires_at: AwareDatetime | None = None


@blueprint.get("")
@in_person
@operation({200: schemas.ApiTokenList})
def index() -> Response:
    """The account's tokens, without their secrets."""
    mine = select(ApiToken).where(ApiToken.account_id == account_id()).order_by(ApiToken.created_at)
    with services.database().session() as session:
        tokens = [schemas.ApiToken(**_fields(token)) for token in session.scalars(mine)]
    return respond(schemas.ApiTokenList(tokens=tokens))


@blueprint.post("")
@in_person
@operation({201: schemas.CreatedApiToken}, body=NewToken, problems=(400, 413, 415, 422))
def create() -> Response:
    """Make an API token.

    The answer is the only place where its secret is ever shown.
    """
    body = read_body(NewToken)
    if "admin" in body.scopes and not principal().is_admin:
        raise Problem(403, "Forbidden", "Only administrators may have tokens with the scope admin.")
    if body.expires_at is not None and body.expires_at <= now():
        raise invalid("expires_at", "must be in the future")
    with services.database().session() as session:
        token, secret = issue_token(session, account_id(), body.name, body.scopes, body.expires_at)
    return respond(schemas.CreatedApiToken(**_fields(token), token=secret), 201)


@blueprint.delete("/<uuid:token_id>")
@in_person
@operation({204: ()}, problems=(404,))
def revoke(token_id: uuid.UUID) -> tuple[str, int]:
    """Revoke a token, from the next request on."""
    mine = delete(ApiToken).where(ApiToken.id == token_id, ApiToken.account_id == account_id())
    with services.database().session() as session:
        if not session.scalars(mine.returning(ApiToken.id)).all():
            raise Problem(404, "Not found", "There is no such token in this account.")
    return "", 204


def _fields(token: ApiToken) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "scopes": token.scopes.split(),
        "created_at": token.created_at,
        "expires_at": token.expires_at,
        "last_used_at": token.last_used_at,
    }
