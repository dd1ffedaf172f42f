"""The shapes of what the API answers; the OpenAPI document is made from them."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from chatbot.database import AccountRole, Role, Status

Scope = Literal["read", "chat", "admin"]


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


class Account(Answer):
    """An account, for its owner."""

    id: uuid.UUID
    email: str
    name: str
    role: AccountRole
    created_at: datetime


class Provider(Answer):
    """The OpenID provider, as the button calls it."""

    name: str


class Limits(Answer):
    """What is refused beyond; `upload_types` are the media types that are accepted, none where nothing is."""

    max_message_chars: int
    max_upload_bytes: int
    max_attachments: int
    upload_types: list[str]
    password_min_length: int


class SessionState(Answer):
    """Who is signed in, and what a client must know before."""

    account: Account | None
    csrf_token: str
    sign_up: Literal["closed", "invitation", "open"]
    openid: Provider | None
    release: str
    demo_model: bool
    limits: Limits


class SignedIn(Answer):
    """The account, and the CSRF token that counts from now on."""

    account: Account
    csrf_token: str


class SignIn(Answer):
    """A browser that is signed in."""

    id: uuid.UUID
    current: bool
    created_at: datetime
    last_seen_at: datetime
    address: str
    user_agent: str


class SignInList(Answer):
    """Browsers that are signed in, the one used last first."""

    sessions: list[SignIn]


class MonthlyUsage(Answer):
    """Tokens of a month (UTC). A budget of null has no limit; `instance_…` is null for all but administrators."""

    month: str
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    budget: int | None
    instance_total_tokens: int | None
    instance_budget: int | None


class ApiToken(Answer):
    """An API token without its secret."""

    id: uuid.UUID
    name: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


class CreatedApiToken(ApiToken):
    """A new API token with its secret."""

    token: str


class ApiTokenList(Answer):
    """The account's API tokens."""

    tokens: list[ApiToken]


class AdministeredAccount(Account):
    """An account, for administrators. `monthly_token_budget` is null where the settings' counts."""

    disabled: bool
    monthly_token_budget: int | None
    total_tokens: int
    last_sign_in_at: datetime | None


class AccountList(Answer):
    """Accounts in the order of their addresses."""

    accounts: list[AdministeredAccount]


class Invitation(Answer):
    """An invitation without its code; without an e-mail address it is for whoever has the code."""

    id: uuid.UUID
    email: str | None
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None
    usable: bool


class CreatedInvitation(Invitation):
    """A new invitation with its code."""

    code: str
    url: str


class InvitationList(Answer):
    """Invitations, the newest first."""

    invitations: list[Invitation]


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
