"""Signing in through an OpenID Connect provider: the authorization code flow with PKCE, by Authlib.

Who the provider vouches for is known by its issuer and subject. By e-mail address alone nobody gets into an account
that has a password: whoever made it need not be the owner of the address.
"""

import logging
from typing import Any

import requests
from authlib.integrations.base_client import OAuthError
from authlib.integrations.flask_client import OAuth
from flask import Blueprint, Flask, current_app, redirect, url_for
from joserfc.errors import JoseError
from sqlalchemy import select, update
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response

from chatbot import accounts, services
from chatbot.accounts import EmailTakenError, InvitationError, normal_email
from chatbot.database import Account
from chatbot.identity import anybody
from chatbot.openapi import operation
from chatbot.problems import Problem
from chatbot.settings import Settings
from chatbot.signin import complete, count_failure

log = logging.getLogger(__name__)
blueprint = Blueprint("openid", __name__, url_prefix="/api/v1/openid")

# Seconds that the provider may take for each answer.
TIMEOUT = 10
# What can go wrong while asking the provider, or is wrong with its answer.
FAULTS = (OAuthError, JoseError, requests.RequestException, ValueError, LookupError, TypeError, RuntimeError)


class RefusedError(Exception):
    """The provider knows this person, but the person may not come in. The message is a word for the page."""


def init_openid(app: Flask, settings: Settings) -> None:
    """Make the configured provider known; asks it nothing yet."""
    app.register_blueprint(blueprint)
    app.extensions["openid"] = OAuth(app).register(
        "openid",
        server_metadata_url=f"{str(settings.openid_issuer).rstrip('/')}/.well-known/openid-configuration",
        client_id=settings.openid_client_id,
        client_secret=settings.openid_client_secret.get_secret_value() if settings.openid_client_secret else None,
        client_kwargs={
            "scope": "openid email profile",
            "code_challenge_method": "S256",
            "default_timeout": TIMEOUT,
        },
    )


@blueprint.get("/sign-in")
@anybody
@operation({302: ()})
def sign_in() -> Response:
    """Send the browser to the provider."""
    try:
        return _provider().authorize_redirect(url_for("openid.callback", _external=True))  # type: ignore[no-any-return]
    except FAULTS as error:
        log.warning("the OpenID provider cannot be used: %s", type(error).__name__)
        return _back("unavailable")


@blueprint.get("/callback")
@anybody
@operation({302: ()})
def callback() -> Response:
    """Where the provider sends the browser back to.

    Leads to the page, signed in or with `?openid_error=`.
    """
    provider = _provider()
    try:
        claims = _claims(provider)
    except FAULTS as error:
        log.warning("OpenID sign-in failed: %s", type(error).__name__)
        count_failure("openid", "failed")
        return _back("failed")
    try:
        with services.database().session() as session:
            account = _account(session, claims)
        complete(account, "openid")
    except RefusedError as error:
        count_failure("openid", "failed")
        return _back(str(error))
    except EmailTakenError:  # by a request in the same moment
        return _back("failed")
    except Problem:
        return _back("failed")
    return redirect("/")


def _provider() -> Any:
    return current_app.extensions["openid"]


def _claims(provider: Any) -> dict[str, Any]:
    """What the provider says about the person; checked: state, signature, issuer, audience, nonce, expiry."""
    token = provider.authorize_access_token()
    claims = dict(token["userinfo"])
    issuer = services.settings().openid_issuer or ""
    if claims["iss"].rstrip("/") != issuer.rstrip("/"):
        raise ValueError("the provider calls itself differently")
    if "email" not in claims and "userinfo_endpoint" in provider.load_server_metadata():
        more = provider.userinfo(token=token)
        if more["sub"] != claims["sub"]:
            raise ValueError("the provider speaks of two people")
        claims = dict(more) | claims
    return claims


def _account(session: Session, claims: dict[str, Any]) -> Account:
    """The person's account: known, now connected, or new. Raises RefusedError."""
    issuer, subject = str(claims["iss"]), str(claims["sub"])
    known = session.scalar(select(Account).where(Account.openid_issuer == issuer, Account.openid_subject == subject))
    if known is not None:
        if known.disabled:
            raise RefusedError("disabled")
        return known
    try:
        email = normal_email(str(claims.get("email") or ""))
    except ValueError:
        raise RefusedError("no_email") from None
    if claims.get("email_verified") is not True:
        raise RefusedError("no_email")
    account = accounts.find(session, email)
    if account is None:
        return _new(session, email, str(claims.get("name") or "").replace("\x00", "")[:100], (issuer, subject))
    if account.disabled:
        raise RefusedError("disabled")
    free = Account.password_hash.is_(None), Account.openid_subject.is_(None)
    connected = update(Account).where(Account.id == account.id, *free).returning(Account.id)
    if not session.scalars(connected.values(openid_issuer=issuer, openid_subject=subject)).all():
        raise RefusedError("password")
    return account


def _new(session: Session, email: str, name: str, identity: tuple[str, str]) -> Account:
    """A new account, where the settings let this person have one."""
    settings = services.settings()
    if not settings.openid_sign_up and settings.sign_up != "open":
        if settings.sign_up == "closed":
            raise RefusedError("no_account")
        try:
            accounts.use_invitation_of(session, email)
        except InvitationError:
            raise RefusedError("no_account") from None
    return accounts.create(session, email, name=name, openid=identity)


def _back(error: str) -> Response:
    return redirect(f"/?openid_error={error}")
