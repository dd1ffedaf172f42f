"""The shapes of what the API answers; the OpenAPI document is made from them."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from chatbot.database import Role, Status


class Answer(BaseModel):
    """Everything that is answered. Made from database rows too, by attribute."""

    model_config = ConfigDict(from_attributes=True)


class Usage(Answer):
    """Tokens as the model counted them. Null where it did not tell; a cut answer counts its pieces."""

    prompt_tokens: int | None
    completion_tokens: int | None


class TotalUsage(Answer):
    """Tokens of all answers of a conversation."""

    prompt_tokens: int
    completion_tokens: int


class Attachment(Answer):
    """An uploaded file. `characters` is the length of the text that the model can be given of it."""

    id: uuid.UUID
    name: str
    type: str
    bytes: int
    pages: int | None
    characters: int
    created_at: datetime


class Message(Answer):
    """A message; `parent_id` is the one before it in its branch."""

    id: uuid.UUID
    parent_id: uuid.UUID | None
    role: Role
    status: Status
    finish_reason: str | None
    content: str
    model: str | None
    usage: Usage
    error: str | None
    attachments: list[Attachment]
    created_at: datetime


class Conversation(Answer):
    """A conversation without its messages."""

    id: uuid.UUID
    title: str
    model: str
    system_prompt: str | None
    created_at: datetime
    updated_at: datetime


class ConversationList(Answer):
    """A page of conversations, the most recent first. `next_cursor` leads to the next page; null on the last."""

    conversations: list[Conversation]
    next_cursor: str | None


class WholeConversation(Conversation):
    """A conversation with all its messages in the order they were written.

    `current_branch` names the ones to show, `attachments` all files, also those that were not sent yet.
    """

    usage: TotalUsage
    messages: list[Message]
    current_branch: list[uuid.UUID]
    attachments: list[Attachment]


class Stopped(Answer):
    """How an answer has ended, or `streaming` while it is ending."""

    message_id: uuid.UUID
    status: Status


class OfferedModel(Answer):
    """A model to choose from."""

    id: str
    default: bool


class ModelList(Answer):
    """The models to choose from; the default comes first."""

    models: list[OfferedModel]


class Health(Answer):
    """The process lives."""

    status: Literal["alive"]
    release: str


class Readiness(Answer):
    """Whether the process may get traffic, and what each check said."""

    status: Literal["ready", "not ready"]
    release: str
    colour: str | None
    checks: dict[str, str]


class FieldError(Answer):
    """What is wrong with one field."""

    field: str
    message: str


class ProblemDocument(BaseModel):
    """A problem (RFC 9457). `detail` is for a person, `request_id` leads to the log; more members may follow."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    request_id: str | None = None
    errors: list[FieldError] = []
