"""attachments, and model and system prompt per conversation"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "c3a94be7510d"
down_revision: str | None = "c3e5a7d91b04"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    """Only nullable columns and a new table: the previous release goes on working."""
    op.add_column("conversations", sa.Column("model", sa.String(length=100), nullable=True))
    op.add_column("conversations", sa.Column("system_prompt", sa.Text(), nullable=True))
    op.add_column("messages", sa.Column("attachment_ids", sa.JSON(none_as_null=True), nullable=True))
    op.create_table(
        "attachments",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("conversation_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("type", sa.String(length=100), nullable=False),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("pages", sa.Integer(), nullable=True),
        sa.Column("characters", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("sent", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["conversation_id"], ["conversations.id"], name=op.f("fk_attachments_conversation_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attachments")),
    )
    op.create_index(op.f("ix_attachments_conversation_id_created_at"), "attachments", ["conversation_id", "created_at"])


def downgrade() -> None:
    op.drop_table("attachments")
    op.drop_column("messages", "attachment_ids")
    op.drop_column("conversations", "system_prompt")
    op.drop_column("conversations", "model")
