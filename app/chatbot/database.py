"""The tables, and short sessions on them.

A session lives for one step and never across a yield: a stream that held a connection would exhaust the pool, and
under SQLite and gevent an open write transaction stops the whole worker.
"""

import math
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, ClassVar, cast

import psycopg
from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Engine,
    ForeignKey,
    Index,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    create_engine,
    event,
    inspect,
    text,
)
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from chatbot.settings import Settings
from chatbot.statements import Run, Statements, connect_by_gevent

# A connection that was idle for longer (seconds) is tried before it is used: PostgreSQL may have been restarted.
CHECK_IDLE_SECONDS = 1.0
# The migrations in migrations/versions, oldest first. Said here again (a test compares), because Alembic would cost
# every serving process 10 MB just to read them.
REVISIONS = ("a14ecf1e1141", "b7d02f6a93c5", "c3e5a7d91b04", "c3a94be7510d")


class Role(StrEnum):
    """Who said it."""

    USER = "user"
    ASSISTANT = "assistant"


class Status(StrEnum):
    """How far a message is. `streaming` changes when the generation ends; the last three can be continued."""

    COMPLETE = "complete"
    STREAMING = "streaming"
    STOPPED = "stopped"  # by the reader
    INTERRUPTED = "interrupted"  # by a limit, a restart or a crash; `finish_reason` says by what
    FAILED = "failed"  # the model did not answer, or broke off with an error


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC, also in SQLite, which stores no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def now() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        }
    )
    type_annotation_map: ClassVar = {datetime: UtcDateTime}


STREAMING_ONLY: Any = {
    "postgresql_where": text("status = 'streaming'"),
    "sqlite_where": text("status = 'streaming'"),
}


class Conversation(Base):
    """A tree of messages. One without account is from a release without accounts: only `owner` knows its browser."""

    __tablename__ = "conversations"
    __table_args__ = (Index(None, "owner", "updated_at"), Index(None, "account_id", "updated_at"))

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    account_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"))
    # Releases without accounts show a conversation to the browser session named here, and one without to everybody.
    owner: Mapped[str | None] = mapped_column(String(64))
    title: Mapped[str] = mapped_column(String(200), default="")
    created_at: Mapped[datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime] = mapped_column(default=now)
    # A message of the branch that the reader has chosen; null (or a message that is gone) means the newest one.
    current_message_id: Mapped[uuid.UUID | None]
    # Null: the configured model.
    model: Mapped[str | None] = mapped_column(String(100))
    # Follows the configured one.
    system_prompt: Mapped[str | None] = mapped_column(Text)


class Message(Base):
    """One message. `parent_id` is the message it answers, null at the root: a conversation may branch.

    While it is `streaming`, the process that writes it renews `updated_at`: see `generations.LEASE`.
    """

    __tablename__ = "messages"
    __table_args__ = (
        CheckConstraint("role IN ('user', 'assistant')", name="role"),
        CheckConstraint("status IN ('complete', 'streaming', 'stopped', 'interrupted', 'failed')", name="status"),
        Index(None, "conversation_id", "created_at"),
        Index(None, "parent_id"),
        # Small: only the messages that are being written.
        Index("ix_messages_streaming", "updated_at", **STREAMING_ONLY),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    conversation_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("conversations.id", ondelete="CASCADE"))
    parent_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("messages.id", ondelete="CASCADE"))
    role: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    content: Mapped[str] = mapped_column(Text, default="")
    model: Mapped[str | None] = mapped_column(String(100))
    prompt_tokens: Mapped[int | None]
    completion_tokens: Mapped[int | None]
    # The model's word (`stop`, `length`) or ours (`reason` of a Generation).
    finish_reason: Mapped[str | None] = mapped_column(String(32))
    error: Mapped[str | None] = mapped_column(String(500))
    # Identifiers of the files that were sent with a question, in their order. Here and not in a table of their own: a
    # conversation without files costs no further query.
    attachment_ids: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime] = mapped_column(default=now)


class AccountRole(StrEnum):
    """What an account may do."""

    USER = "user"
    ADMIN = "admin"


class Account(Base):
    """Somebody who may sign in: with a password, through the OpenID provider, or both."""

    __tablename__ = "accounts"
    __table_args__ = (
        CheckConstraint("role IN ('user', 'admin')", name="role"),
        UniqueConstraint("email"),
        UniqueConstraint("openid_issuer", "openid_subject"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    email: Mapped[str] = mapped_column(String(254))
    name: Mapped[str] = mapped_column(String(100), default="")
    role: Mapped[str] = mapped_column(String(16), default=AccountRole.USER)
    disabled: Mapped[bool] = mapped_column(default=False)
    password_hash: Mapped[str | None] = mapped_column(String(200))
    openid_issuer: Mapped[str | None] = mapped_column(String(200))
    openid_subject: Mapped[str | None] = mapped_column(String(255))
    # Null means the settings' budget.
    monthly_token_budget: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(default=now)
    last_sign_in_at: Mapped[datetime | None]


class SignIn(Base):
    """A browser that is signed in. Its cookie carries a random token, of which only the SHA-256 is kept."""

    __tablename__ = "sign_ins"
    __table_args__ = (UniqueConstraint("token_hash"), Index(None, "account_id"))

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    account_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"))
    token_hash: Mapped[str] = mapped_column(String(64))
    address: Mapped[str] = mapped_column(String(45))
    user_agent: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(default=now)
    last_seen_at: Mapped[datetime] = mapped_column(default=now)


class ApiToken(Base):
    """A program's key to an account; `scopes` are separated by spaces. Only the SHA-256 of the token is kept."""

    __tablename__ = "api_tokens"
    __table_args__ = (UniqueConstraint("token_hash"), Index(None, "account_id"))

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    account_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"))
    token_hash: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(100))
    scopes: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class Invitation(Base):
    """Lets one person sign up once; with an e-mail address only that one. Only the SHA-256 of the code is kept."""

    __tablename__ = "invitations"
    __table_args__ = (UniqueConstraint("code_hash"), Index(None, "email"))

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    code_hash: Mapped[str] = mapped_column(String(64))
    email: Mapped[str | None] = mapped_column(String(254))
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class Usage(Base):
    """Tokens of one account in one month (UTC, `2026-11`). Outlives the account, for the instance's budget."""

    __tablename__ = "usage"

    month: Mapped[str] = mapped_column(String(7), primary_key=True)
    account_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    completion_tokens: Mapped[int] = mapped_column(BigInteger, default=0)


class Attachment(Base):
    """An uploaded file of a conversation. Its bytes are in the data directory, under its identifier as name."""

    __tablename__ = "attachments"
    __table_args__ = (Index(None, "conversation_id", "created_at"),)

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    conversation_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("conversations.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(200))
    type: Mapped[str] = mapped_column(String(100))
    bytes: Mapped[int]
    pages: Mapped[int | None]
    # Length of `text`, what the model is given of it; an image has none.
    characters: Mapped[int] = mapped_column(default=0)
    text: Mapped[str] = mapped_column(Text, default="", deferred=True)
    # Part of a message: it stays as long as the conversation.
    sent: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime] = mapped_column(default=now)


# The tables themselves: statements on them cost half of those on the classes, where an answer has to be quick.
CONVERSATIONS = cast(Table, Conversation.__table__)
MESSAGES = cast(Table, Message.__table__)
ACCOUNTS = cast(Table, Account.__table__)
USAGE = cast(Table, Usage.__table__)
ATTACHMENTS = cast(Table, Attachment.__table__)
SIGN_INS = cast(Table, SignIn.__table__)
API_TOKENS = cast(Table, ApiToken.__table__)


class SchemaBehindError(Exception):
    """The database lacks migrations that this release needs."""


class Database:
    """The engine of one process, and what the rest of the application does with it."""

    def __init__(self, settings: Settings) -> None:
        self.engine = make_engine(settings)
        self._statements = Statements(self.engine)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        self._schema_known_good = False

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction: committed at the end, rolled back on an error, its connection given back in both cases."""
        with self._sessions.begin() as session:
            yield session

    def statements(self, *, transaction: bool = False) -> AbstractContextManager[Run]:
        """A connection for what has to be quick: each statement on its own, or all in one transaction."""
        return self._statements.run(transaction=transaction)

    @property
    def combines(self) -> bool:
        """Whether a statement may hold another one that writes: one way to the server instead of four."""
        return self.engine.dialect.name == "postgresql"

    def check_schema(self) -> None:
        """Raise SchemaBehindError unless the database has every migration of this release (asked until it was so once).

        A revision this release does not know comes from a newer one: migrations only ever add, so that is fine,
        and the old colour goes on serving while the new one starts.
        """
        if self._schema_known_good:
            return
        with self.engine.connect() as connection:
            current = None
            if inspect(connection).has_table("alembic_version"):
                current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        if current is None or current in REVISIONS[:-1]:
            raise SchemaBehindError(
                f"the schema is at {current or 'nothing'}, this release needs {REVISIONS[-1]}: "
                "run python -m chatbot migrate"
            )
        self._schema_known_good = True


def make_engine(settings: Settings) -> Engine:
    """An engine for the settings' database; no connection is made yet. Error texts never show a statement's values."""
    url = settings.sqlalchemy_url()
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, hide_parameters=True)
        event.listen(engine, "connect", _prepare_sqlite)
        return engine
    arguments = {
        "connect_timeout": 3,
        "application_name": f"chatbot-{settings.colour or settings.release}"[:63],
    }
    engine = create_engine(
        url, connect_args=arguments, hide_parameters=True, pool_size=10, max_overflow=0, pool_timeout=15
    )
    event.listen(engine, "do_connect", connect_by_gevent)
    event.listen(engine, "checkin", _note_time)
    event.listen(engine, "checkout", _check_idle)
    return engine


def _note_time(_connection: Any, record: Any) -> None:
    record.info["idle_since"] = time.monotonic()


def _check_idle(connection: Any, record: Any, _proxy: object) -> None:
    """Replace a connection that has broken while nobody used it. Asking every time would cost a third of the work."""
    if time.monotonic() - record.info.get("idle_since", math.inf) < CHECK_IDLE_SECONDS:
        return
    try:
        connection.execute("")
        connection.rollback()
    except psycopg.OperationalError as error:
        raise DisconnectionError from error


def _prepare_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
