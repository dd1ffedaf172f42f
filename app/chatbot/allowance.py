"""What an account may still let the model do: its budget, the whole service's, and how many answers at once."""

import math
import uuid
from datetime import datetime

from sqlalchemy import bindparam, func, literal_column, select

from chatbot import metrics
from chatbot.database import CONVERSATIONS, MESSAGES, USAGE, now
from chatbot.problems import Problem
from chatbot.settings import Settings
from chatbot.statements import Run
from chatbot.usage import budget_of, month_of

_month, _mine = USAGE.c.month == bindparam("month"), USAGE.c.account_id == bindparam("account")
_tokens = func.coalesce(func.sum(USAGE.c.prompt_tokens + USAGE.c.completion_tokens), 0)
_answers = (
    select(func.count())
    .select_from(MESSAGES.join(CONVERSATIONS, CONVERSATIONS.c.id == MESSAGES.c.conversation_id))
    # As a literal, so that PostgreSQL sees that its small index will do.
    .where(MESSAGES.c.status == literal_column("'streaming'"), CONVERSATIONS.c.account_id == bindparam("account"))
)
# Without and with what everybody has used: that takes reading all of them.
_OWN = select(
    select(_tokens).where(_month, _mine).scalar_subquery().label("used"),
    _answers.scalar_subquery().label("streaming"),
)
_WITH_EVERYBODYS = _OWN.add_columns(select(_tokens).where(_month).scalar_subquery().label("used_by_everybody"))


def check_allowance(run: Run, account_id: uuid.UUID, own_budget: int | None, settings: Settings) -> None:
    """A Problem (429) unless the account may let the model answer once more. One statement, on indexes only.

    What is being written does not count until it ends: the answers in progress may go beyond a budget. And requests
    in the same moment do not see each other: they are as many as the rate limit lets through.
    """
    instance_budget = settings.instance_token_budget
    statement = _OWN if instance_budget is None else _WITH_EVERYBODYS
    (found,) = run(statement, account=account_id, month=month_of(now()))
    budget = budget_of(own_budget, settings)
    if budget is not None and found.used >= budget:
        raise _budget_reached("account_budget", f"Your {budget} tokens of this month are used up.")
    if instance_budget is not None and found.used_by_everybody >= instance_budget:
        raise _budget_reached("instance_budget", "This service's tokens of this month are used up.")
    if found.streaming >= settings.answers_per_account:
        metrics.refusals.labels("answers").inc()
        raise Problem(
            429,
            "Too many answers at once",
            f"The model writes {found.streaming} answers for you already; wait for one of them, or stop it.",
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
