"""Brings the schema to this release's, one process at a time, and rather fails than keeps the site waiting."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from chatbot.database import make_engine
from chatbot.settings import Settings

ALEMBIC_INI = Path(__file__).resolve().parent.parent / "alembic.ini"

# Any constant will do, as long as every release uses the same one ("chatbot" in ASCII).
LOCK = 0x63686174626F74
# Another migration is waited for so long (seconds).
LOCK_TIMEOUT_SECONDS = 60
# A statement that waits for a table holds up all others behind it, also those of the chat: it gives up after so long
# (seconds).
TABLE_LOCK_SECONDS = 5
# And it may hold the table itself for so long (seconds). What needs longer fills rows in small steps.
STATEMENT_SECONDS = 60


class MigrationError(Exception):
    """A migration was given up. The message is one line: what stands in the way, and what is to be done."""


def migrate(settings: Settings, config: Config | None = None) -> str:
    """Run every missing migration and say in a few words what happened. A schema newer than this release is left alone.

    Each migration is a transaction of its own: where one fails, those before it stay, and a second call goes on with
    it. Under PostgreSQL a session lock makes parallel calls wait for each other. Raises MigrationError after
    LOCK_TIMEOUT_SECONDS, or when a statement exceeds the limits above, and sqlalchemy.exc.SQLAlchemyError otherwise.
    `config` is for tests: Alembic's, with other migrations.
    """
    config = config or Config(ALEMBIC_INI)
    scripts = ScriptDirectory.from_config(config)
    head = scripts.get_current_head()
    with _connection(settings) as connection:
        postgresql = connection.dialect.name == "postgresql"
        if postgresql:
            _lock(connection)
        before = _revision(connection)
        if before == head:
            return f"already at {head}"
        if before is not None and before not in {script.revision for script in scripts.walk_revisions()}:
            return f"at {before}, newer than this release's {head}: left alone"
        if connection.dialect.name == "sqlite":
            # It changes a table by making a new one, and dropping the old one would delete what refers to it.
            connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except OperationalError as error:
            connection.rollback()
            raise _explained(error, _revision(connection)) from None
        connection.commit()
    return f"upgraded from {before or 'nothing'} to {head}"


def pending(settings: Settings, config: Config | None = None) -> list[str]:
    """The revisions that `migrate` would run, in their order; none where the schema is newer. Waits for no lock."""
    scripts = ScriptDirectory.from_config(config or Config(ALEMBIC_INI))
    revisions = [script.revision for script in scripts.walk_revisions()][::-1]
    with _connection(settings) as connection:
        before = _revision(connection)
    if before is None:
        return revisions
    return revisions[revisions.index(before) + 1 :] if before in revisions else []


@contextmanager
def _connection(settings: Settings) -> Iterator[Connection]:
    engine = make_engine(settings)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _revision(connection: Connection) -> str | None:
    revision = MigrationContext.configure(connection).get_current_revision()
    connection.rollback()
    return revision


def _lock(connection: Connection) -> None:
    """Take the lock of all migrations, which the end of the connection gives back; then set the statements' limits."""
    _limit(connection, lock=LOCK_TIMEOUT_SECONDS, statement=LOCK_TIMEOUT_SECONDS * 2)
    try:
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
    except OperationalError as error:
        connection.rollback()
        if not isinstance(error.orig, psycopg.errors.LockNotAvailable):
            raise
        raise MigrationError(
            f"another migration has held the lock for more than {LOCK_TIMEOUT_SECONDS} s ({_holder(connection)}): "
            "nothing was changed. Wait for its end, or end it with SELECT pg_terminate_backend(pid), and try again"
        ) from None
    _limit(connection, lock=TABLE_LOCK_SECONDS, statement=STATEMENT_SECONDS)


def _limit(connection: Connection, *, lock: float, statement: float) -> None:
    """For the session (seconds), not only for one transaction."""
    connection.execute(text(f"SET lock_timeout = {int(lock * 1000)}"))
    connection.execute(text(f"SET statement_timeout = {int(statement * 1000)}"))
    connection.commit()


def _holder(connection: Connection) -> str:
    """Who holds the lock: a process of PostgreSQL, the program, and since when."""
    # A key of 64 bits is shown as two numbers of 32.
    found = connection.execute(
        text(
            "SELECT pid, application_name, to_char(backend_start, 'YYYY-MM-DD HH24:MI:SS TZ') "
            "FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted "
            "AND classid::bigint = :high AND objid::bigint = :low"
        ),
        {"high": LOCK >> 32, "low": LOCK & 0xFFFFFFFF},
    ).first()
    if found is None:
        return "it has ended just now"
    return f"pid {found[0]}, {found[1] or 'a program without name'}, connected since {found[2]}"


def _explained(error: OperationalError, reached: str | None) -> Exception:
    """The error in words where a limit was exceeded; itself otherwise."""
    left = f"the schema stays at {reached or 'nothing'}"
    match error.orig:
        case psycopg.errors.LockNotAvailable():
            return MigrationError(
                f"a migration waited more than {TABLE_LOCK_SECONDS} s for a table that a long transaction uses, and "
                f"gave up so that the chat need not wait: {left}. Look for it in pg_stat_activity (pg_dump, an open "
                "psql), and try again"
            )
        case psycopg.errors.QueryCanceled():
            return MigrationError(
                f"a migration needed more than {STATEMENT_SECONDS} s for one statement and was given up: {left}. Try "
                "again when there is less to do; where that does not help, the migration must work in smaller steps"
            )
    return error
