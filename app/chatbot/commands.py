"""The commands. Each says in its first word what became of it (`created`, `changed`, `unchanged` …), for scripts."""

import json
import logging.config
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import TextIO

import click
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from chatbot import accounts
from chatbot.accounts import SCOPES, TOKEN_PREFIX, EmailTakenError, normal_email
from chatbot.database import Account, AccountRole, ApiToken, Conversation, Database, Invitation, SignIn, now
from chatbot.logs import logging_config
from chatbot.migrate import migrate as run_migrations
from chatbot.migrate import pending as pending_migrations
from chatbot.passwords import hash_password
from chatbot.removal import delete_conversations
from chatbot.settings import Settings, load_settings
from chatbot.uploads import Uploads
from chatbot.usage import used_in_month


@click.group(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Where `python -m chatbot` begins."""


def _settings() -> Settings:
    settings = load_settings()
    logging.config.dictConfig(logging_config(settings.log_level))
    return settings


@contextmanager
def _session() -> Iterator[Session]:
    """A transaction on a database whose schema is this release's."""
    database = Database(_settings())
    try:
        database.check_schema()
        with database.session() as session:
            yield session
    finally:
        database.engine.dispose()


def _email(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    try:
        return None if value is None else normal_email(value)
    except ValueError as error:
        raise click.BadParameter(f"{value} {error}") from None


def _one_line(_context: click.Context, _parameter: click.Parameter, file: TextIO | None) -> str | None:
    """What a file (- is standard input) holds, without the newline at its end."""
    return None if file is None else file.read().removesuffix("\n")


EMAIL = click.argument("email", callback=_email)
PASSWORD_FILE = click.option(
    "--password-file",
    "password",
    type=click.File(encoding="utf-8"),
    callback=_one_line,
    help="File with the password, - for standard input. Without it you are asked.",
)
NO_PASSWORD = click.option("--no-password", is_flag=True, help="No password: only for the OpenID provider's people.")


def can_ask() -> bool:
    """Whether somebody sits there."""
    return sys.stdin.isatty()


def _found(session: Session, email: str) -> Account:
    account = accounts.find(session, email)
    if account is None:
        raise click.ClickException(f"there is no account {email}")
    return account


def _hash(password: str | None, no_password: bool) -> str | None:
    """The hash of the password that was given, or is now asked for."""
    if no_password:
        if password is not None:
            raise click.UsageError("--no-password and --password-file exclude each other")
        return None
    if password is None:
        if not can_ask():
            raise click.UsageError("nobody can be asked for a password here: use --password-file")
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    least = load_settings().password_min_length
    if not least <= len(password) <= accounts.MAX_PASSWORD_CHARS:
        raise click.ClickException(f"a password has {least} to {accounts.MAX_PASSWORD_CHARS} characters")
    return hash_password(password)


def _moment(clock: datetime | None) -> str | None:
    return clock.isoformat(timespec="seconds") if clock else None


def _print(rows: list[dict[str, object]]) -> None:
    """One JSON object a line."""
    for row in rows:
        click.echo(json.dumps(row))


@cli.command()
@click.option("--pending", is_flag=True, help="Only print the revisions that would run, one a line.")
def migrate(pending: bool) -> None:
    """Upgrade the database schema to this release's."""
    if pending:
        for revision in pending_migrations(_settings()):
            click.echo(revision)
        return
    click.echo(f"schema: {run_migrations(_settings())}")


@cli.command()
def settings() -> None:
    """Check the settings and print them without secrets."""
    click.echo(json.dumps(_settings().public(), indent=2))


@cli.group()
def account() -> None:
    """Accounts."""


@account.command("create")
@EMAIL
@click.option("--name", default="", help="How the person is called.")
@click.option("--admin", is_flag=True, help="An administrator's account.")
@click.option("--if-missing", is_flag=True, help="Leave an account that exists as it is.")
@PASSWORD_FILE
@NO_PASSWORD
def create_account(
    email: str, name: str, admin: bool, if_missing: bool, password: str | None, no_password: bool
) -> None:
    """Make an account."""
    if if_missing:
        with _session() as session:
            if accounts.find(session, email) is not None:
                click.echo(f"unchanged: {email} exists")
                return
    role = AccountRole.ADMIN if admin else AccountRole.USER
    password_hash = _hash(password, no_password)
    try:
        with _session() as session:
            accounts.create(session, email, name=name, password_hash=password_hash, role=role)
    except EmailTakenError:
        if not if_missing:
            raise click.ClickException(f"{email} has an account already") from None
        click.echo(f"unchanged: {email} exists")  # somebody else was quicker
        return
    click.echo(f"created: {email} ({role})")


@account.command("list")
@click.option("--search", default="", help="Only those whose address or name holds this text.")
def list_accounts(search: str) -> None:
    """Print accounts with this month's tokens, one JSON object a line."""
    with _session() as session:
        found = accounts.search(session, search, limit=None)
        used = used_in_month(session, [account.id for account in found])
    _print(
        [
            {
                "email": account.email,
                "name": account.name,
                "role": account.role,
                "disabled": account.disabled,
                "password": account.password_hash is not None,
                "openid": account.openid_subject is not None,
                "monthly_token_budget": account.monthly_token_budget,
                "total_tokens": used.get(account.id, 0),
                "created_at": _moment(account.created_at),
                "last_sign_in_at": _moment(account.last_sign_in_at),
            }
            for account in found
        ]
    )


@account.command("disable")
@EMAIL
def disable_account(email: str) -> None:
    """Sign an account out everywhere, refuse its tokens, end its answers."""
    with _session() as session:
        accounts.disable(session, _found(session, email))
    click.echo(f"disabled: {email}")


@account.command("enable")
@EMAIL
def enable_account(email: str) -> None:
    """Let a disabled account sign in again; its API tokens work again as well."""
    with _session() as session:
        _found(session, email).disabled = False
    click.echo(f"enabled: {email}")


@account.command("set-role")
@EMAIL
@click.argument("role", type=click.Choice([role.value for role in AccountRole]))
def set_role(email: str, role: str) -> None:
    """Make somebody an administrator, or a user again."""
    with _session() as session:
        _found(session, email).role = role
    click.echo(f"changed: {email} ({role})")


@account.command("set-password")
@EMAIL
@PASSWORD_FILE
@NO_PASSWORD
def set_password(email: str, password: str | None, no_password: bool) -> None:
    """Give an account another password and sign it out everywhere."""
    password_hash = _hash(password, no_password)
    with _session() as session:
        accounts.set_password(session, _found(session, email).id, password_hash)
    click.echo(f"changed: {email}")


@account.command("set-budget")
@EMAIL
@click.argument("tokens")
def set_budget(email: str, tokens: str) -> None:
    """Set the tokens that an account may use in a month; `default` for the settings' number."""
    if tokens != "default" and not tokens.isdecimal():
        raise click.BadParameter(f"{tokens} is neither a number nor default")
    with _session() as session:
        _found(session, email).monthly_token_budget = None if tokens == "default" else int(tokens)
    click.echo(f"changed: {email} ({tokens})")


@account.command("delete")
@EMAIL
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete_account(email: str, yes: bool) -> None:
    """Delete an account with its conversations and files. What it has used still counts for the service's budget."""
    with _session() as session:
        account = _found(session, email)
        if not yes:
            click.confirm(f"Delete {email} and all its conversations?", abort=True)
        gone = delete_conversations(session, Conversation.account_id == account.id)
        session.delete(account)
    given = load_settings()
    Uploads(given, Database(given)).remove(gone.files)
    click.echo(f"deleted: {email}")


@cli.group()
def invitation() -> None:
    """Invitations to sign up."""


@invitation.command("create")
@click.option("--email", callback=_email, help="Only the owner of this address may use it.")
@click.option("--days", default=7, type=click.IntRange(1, 365), show_default=True, help="How long it is good for.")
def create_invitation(email: str | None, days: int) -> None:
    """Print a new invitation's link; its code cannot be shown again."""
    with _session() as session:
        _, code = accounts.invite(session, email, days)
    click.echo(f"/?invitation={code}")


@invitation.command("list")
def list_invitations() -> None:
    """Print invitations, one JSON object a line."""
    with _session() as session:
        found = session.scalars(select(Invitation).order_by(Invitation.created_at)).all()
    _print(
        [
            {
                "id": str(each.id),
                "email": each.email,
                "expires_at": _moment(each.expires_at),
                "used_at": _moment(each.used_at),
            }
            for each in found
        ]
    )


@invitation.command("revoke")
@click.argument("invitation_id", type=click.UUID)
def revoke_invitation(invitation_id: uuid.UUID) -> None:
    """Take an invitation back."""
    with _session() as session:
        if not accounts.uninvite(session, invitation_id):
            raise click.ClickException(f"there is no invitation {invitation_id}")
    click.echo(f"revoked: {invitation_id}")


@cli.group()
def token() -> None:
    """API tokens."""


@token.command("create")
@EMAIL
@click.option("--name", required=True, help="What it is for.")
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice(SCOPES), help="May be repeated.")
@click.option("--days", type=click.IntRange(1), help="How long it is good for; without limit otherwise.")
@click.option(
    "--secret-file",
    "secret",
    type=click.File(encoding="utf-8"),
    callback=_one_line,
    help=f"File with a token ({TOKEN_PREFIX}…) that was made elsewhere; replaces others of the same name.",
)
@click.option("--new-account", is_flag=True, help="Make the account where there is none, without a password.")
def create_token(
    email: str, name: str, scopes: tuple[str, ...], days: int | None, secret: str | None, new_account: bool
) -> None:
    """Print a new token; it cannot be shown again."""
    if secret is not None and (not secret.startswith(TOKEN_PREFIX) or len(secret) < len(TOKEN_PREFIX) + 32):
        raise click.ClickException(f"a token is {TOKEN_PREFIX} and 32 random characters or more")
    if new_account:
        with suppress(EmailTakenError), _session() as session:  # another host may make it in the same moment
            if accounts.find(session, email) is None:
                accounts.create(session, email)
    with _session() as session:
        account = _found(session, email)
        if "admin" in scopes and account.role != AccountRole.ADMIN:
            raise click.ClickException(f"{email} is no administrator")
        if secret is not None:
            same_name = ApiToken.account_id == account.id, ApiToken.name == name
            known = session.scalars(select(ApiToken).where(*same_name)).all()
            if [each.token_hash for each in known] == [accounts.digest(secret)]:
                click.echo(f"unchanged: {name}")
                return
            session.execute(delete(ApiToken).where(*same_name))
        expires_at = None if days is None else now() + timedelta(days=days)
        _, made = accounts.issue_token(session, account.id, name, scopes, expires_at, secret)
    click.echo(made if secret is None else f"created: {name}")


@token.command("list")
@click.argument("email", required=False, callback=_email)
def list_tokens(email: str | None) -> None:
    """Print tokens without their secrets, one JSON object a line."""
    tokens = select(ApiToken, Account.email).join(Account, Account.id == ApiToken.account_id)
    if email is not None:
        tokens = tokens.where(Account.email == email)
    with _session() as session:
        found = session.execute(tokens.order_by(Account.email, ApiToken.created_at)).all()
    _print(
        [
            {
                "id": str(each.id),
                "email": owner,
                "name": each.name,
                "scopes": each.scopes.split(),
                "expires_at": _moment(each.expires_at),
                "last_used_at": _moment(each.last_used_at),
            }
            for each, owner in found
        ]
    )


@token.command("revoke")
@click.argument("token_id", type=click.UUID)
def revoke_token(token_id: uuid.UUID) -> None:
    """Revoke a token, from the next request on."""
    with _session() as session:
        found = session.get(ApiToken, token_id)
        if found is None:
            raise click.ClickException(f"there is no token {token_id}")
        session.delete(found)
    click.echo(f"revoked: {token_id}")


@cli.group()
def sessions() -> None:
    """Browsers that are signed in."""


@sessions.command("revoke")
@click.argument("email", required=False, callback=_email)
@click.option("--all", "everybody", is_flag=True, help="Of all accounts.")
def revoke_sessions(email: str | None, everybody: bool) -> None:
    """Sign an account, or all of them, out everywhere. API tokens stay."""
    if everybody == (email is not None):
        raise click.UsageError("name an account, or --all")
    with _session() as session:
        if email is not None:
            count = accounts.sign_out(session, _found(session, email).id)
        else:
            count = len(session.scalars(delete(SignIn).returning(SignIn.id)).all())
    click.echo(f"revoked: {count}")


@cli.group()
def conversations() -> None:
    """Conversations from before there were accounts."""


@conversations.command("list-unassigned")
def list_unassigned() -> None:
    """Print how many there are of each old owner (a browser session; null: nobody), one JSON object a line."""
    with _session() as session:
        counts = accounts.count_conversations_without_account(session)
    _print([{"owner": owner, "conversations": count} for owner, count in counts.items()])


@conversations.command("assign")
@EMAIL
@click.option("--owner", help="Those of this old owner.")
@click.option("--ownerless", is_flag=True, help="Those that belong to nobody.")
def assign(email: str, owner: str | None, ownerless: bool) -> None:
    """Give old conversations to an account."""
    if ownerless == (owner is not None):
        raise click.UsageError("name an --owner, or --ownerless")
    with _session() as session:
        account = _found(session, email)
        if owner is not None:
            count = accounts.adopt(session, account.id, owner)
        else:
            count = accounts.adopt_ownerless(session, account.id)
    click.echo(f"assigned: {count}")
