"""How many tokens accounts have used, and what they may still use. A month is the calendar's, in UTC."""

import math
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import Connection, func, literal, literal_column, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from chatbot import metrics
from chatbot.database import Conversation, Message, Usage, now
from chatbot.problems import Problem
from chatbot.settings import Settings
from chatbot.tree import CHARS_PER_TOKEN


def month_of(clock: datetime) -> str:
    """The month that a moment belongs to, `2026-11`."""
    return f"{clock:%Y-%m}"


def estimate(chars: int) -> int:
    """About how many tokens a text of so many characters has, where nobody has counted them."""
    return math.ceil(chars / CHARS_PER_TOKEN)


def record(connection: Connection, account_id: uuid.UUID, prompt_tokens: int, completion_tokens: int) -> None:
    """Add to what the account has used this month."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    new = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    statement = insert(Usage).values(month=month_of(now()), account_id=account_id, **new)
    added = {name: getattr(Usage, name) + getattr(statement.excluded, name) for name in new}
    connection.execute(statement.on_conflict_do_update(index_elements=["month", "account_id"], set_=added))


def record_lost(session: Session, messages: Iterable[Message], context_tokens: int) -> None:
    """The same for answers whose process has died: estimated from their texts and from those before them.

    Call it before the messages' token counts change: those of an earlier part, if any, are recorded already.
    """
    used: dict[uuid.UUID, list[int]] = defaultdict(lambda: [0, 0])
    for message in messages:
        conversation = select(Conversation.account_id).where(Conversation.id == message.conversation_id)
        account_id = session.scalar(conversation)
        if account_id is not None:
            earlier = Message.conversation_id == message.conversation_id, Message.created_at < message.created_at
            chars = session.scalar(select(func.sum(func.length(Message.content))).where(*earlier)) or 0
            used[account_id][0] += min(estimate(chars), context_tokens)
            used[account_id][1] += max(0, estimate(len(message.content)) - (message.completion_tokens or 0))
    for account_id in sorted(used):  # in one order everywhere, or two processes wait for each other
        record(session.connection(), account_id, *used[account_id])


def used_by(session: Session, account_id: uuid.UUID) -> tuple[int, int]:
    """The account's prompt and completion tokens this month."""
    mine = Usage.month == month_of(now()), Usage.account_id == account_id
    row = session.execute(select(Usage.prompt_tokens, Usage.completion_tokens).where(*mine)).one_or_none()
    return (row[0], row[1]) if row else (0, 0)


def used_in_month(session: Session, accounts: Sequence[uuid.UUID]) -> dict[uuid.UUID, int]:
    """The tokens of these accounts this month; those without any are left out."""
    theirs = Usage.month == month_of(now()), Usage.account_id.in_(accounts)
    rows = session.execute(select(Usage.account_id, Usage.prompt_tokens + Usage.completion_tokens).where(*theirs))
    return {row[0]: row[1] for row in rows}


def used_by_all(session: Session) -> int:
    """The tokens of all accounts this month, also of those that have been deleted."""
    total = func.sum(Usage.prompt_tokens + Usage.completion_tokens)
    return int(session.scalar(select(total).where(Usage.month == month_of(now()))) or 0)


def budget_of(own: int | None, settings: Settings) -> int | None:
    """An account's tokens a month: its own number or the settings'; None means as many as it likes."""
    return settings.monthly_token_budget if own is None else own


def check_allowance(session: Session, account_id: uuid.UUID, own_budget: int | None, settings: Settings) -> None:
    """A Problem (429) unless the account may let the model answer once more. One statement, on indexes only.

    What is being written does not count until it ends: the answers in progress may go beyond a budget. And requests
    in the same moment do not see each other: they are as many as the rate limit lets through.
    """
    month, mine = Usage.month == month_of(now()), Usage.account_id == account_id
    tokens = func.coalesce(func.sum(Usage.prompt_tokens + Usage.completion_tokens), 0)
    everybodys = select(tokens).where(month).scalar_subquery()
    answers = (
        select(func.count())
        .select_from(Message)
        .join(Conversation, Conversation.id == Message.conversation_id)
        # As a literal, so that PostgreSQL sees that its small index will do.
        .where(Message.status == literal_column("'streaming'"), Conversation.account_id == account_id)
    )
    used, used_by_everybody, streaming = session.execute(
        select(
            select(tokens).where(month, mine).scalar_subquery(),
            literal(0) if settings.instance_token_budget is None else everybodys,
            answers.scalar_subquery(),
        )
    ).one()
    budget = budget_of(own_budget, settings)
    if budget is not None and used >= budget:
        raise _budget_reached("account_budget", f"Your {budget} tokens of this month are used up.")
    if settings.instance_token_budget is not None and used_by_everybody >= settings.instance_token_budget:
        raise _budget_reached("instance_budget", "This service's tokens of this month are used up.")
    if streaming >= settings.answers_per_account:
        metrics.refusals.labels("answers").inc()
        raise Problem(
            429,
            "Too many answers at once",
            f"The model writes {streaming} answers for you already; wait for one of them, or stop it.",
            retry_after=5,
            type="urn:chatbot:streams-limit",
        )


def _budget_reached(reason: str, detail: str) -> Problem:
    metrics.refusals.labels(reason).inc()
    clock = now()
    following = datetime(clock.year + clock.month // 12, clock.month % 12 + 1, 1, tzinfo=clock.tzinfo)
    return Problem(
        429,
        "Budget reached",
        f"{detail} There are new ones from {following:%-d %B} (UTC) on.",
        retry_after=math.ceil((following - clock).total_seconds()),
        type="urn:chatbot:budget-reached",
    )
