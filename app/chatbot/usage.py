"""How many tokens accounts have used. A month is the calendar's, in UTC."""

import math
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import CTE, bindparam, cast, exists, func, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.dml import ReturningInsert

from chatbot.database import USAGE, Attachment, Conversation, Message, Usage, now
from chatbot.settings import Settings
from chatbot.statements import Run, through

# A rough lower bound over languages and tokenizers; being wrong only sends fewer old messages, or counts some more.
CHARS_PER_TOKEN = 3


def month_of(clock: datetime) -> str:
    """The month that a moment belongs to, `2026-11`."""
    return f"{clock:%Y-%m}"


def estimate(chars: int) -> int:
    """About how many tokens a text of so many characters has, where nobody has counted them."""
    return math.ceil(chars / CHARS_PER_TOKEN)


_NAMES = ("month", "account_id", "prompt_tokens", "completion_tokens")


def _added(new: postgresql.Insert) -> postgresql.Insert:
    """Add to the month's row, where there is one. PostgreSQL and SQLite say it in the same words."""
    sums = {name: USAGE.c[name] + new.excluded[name] for name in ("prompt_tokens", "completion_tokens")}
    return new.on_conflict_do_update(index_elements=["month", "account_id"], set_=sums)


_RECORD = _added(
    postgresql.insert(USAGE).values(
        month=bindparam("now"),
        account_id=bindparam("account"),
        prompt_tokens=bindparam("prompt"),
        completion_tokens=bindparam("completion"),
    )
)


def recording(saved: CTE) -> ReturningInsert[Any]:
    """A statement that saves something, and records what it has used if it was saved: PostgreSQL's only.

    Its parameters are those of `saved` and now, account, used_prompt, used_completion. It gives a row if it has saved.
    """
    given = ("now", "account", "used_prompt", "used_completion")
    values = [cast(bindparam(own), USAGE.c[name].type) for own, name in zip(given, _NAMES, strict=True)]
    new = postgresql.insert(USAGE).from_select(_NAMES, select(*values).where(exists(select(saved.c.id))))
    return _added(new).returning(USAGE.c.month)


def save_and_record(
    run: Run, statement: Executable, values: dict[str, object], account_id: uuid.UUID, prompt: int, completion: int
) -> bool:
    """Run a statement of `recording` with these values of `saved` and so many tokens; whether it has saved."""
    used = {"now": month_of(now()), "account": account_id, "used_prompt": prompt, "used_completion": completion}
    return bool(run(statement, **values, **used))


def record(run: Run, account_id: uuid.UUID, prompt_tokens: int, completion_tokens: int) -> None:
    """Add to what the account has used this month."""
    run(_RECORD, now=month_of(now()), account=account_id, prompt=prompt_tokens, completion=completion_tokens)


def record_lost(session: Session, messages: Iterable[Message], context_tokens: int) -> None:
    """The same for answers whose process has died: estimated from their texts and from what was before them.

    Call it before the messages' token counts change: those of an earlier part, if any, are recorded already.
    """
    used: dict[uuid.UUID, list[int]] = defaultdict(lambda: [0, 0])
    for message in messages:
        conversation = select(Conversation.account_id).where(Conversation.id == message.conversation_id)
        account_id = session.scalar(conversation)
        if account_id is not None:
            earlier = Message.conversation_id == message.conversation_id, Message.created_at < message.created_at
            chars = session.scalar(select(func.sum(func.length(Message.content))).where(*earlier)) or 0
            sent = Attachment.conversation_id == message.conversation_id, Attachment.sent.is_(True)
            chars += session.scalar(select(func.sum(Attachment.characters)).where(*sent)) or 0
            used[account_id][0] += min(estimate(chars), context_tokens)
            used[account_id][1] += max(0, estimate(len(message.content)) - (message.completion_tokens or 0))
    for account_id in sorted(used):  # in one order everywhere, or two processes wait for each other
        record(through(session), account_id, *used[account_id])


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
