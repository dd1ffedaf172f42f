"""Alembic's entry: uses the connection on which `chatbot.migrate` holds the lock; developers get one of their own."""

from alembic import context
from chatbot.database import Base, make_engine
from chatbot.settings import load_settings
from sqlalchemy import Connection


def run(connection: Connection) -> None:
    """Run the migrations on this connection, each in a transaction of its own."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with make_engine(load_settings()).begin() as own:
        run(own)
