"""Brings the schema to this release's, one process at a time."""

import contextlib
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from chatbot.database import make_engine
from chatbot.settings import Settings

ALEMBIC_INI = Path(__file__).resolve().parent.parent / "alembic.ini"

# Any constant will do, as long as every release uses the same one ("chatbot" in ASCII).
LOCK = 0x63686174626F74
LOCK_TIMEOUT_SECONDS = 60


def migrate(settings: Settings) -> str:
    """Run every missing migration and say in a few words what happened. A schema newer than this release is left alone.

    Under PostgreSQL a session lock makes parallel calls wait for each other, at most LOCK_TIMEOUT_SECONDS;
    sqlalchemy.exc.OperationalError then, and when the database cannot be reached.
    """
    engine = make_engine(settings)
    config = Config(ALEMBIC_INI)
    scripts = ScriptDirectory.from_config(config)
    head = scripts.get_current_head()
    with contextlib.ExitStack() as stack:
        stack.callback(engine.dispose)
        connection = stack.enter_context(engine.connect())
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"))
            connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
            connection.commit()
        before = MigrationContext.configure(connection).get_current_revision()
        connection.rollback()
        if before == head:
            return f"already at {head}"
        if before is not None and before not in {script.revision for script in scripts.walk_revisions()}:
            return f"at {before}, newer than this release's {head}: left alone"
        if connection.dialect.name == "sqlite":
            # It changes a table by making a new one, and dropping the old one would delete what refers to it.
            connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
    return f"upgraded from {before or 'nothing'} to {head}"
