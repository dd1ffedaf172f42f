"""The API of conversations."""

import base64
import binascii
import contextlib
import uuid
from datetime import datetime
from typing import Annotated, Any, Literal

from flask import Blueprint, Response
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)
from sqlalchemy import ColumnElement, literal, or_, select, tuple_
from sqlalchemy.orm import Session

from chatbot import export, schemas, services
from chatbot.accounts import owner_name
from chatbot.bodies import invalid, read_body, read_query, respond, storable
from chatbot.database import Attachment, Conversation, Message, Role, Status, now
from chatbot.identity import account_id
from chatbot.openapi import Media, operation
from chatbot.problems import Problem
from chatbot.removal import Gone, delete_conversations
from chatbot.streamlog import LogUnavailableError
from chatbot.tree import Tree

blueprint = Blueprint("conversations", __name__, url_prefix="/api/v1/conversations")

# The last conversation of a page: when it was used, and its identifier among those of the same moment.
CURSOR = TypeAdapter(tuple[AwareDatetime, uuid.UUID])


def _position(value: object) -> object:
    if not isinstance(value, str) or not value:
        return value or None
    try:
        return CURSOR.validate_json(base64.urlsafe_b64decode(value.encode()))
    except (binascii.Error, UnicodeEncodeError, ValidationError, OverflowError):
        raise ValueError("is not a cursor of this list") from None


Title = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, max_length=200), AfterValidator(storable)]
GivenTitle = Annotated[Title, Field(min_length=1)]
ModelName = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=100), AfterValidator(storable)]
SystemPrompt = Annotated[
    str, StringConstraints(strict=True, strip_whitespace=True, max_length=8000), AfterValidator(storable)
]
Search = Annotated[str, StringConstraints(strip_whitespace=True, max_length=200), AfterValidator(storable)]
Cursor = Annotated[
    tuple[datetime, uuid.UUID] | None, BeforeValidator(_position), WithJsonSchema({"type": "string", "title": "Cursor"})
]


class NewConversation(BaseModel):
    """Body of POST /conversations; may be missing altogether. Without title the first question gives one."""

    model_config = ConfigDict(extra="forbid")
    title: Title = ""
    model: ModelName | None = None
    system_prompt: SystemPrompt | None = None


class ConversationChange(BaseModel):
    """Body of PATCH /conversations/<id>: what is left out stays, null goes back to what a new conversation has.

    `current_message_id` shows the branch that leads through this message.
    """

    model_config = ConfigDict(extra="forbid")
    title: GivenTitle | None = None
    model: ModelName | None = None
    system_prompt: SystemPrompt | None = None
    current_message_id: uuid.UUID | None = None


class Page(BaseModel):
    """Query of GET /conversations. `search` looks in titles and messages; `cursor` is the `next_cursor` of a page."""

    model_config = ConfigDict(extra="forbid")
    search: Search = ""
    limit: Annotated[int, Field(ge=1, le=100)] = 50
    cursor: Cursor = None


class Export(BaseModel):
    """Query of GET /conversations/<id>/export: the branch that is shown, or everything."""

    model_config = ConfigDict(extra="forbid")
    format: Literal["markdown", "json"] = "markdown"


@blueprint.post("")
@operation({201: schemas.Conversation}, body=NewConversation, body_optional=True, problems=(400, 413, 415, 422))
def create() -> Response:
    """Start an empty conversation."""
    body = read_body(NewConversation, optional=True)
    _refuse_unknown(body.model)
    conversation = Conversation(
        id=uuid.uuid4(),
        account_id=account_id(),
        owner=owner_name(account_id()),
        title=body.title,
        model=body.model,
        system_prompt=body.system_prompt or None,
        created_at=now(),
        updated_at=now(),
    )
    with services.database().session() as session:
        session.add(conversation)
    return respond(_summary(conversation), 201, {"Location": f"{blueprint.url_prefix}/{conversation.id}"})


@blueprint.get("")
@operation({200: schemas.ConversationList}, query=Page, problems=(422,))
def index() -> Response:
    """One's own conversations, the most recent first, a page at a time."""
    page = read_query(Page)
    key = (Conversation.updated_at, Conversation.id)
    wanted = select(Conversation).where(Conversation.account_id == account_id())
    if page.search:
        wanted = wanted.where(_mentions(page.search))
    if page.cursor is not None:
        last = [literal(value, column.type) for value, column in zip(page.cursor, key, strict=True)]
        wanted = wanted.where(tuple_(*key) < tuple_(*last))
    ordered = wanted.order_by(*(column.desc() for column in key)).limit(page.limit + 1)
    with services.database().session() as session:
        found = session.scalars(ordered).all()
    shown = found[: page.limit]
    return respond(
        schemas.ConversationList(
            conversations=[_summary(conversation) for conversation in shown],
            next_cursor=_cursor(shown[-1]) if len(found) > page.limit else None,
        )
    )


@blueprint.delete("")
@operation({204: ()})
def delete_all() -> tuple[str, int]:
    """Delete all one's own conversations with everything in them."""
    with services.database().session() as session:
        gone = delete_conversations(session, Conversation.account_id == account_id())
    clean_up(gone)
    return "", 204


@blueprint.get("/<uuid:conversation_id>")
@operation({200: schemas.WholeConversation}, problems=(404,))
def show(conversation_id: uuid.UUID) -> Response:
    """A conversation with all its messages in the order they were written.

    `parent_id` makes them a tree; `current_branch` names the messages of the branch to show, from the root on.
    """
    with services.database().session() as session:
        conversation, messages = find_with_messages(session, conversation_id)
        attachments = _attachments(session, conversation_id)
    return respond(_whole(conversation, messages, attachments))


@blueprint.patch("/<uuid:conversation_id>")
@operation({200: schemas.WholeConversation}, body=ConversationChange, problems=(400, 404, 413, 415, 422))
def change(conversation_id: uuid.UUID) -> Response:
    """Rename a conversation, choose its model, its system prompt or the branch to show."""
    body = read_body(ConversationChange)
    _refuse_unknown(body.model)
    with services.database().session() as session:
        conversation, messages = find_with_messages(session, conversation_id)
        attachments = _attachments(session, conversation_id)
        given = body.model_dump(exclude_unset=True)
        if body.current_message_id and body.current_message_id not in {message.id for message in messages}:
            raise invalid("current_message_id", "is not a message of this conversation")
        for name, value in given.items():
            setattr(conversation, name, value or ("" if name == "title" else None))
    return respond(_whole(conversation, messages, attachments))


@blueprint.delete("/<uuid:conversation_id>")
@operation({204: ()}, problems=(404,))
def remove(conversation_id: uuid.UUID) -> tuple[str, int]:
    """Delete a conversation, its messages and files; answers in progress end."""
    with services.database().session() as session:
        conversation = find_conversation(session, conversation_id)
        gone = delete_conversations(session, Conversation.id == conversation.id)
    clean_up(gone)
    return "", 204


@blueprint.get("/<uuid:conversation_id>/export")
@operation(
    {200: (schemas.WholeConversation, Media("text/markdown", "The branch that is shown."))},
    query=Export,
    problems=(404, 422),
)
def download(conversation_id: uuid.UUID) -> Response:
    """Download a conversation.

    As Markdown the branch that is shown, as JSON all branches.
    """
    wanted = read_query(Export).format
    with services.database().session() as session:
        conversation, messages = find_with_messages(session, conversation_id)
        whole = _whole(conversation, messages, _attachments(session, conversation_id))
    if wanted == "json":
        headers = export.disposition(whole.title, "json")
        return Response(whole.model_dump_json(indent=2), headers=headers, content_type="application/json")
    headers = export.disposition(whole.title, "md")
    return Response(export.markdown(whole), headers=headers, content_type="text/markdown; charset=utf-8")


def find_conversation(session: Session, conversation_id: uuid.UUID) -> Conversation:
    """The conversation, if it exists and is the account's own; a Problem (404) otherwise."""
    conversation = session.scalar(select(Conversation).where(*_accessible(conversation_id)))
    if conversation is None:
        raise no_conversation()
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
        raise no_conversation()
    messages = [message for _, message in rows if message is not None]
    if streaming := [message.id for message in messages if message.status == Status.STREAMING]:
        services.generations().reap(session, *streaming)
    return rows[0][0], messages


def _accessible(conversation_id: uuid.UUID) -> tuple[ColumnElement[bool], ...]:
    return Conversation.id == conversation_id, Conversation.account_id == account_id()


def no_conversation() -> Problem:
    """What whoever asks for a conversation that is not theirs is told."""
    return Problem(404, "Not found", "There is no such conversation in this account.")


def _mentions(words: str) -> ColumnElement[bool]:
    """Title or a message contains the words.

    Without an index: only the account's messages are read, a few megabytes. An index of parts of words (pg_trgm) would
    have to be renewed whenever a running answer is saved.
    """
    own = select(Conversation.id).where(Conversation.account_id == account_id())
    said = select(Message.conversation_id).where(
        Message.conversation_id.in_(own), Message.content.icontains(words, autoescape=True)
    )
    return or_(Conversation.title.icontains(words, autoescape=True), Conversation.id.in_(said))


def _cursor(conversation: Conversation) -> str:
    return base64.urlsafe_b64encode(CURSOR.dump_json((conversation.updated_at, conversation.id))).decode()


def _refuse_unknown(model: str | None) -> None:
    if model is not None and model not in services.selection().names():
        raise invalid("model", "is not offered: GET /api/v1/models lists those that are")


def clean_up(gone: Gone) -> None:
    """End the answers and remove the files of conversations that are deleted."""
    for message_id in gone.answers:
        with contextlib.suppress(LogUnavailableError):  # its process notices when it saves next
            services.generations().stop(message_id)
    services.uploads().remove(gone.files)


def _attachments(session: Session, conversation_id: uuid.UUID) -> list[schemas.Attachment]:
    mine = select(Attachment).where(Attachment.conversation_id == conversation_id).order_by(Attachment.created_at)
    return [schemas.Attachment.model_validate(attachment) for attachment in session.scalars(mine)]


def _summary(conversation: Conversation) -> schemas.Conversation:
    return schemas.Conversation(**_fields(conversation))


def _fields(conversation: Conversation) -> dict[str, Any]:
    return {
        "id": conversation.id,
        "title": conversation.title,
        "model": services.selection().chosen(conversation.model),
        "system_prompt": conversation.system_prompt,
        "created_at": conversation.created_at,
        "updated_at": conversation.updated_at,
    }


def _whole(
    conversation: Conversation, messages: list[Message], attachments: list[schemas.Attachment]
) -> schemas.WholeConversation:
    files = {str(attachment.id): attachment for attachment in attachments}
    return schemas.WholeConversation(
        **_fields(conversation),
        usage=schemas.TotalUsage(
            prompt_tokens=sum(message.prompt_tokens or 0 for message in messages),
            completion_tokens=sum(message.completion_tokens or 0 for message in messages),
        ),
        messages=[_message(message, files) for message in messages],
        current_branch=[message.id for message in Tree(messages).branch(conversation.current_message_id)],
        attachments=attachments,
    )


def _message(message: Message, files: dict[str, schemas.Attachment]) -> schemas.Message:
    return schemas.Message(
        id=message.id,
        parent_id=message.parent_id,
        role=Role(message.role),
        status=Status(message.status),
        finish_reason=message.finish_reason,
        content=message.content,
        model=message.model,
        usage=schemas.Usage(prompt_tokens=message.prompt_tokens, completion_tokens=message.completion_tokens),
        error=message.error,
        attachments=[files[key] for key in message.attachment_ids or () if key in files],
        created_at=message.created_at,
    )
