"""Deleting conversations: their rows, and what has to go with them outside the database."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.orm import Session

from chatbot.database import Attachment, Conversation, Message, Status


@dataclass(frozen=True, slots=True)
class Gone:
    """What belonged to deleted conversations: the answers that were being written, and files that are now nobody's."""

    answers: Sequence[uuid.UUID]
    files: Sequence[uuid.UUID]


def delete_conversations(session: Session, which: ColumnElement[bool]) -> Gone:
    """Delete conversations with their messages. End the answers and remove the files when that is committed."""
    inside = select(Conversation.id).where(which)
    streaming = select(Message.id).where(Message.conversation_id.in_(inside), Message.status == Status.STREAMING)
    files = select(Attachment.id).where(Attachment.conversation_id.in_(inside))
    gone = Gone(session.scalars(streaming).all(), session.scalars(files).all())
    session.execute(delete(Conversation).where(which))
    return gone
