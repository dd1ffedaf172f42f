"""branches and stopped answers"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "b7d02f6a93c5"
down_revision: str | None = "a14ecf1e1141"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

CONSTRAINT = "ck_messages_status"
STREAMING = sa.text("status = 'streaming'")


def upgrade() -> None:
    """Add the branch that each conversation shows, why an answer ended, and a status for what the reader stopped.

    Messages have named their parents since the first migration. An answer without one would be unreachable in the
    tree: it gets the message before it.
    """
    op.add_column("conversations", sa.Column("current_message_id", sa.Uuid(), nullable=True))
    with op.batch_alter_table("messages") as messages:
        messages.add_column(sa.Column("finish_reason", sa.String(length=32), nullable=True))
        messages.drop_constraint(op.f(CONSTRAINT), type_="check")
        messages.create_check_constraint(
            op.f(CONSTRAINT), "status IN ('complete', 'streaming', 'stopped', 'interrupted', 'failed')"
        )
    op.create_index(
        op.f("ix_messages_streaming"), "messages", ["updated_at"], postgresql_where=STREAMING, sqlite_where=STREAMING
    )
    op.execute(
        """
        UPDATE messages SET parent_id = (
            SELECT earlier.id FROM messages AS earlier
            WHERE earlier.conversation_id = messages.conversation_id AND earlier.created_at < messages.created_at
            ORDER BY earlier.created_at DESC LIMIT 1
        )
        WHERE role = 'assistant' AND parent_id IS NULL
        """
    )
    op.execute(
        """
        UPDATE conversations SET current_message_id = (
            SELECT messages.id FROM messages
            WHERE messages.conversation_id = conversations.id
            ORDER BY messages.created_at DESC LIMIT 1
        )
        """
    )


def downgrade() -> None:
    op.drop_index(op.f("ix_messages_streaming"), "messages")
    op.execute("UPDATE messages SET status = 'interrupted' WHERE status = 'stopped'")
    with op.batch_alter_table("messages") as messages:
        messages.drop_constraint(op.f(CONSTRAINT), type_="check")
        messages.create_check_constraint(
            op.f(CONSTRAINT), "status IN ('complete', 'streaming', 'interrupted', 'failed')"
        )
        messages.drop_column("finish_reason")
    op.drop_column("conversations", "current_message_id")
