"""What an account may still let the model do: its budget, the whole service's, and how many answers at once."""

import math
import uuid
from datetime import datetime

from sqlalchemy import func, literal, literal_column, select
from sqlalchemy.orm import Session

from chatbot import metrics
from chatbot.database import Conversation, Message, Usage, now
from chatbot.problems import Problem
from chatbot.settings import Settings
from chatbot.usage import budget_of, month_of


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
