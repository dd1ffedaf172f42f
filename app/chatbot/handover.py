"""Answers that an ending process has left in the middle: whoever lives claims them and writes on.

The mark is `finish_reason = 'handed_over'` on a message that is still `streaming`. A release that does not know it
takes such a message for one of a dead process, after the lease.
"""

import logging
import random
import uuid
from collections.abc import Callable
from functools import partial

from flask import Flask
from sqlalchemy import bindparam, literal_column, select, update
from sqlalchemy.orm import Session

from chatbot import services
from chatbot.attachments import files_of
from chatbot.context import turns
from chatbot.database import MESSAGES, Conversation, Message, Role, Status, now
from chatbot.generation import HANDED_OVER, Job
from chatbot.generations import LEASE
from chatbot.statements import through
from chatbot.titles import title_of
from chatbot.tree import Tree

log = logging.getLogger(__name__)

_WAITING = select(MESSAGES.c.id).where(
    # As a literal, so that PostgreSQL sees that its small index will do.
    MESSAGES.c.status == literal_column("'streaming'"),
    MESSAGES.c.finish_reason == literal_column(f"'{HANDED_OVER}'"),
    MESSAGES.c.updated_at > bindparam("since"),
)


def take_over(app: Flask) -> int:
    """Continue the answers that wait for somebody; how many this process got. Raises SQLAlchemyError."""
    taken = 0
    with app.app_context():
        waiting = _waiting()
        # Processes that look in the same moment share them, instead of all asking for the same one first.
        random.shuffle(waiting)
        for message_id in waiting:
            if services.drain().begun:
                break
            with services.database().session() as session:
                job = _claim(session, message_id)
            if job is not None:
                services.generations().start(job)
                log.info("answer taken over", extra={"message_id": str(message_id), "position": len(job.text)})
                taken += 1
    return taken


def _waiting() -> list[uuid.UUID]:
    """The answers that nobody writes. One statement on a small index: it is asked twice a second."""
    with services.database().statements() as run:
        return [row.id for row in run(_WAITING, since=now() - LEASE)]


def _claim(session: Session, message_id: uuid.UUID) -> Job | None:
    """What is left to do for the message, which is this process's when the session commits; None if another had it."""
    waiting = Message.id == message_id, Message.status == Status.STREAMING, Message.finish_reason == HANDED_OVER
    mine = update(Message).where(*waiting).values(finish_reason=None, updated_at=now())
    conversation_id = session.scalar(mine.returning(Message.conversation_id))
    if conversation_id is None:
        return None
    conversation = session.get_one(Conversation, conversation_id)
    whole = select(Message).where(Message.conversation_id == conversation_id).order_by(Message.created_at)
    tree = Tree(session.scalars(whole).all())
    answer = tree.get(message_id, Role.ASSISTANT)
    question = tree.parent(answer) if answer else None
    if answer is None or question is None:
        raise AssertionError("an answer without question")
    # Without a first word there is nothing to continue: the question is asked again.
    path = tree.path(answer if answer.content else question)
    return Job(
        message_id,
        turns(
            services.settings(),
            conversation.system_prompt,
            path,
            files_of(through(session), path),
            continued=bool(answer.content),
        ),
        answer.content,
        conversation.account_id,
        answer.model,
        # Counted by the process that has used them.
        (answer.prompt_tokens or 0, answer.completion_tokens or 0),
        _title(conversation, question),
    )


def _title(conversation: Conversation, question: Message) -> Callable[[str], None] | None:
    """What to do after the first answer: the process that began it would have asked for a title."""
    titles, title = services.titles(), conversation.title
    if titles is None or question.parent_id is not None or title != title_of(question.content):
        return None
    if conversation.account_id is None:
        return None
    return partial(titles.improve, conversation.account_id, conversation.id, title, question.content)
