"""Accounts and what belongs to them: the rules that the API and the commands share. Everything works on a session."""

import hashlib
import re
import secrets
import uuid
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Annotated, Any, cast

from pydantic import AfterValidator, Strict
from sqlalchemy import ColumnElement, CursorResult, Select, UpdateBase, delete, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from chatbot.bodies import storable
from chatbot.database import (
    Account,
    AccountRole,
    ApiToken,
    Conversation,
    Invitation,
    Message,
    SignIn,
    Status,
    now,
)

SCOPES = ("read", "chat", "admin")
TOKEN_PREFIX = "cbt_"  # noqa: S105 - by which secret scanners know it
MAX_PASSWORD_CHARS = 1024


class EmailTakenError(Exception):
    """There is an account with this e-mail address."""


class InvitationError(Exception):
    """The invitation is unknown, used, expired or somebody else's."""


def normal_email(text: str) -> str:
    """The one form of an e-mail address that accounts are found by. ValueError when it is none."""
    email = text.strip().lower()
    if len(email) > 254 or not re.fullmatch(r"[^@\s\x00-\x1f]+@[^@\s\x00-\x1f]+", email):
        raise ValueError("is not an e-mail address")
    return email


Email = Annotated[str, Strict(), AfterValidator(storable), AfterValidator(normal_email)]


def digest(token: str) -> str:
    """What is kept of a random token. It has enough randomness to need no slow hash."""
    return hashlib.sha256(token.encode()).hexdigest()


def find(session: Session, email: str) -> Account | None:
    """The account with this (normal) e-mail address."""
    return session.scalar(select(Account).where(Account.email == email))


def create(
    session: Session,
    email: str,
    *,
    name: str = "",
    password_hash: str | None = None,
    role: AccountRole = AccountRole.USER,
    openid: tuple[str, str] | None = None,
) -> Account:
    """A new account. EmailTakenError when the address or the subject has one; the session is spent then."""
    issuer, subject = openid or (None, None)
    account = Account(
        id=uuid.uuid4(),
        email=email,
        name=name,
        role=role,
        disabled=False,
        password_hash=password_hash,
        openid_issuer=issuer,
        openid_subject=subject,
        created_at=now(),
    )
    session.add(account)
    try:
        session.flush()
    except IntegrityError:
        raise EmailTakenError from None
    return account


def sign_in(
    session: Session, account: Account, address: str, user_agent: str, *, new_hash: str | None = None
) -> str | None:
    """Sign a browser in and give its token; None when the account was changed since it was read.

    The update comes first and locks the account: a new password that is being set either sees this sign-in and ends
    it, or is seen here. `new_hash` replaces the password's.
    """
    clock = now()
    same = account.password_hash
    unchanged = Account.password_hash.is_(None) if same is None else Account.password_hash == same
    values = {"last_sign_in_at": clock} | ({"password_hash": new_hash} if new_hash else {})
    mine = update(Account).where(Account.id == account.id, unchanged, Account.disabled.is_(False)).values(values)
    if not _changed(session, mine.execution_options(synchronize_session=False)):
        return None
    token = secrets.token_urlsafe(32)
    session.add(
        SignIn(
            id=uuid.uuid4(),
            account_id=account.id,
            token_hash=digest(token),
            address=address[:45],
            user_agent=user_agent.replace("\x00", "")[:200],
            created_at=clock,
            last_seen_at=clock,
        )
    )
    return token


def forget_old_sign_ins(session: Session, account_id: uuid.UUID, days: int) -> None:
    """Delete what nobody can use any more."""
    old = SignIn.last_seen_at < now() - timedelta(days=days)
    session.execute(delete(SignIn).where(SignIn.account_id == account_id, old))


def sign_out(session: Session, account_id: uuid.UUID, *, keep: uuid.UUID | None = None) -> int:
    """End the account's sign-ins, all but `keep`; how many there were."""
    which = [SignIn.account_id == account_id] + ([SignIn.id != keep] if keep else [])
    return _changed(session, delete(SignIn).where(*which))


def set_password(
    session: Session,
    account_id: uuid.UUID,
    new_hash: str | None,
    *,
    known: str | None = None,
    keep: uuid.UUID | None = None,
) -> bool:
    """Change the password and sign out everywhere except `keep`. False when it is not `known` (if given) any more."""
    mine = update(Account).where(Account.id == account_id)
    if known is not None:
        mine = mine.where(Account.password_hash == known)
    if not _changed(session, mine.values(password_hash=new_hash)):
        return False
    sign_out(session, account_id, keep=keep)
    return True


def disable(session: Session, account: Account) -> None:
    """Let the account do nothing any more: it is signed out everywhere, its tokens are refused, its answers end."""
    account.disabled = True
    session.flush()
    sign_out(session, account.id)
    end_answers(session, account.id)


def end_answers(session: Session, account_id: uuid.UUID) -> None:
    """End what the account's conversations are writing; the processes notice when they save next."""
    mine = select(Conversation.id).where(Conversation.account_id == account_id)
    session.execute(
        update(Message)
        .where(Message.status == Status.STREAMING, Message.conversation_id.in_(mine))
        .values(status=Status.INTERRUPTED, finish_reason="account_closed")
        .execution_options(synchronize_session=False)
    )


def is_last_admin(session: Session, account: Account) -> bool:
    """Whether nobody else could administer. Locks the administrators, so that two cannot dismiss each other at once."""
    admins = select(Account.id).where(Account.role == AccountRole.ADMIN, Account.disabled.is_(False))
    return set(session.scalars(admins.order_by(Account.id).with_for_update())) == {account.id}


def issue_token(
    session: Session,
    account_id: uuid.UUID,
    name: str,
    scopes: Collection[str],
    expires_at: datetime | None = None,
    secret: str | None = None,
) -> tuple[ApiToken, str]:
    """A new API token: its row, and the secret (a random one unless it is given), which can be had only now."""
    secret = secret or TOKEN_PREFIX + secrets.token_urlsafe(32)
    token = ApiToken(
        id=uuid.uuid4(),
        account_id=account_id,
        token_hash=digest(secret),
        name=name,
        scopes=" ".join(scope for scope in SCOPES if scope in scopes),
        created_at=now(),
        expires_at=expires_at,
    )
    session.add(token)
    return token, secret


def invite(session: Session, email: str | None, days: int) -> tuple[Invitation, str]:
    """A new invitation: its row, and the code, which can be had only now."""
    code = secrets.token_urlsafe(24)
    clock = now()
    invitation = Invitation(
        id=uuid.uuid4(), code_hash=digest(code), email=email, created_at=clock, expires_at=clock + timedelta(days=days)
    )
    session.add(invitation)
    return invitation, code


def uninvite(session: Session, invitation_id: uuid.UUID) -> int:
    """Take an invitation back; 0 when there is none."""
    return _changed(session, delete(Invitation).where(Invitation.id == invitation_id))


def use_invitation(session: Session, code: str, email: str) -> None:
    """Spend an invitation, at the most once. Raises InvitationError."""
    _use(session, select(Invitation.id).where(Invitation.code_hash == digest(code)), email)


def use_invitation_of(session: Session, email: str) -> None:
    """The same for somebody whose address is certain: without a code, but only with an invitation in their name."""
    _use(session, select(Invitation.id).where(Invitation.email == email).limit(1), email)


def _use(session: Session, which: Select[uuid.UUID], email: str) -> None:
    clock = now()
    valid = (
        Invitation.used_at.is_(None),
        Invitation.expires_at > clock,
        or_(Invitation.email.is_(None), Invitation.email == email),
    )
    chosen = session.scalar(which.where(*valid))
    if chosen is None or not _changed(
        session, update(Invitation).where(Invitation.id == chosen, *valid).values(used_at=clock)
    ):
        raise InvitationError


def adopt(session: Session, account_id: uuid.UUID, owner: str) -> int:
    """Give an account the conversations of a browser session from before there were accounts; how many."""
    theirs = Conversation.owner == owner
    return _assign(session, account_id, theirs)


def adopt_ownerless(session: Session, account_id: uuid.UUID) -> int:
    """Give an account all conversations that belong to nobody; how many."""
    return _assign(session, account_id, Conversation.owner.is_(None))


def owner_name(account_id: uuid.UUID) -> str:
    """The `owner` of an account's conversation: no browser session of a release without accounts is called so."""
    return f"account:{account_id.hex}"


def _assign(session: Session, account_id: uuid.UUID, which: ColumnElement[bool]) -> int:
    statement = update(Conversation).where(Conversation.account_id.is_(None), which)
    return _changed(session, statement.values(account_id=account_id, owner=owner_name(account_id)))


def search(session: Session, text: str, limit: int | None) -> list[Account]:
    """Accounts whose e-mail address or name holds the text, in the order of their addresses."""
    found = select(Account).order_by(Account.email).limit(limit)
    if text:
        either = Account.email.icontains(text, autoescape=True), Account.name.icontains(text, autoescape=True)
        found = found.where(or_(*either))
    return list(session.scalars(found))


def count_conversations_without_account(session: Session) -> dict[str | None, int]:
    """How many there are of each owner."""
    counted = select(Conversation.owner, func.count()).where(Conversation.account_id.is_(None))
    return {row[0]: row[1] for row in session.execute(counted.group_by(Conversation.owner))}


def _changed(session: Session, statement: UpdateBase) -> int:
    """Execute an update or delete; how many rows it has changed."""
    return cast("CursorResult[Any]", session.execute(statement)).rowcount
