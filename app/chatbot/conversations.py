"""The API of conversations."""

import contextlib
import uuid
from typing import Annotated, Any

from flask import Blueprint
from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from chatbot import services
from chatbot.accounts import owner_name
from chatbot.bodies import read_body, storable
from chatbot.database import Conversation, Message, Status, now
from chatbot.identity import account_id
from chatbot.problems import Problem
from chatbot.streamlog import LogUnavailableError
from chatbot.tree import Tree

blueprint = Blueprint("conversations", __name__, url_prefix="/api/v1/conversations")

LIST_LIMIT = 100

Title = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, max_length=200), AfterValidator(storable)]


class NewConversation(BaseModel):
    """Body of POST /conversations; may be missing altogether."""

    model_config = ConfigDict(extra="forbid")
    title: Title = ""


class ConversationChange(BaseModel):
    """Body of PATCH /conversations/<id>: the branch to show is the one that leads through this message."""

    model_config = ConfigDict(extra="forbid")
    current_message_id: uuid.UUID


@blueprint.post("")
def create() -> tuple[dict[str, Any], int, dict[str, str]]:
    """Start an empty conversation."""
    body = read_body(NewConversation, optional=True)
    conversation = Conversation(
        account_id=account_id(),
        owner=owner_name(account_id()),
        title=body.title,
        id=uuid.uuid4(),
        created_at=now(),
        updated_at=now(),
    )
    with services.database().session() as session:
        session.add(conversation)
    return _conversation_json(conversation), 201, {"Location": f"{blueprint.url_prefix}/{conversation.id}"}


@blueprint.get("")
def index() -> dict[str, Any]:
    """The account's conversations, the most recent first, at most LIST_LIMIT."""
    with services.database().session() as session:
        found = session.scalars(
            select(Conversation)
            .where(Conversation.account_id == account_id())
            .order_by(Conversation.updated_at.desc())
            .limit(LIST_LIMIT)
        ).all()
    return {"conversations": [_conversation_json(conversation) for conversation in found]}


@blueprint.get("/<uuid:conversation_id>")
def show(conversation_id: uuid.UUID) -> dict[str, Any]:
    """A conversation with all its messages in the order they were written; `parent_id` gives the tree.

    `current_branch` names the messages of the branch to show, from the root on.
    """
    with services.database().session() as session:
        conversation, messages = find_with_messages(session, conversation_id)
    return _with_messages(conversation, messages)


@blueprint.patch("/<uuid:conversation_id>")
def change(conversation_id: uuid.UUID) -> dict[str, Any]:
    """Choose the branch to show."""
    body = read_body(ConversationChange)
    with services.database().session() as session:
        conversation, messages = find_with_messages(session, conversation_id)
        if body.current_message_id not in {message.id for message in messages}:
            raise Problem(422, "Invalid request", "current_message_id: is not a message of this conversation")
        conversation.current_message_id = body.current_message_id
    return _with_messages(conversation, messages)


@blueprint.delete("/<uuid:conversation_id>")
def delete(conversation_id: uuid.UUID) -> tuple[str, int]:
    """Delete a conversation and its messages; answers in progress end."""
    running = select(Message.id).where(Message.conversation_id == conversation_id, Message.status == Status.STREAMING)
    with services.database().session() as session:
        conversation = find_conversation(session, conversation_id)
        streaming = session.scalars(running).all()
        session.delete(conversation)
    for message_id in streaming:
        with contextlib.suppress(LogUnavailableError):  # its process notices when it saves next
            services.generations().stop(message_id)
    return "", 204


def find_conversation(session: Session, conversation_id: uuid.UUID) -> Conversation:
    """The conversation, if it exists and is the account's own; a Problem (404) otherwise."""
    conversation = session.scalar(select(Conversation).where(*_accessible(conversation_id)))
    if conversation is None:
        raise _no_conversation()
    return conversation


def find_with_messages(session: Session, conversation_id: uuid.UUID) -> tuple[Conversation, list[Message]]:
    """The same with all messages in the order they were written; where a process has died they are interrupted."""
    both = (
        select(Conversation, Message)
        .outerjoin(Message, Message.conversation_id == Conversation.id)
        .where(*_accessible(conversation_id))
        .order_by(Message.created_at)
    )
    rows = session.execute(both).all()
    if not rows:
        raise _no_conversation()
    messages = [message for _, message in rows if message is not None]
    if streaming := [message.id for message in messages if message.status == Status.STREAMING]:
        services.generations().reap(session, *streaming)
    return rows[0][0], messages


def _accessible(conversation_id: uuid.UUID) -> tuple[ColumnElement[bool], ...]:
    return Conversation.id == conversation_id, Conversation.account_id == account_id()


def _no_conversation() -> Problem:
    return Problem(404, "Not found", "There is no such conversation in this account.")


def _with_messages(conversation: Conversation, messages: list[Message]) -> dict[str, Any]:
    branch = Tree(messages).branch(conversation.current_message_id)
    return _conversation_json(conversation) | {
        "messages": [_message_json(message) for message in messages],
        "current_branch": [str(message.id) for message in branch],
    }


def _conversation_json(conversation: Conversation) -> dict[str, Any]:
    return {
        "id": str(conversation.id),
        "title": conversation.title,
        "created_at": conversation.created_at.isoformat(),
        "updated_at": conversation.updated_at.isoformat(),
    }


def _message_json(message: Message) -> dict[str, Any]:
    return {
        "id": str(message.id),
        "parent_id": str(message.parent_id) if message.parent_id else None,
        "role": message.role,
        "status": message.status,
        "finish_reason": message.finish_reason,
        "content": message.content,
        "model": message.model,
        "usage": {"prompt_tokens": message.prompt_tokens, "completion_tokens": message.completion_tokens},
        "error": message.error,
        "created_at": message.created_at.isoformat(),
    }
