"""accounts, their sign-ins, tokens, invitations and usage"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "c3e5a7d91b04"
down_revision: str | None = "b7d02f6a93c5"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add the tables of accounts, and to each conversation the account that it belongs to.

    Conversations of releases without accounts keep their `owner`, a browser session, and get no account yet. Whoever
    signs in with that browser takes them along (`accounts.adopt`). Those without owner belong to nobody who could be
    recognised: no request reaches them, `python -m chatbot conversations assign` gives them to an account.
    The release before goes on with its own conversations, and cannot see those of accounts: their `owner` is no
    browser's.
    """
    op.create_table(
        "accounts",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("email", sa.String(length=254), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("password_hash", sa.String(length=200), nullable=True),
        sa.Column("openid_issuer", sa.String(length=200), nullable=True),
        sa.Column("openid_subject", sa.String(length=255), nullable=True),
        sa.Column("monthly_token_budget", sa.BigInteger(), nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("last_sign_in_at", TIME, nullable=True),
        sa.CheckConstraint("role IN ('user', 'admin')", name=op.f("ck_accounts_role")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
        sa.UniqueConstraint("email", name=op.f("uq_accounts_email")),
        sa.UniqueConstraint("openid_issuer", "openid_subject", name=op.f("uq_accounts_openid_issuer_openid_subject")),
    )
    op.create_table(
        "sign_ins",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("address", sa.String(length=45), nullable=False),
        sa.Column("user_agent", sa.String(length=200), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("last_seen_at", TIME, nullable=False),
        _of_account("sign_ins"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sign_ins")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_sign_ins_token_hash")),
    )
    op.create_index(op.f("ix_sign_ins_account_id"), "sign_ins", ["account_id"])
    op.create_table(
        "api_tokens",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("scopes", sa.String(length=100), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=True),
        sa.Column("last_used_at", TIME, nullable=True),
        _of_account("api_tokens"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_tokens")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_api_tokens_token_hash")),
    )
    op.create_index(op.f("ix_api_tokens_account_id"), "api_tokens", ["account_id"])
    op.create_table(
        "invitations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("code_hash", sa.String(length=64), nullable=False),
        sa.Column("email", sa.String(length=254), nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("used_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invitations")),
        sa.UniqueConstraint("code_hash", name=op.f("uq_invitations_code_hash")),
    )
    op.create_index(op.f("ix_invitations_email"), "invitations", ["email"])
    op.create_table(
        "usage",
        sa.Column("month", sa.String(length=7), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("month", "account_id", name=op.f("pk_usage")),
    )
    with op.batch_alter_table("conversations") as conversations:
        conversations.add_column(sa.Column("account_id", sa.Uuid(), nullable=True))
        conversations.create_foreign_key(
            op.f("fk_conversations_account_id"), "accounts", ["account_id"], ["id"], ondelete="CASCADE"
        )
    op.create_index(op.f("ix_conversations_account_id_updated_at"), "conversations", ["account_id", "updated_at"])


def _of_account(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["account_id"], ["accounts.id"], name=op.f(f"fk_{table}_account_id"), ondelete="CASCADE"
    )


def downgrade() -> None:
    op.drop_index(op.f("ix_conversations_account_id_updated_at"), "conversations")
    with op.batch_alter_table("conversations") as conversations:
        conversations.drop_constraint(op.f("fk_conversations_account_id"), type_="foreignkey")
        conversations.drop_column("account_id")
    for table in ("usage", "invitations", "api_tokens", "sign_ins", "accounts"):
        op.drop_table(table)
