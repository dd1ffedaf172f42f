"""The API of conversations and their messages."""

import queue
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any, cast

import orjson
from flask import Blueprint, Response, current_app, request
from pydantic import AfterValidator, BaseModel, ConfigDict, Strict, StringConstraints, ValidationError
from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.orm import Session
from werkzeug.exceptions import RequestEntityTooLarge

from chatbot import metrics
from chatbot.database import Conversation, Database, Message, Role, Status, now
from chatbot.generation import Delta, Done, Event, Failed, Generation, Opened
from chatbot.model import Model, ModelError, Turn
from chatbot.problems import Problem
from chatbot.sessions import session_id
from chatbot.settings import Settings

blueprint = Blueprint("conversations", __name__, url_prefix="/api/v1/conversations")

# A silent stream sends a comment this often (seconds): proxies keep it open, and a reader who left is noticed.
PING_EVERY = 10.0
# A streaming message that was not touched for this long has lost its process: three missed heartbeats.
DEAD_AFTER = timedelta(seconds=3 * PING_EVERY)
# A rough lower bound over languages and tokenizers; being wrong only sends fewer old messages.
CHARS_PER_TOKEN = 3
LIST_LIMIT = 100


def _storable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain NUL")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


Title = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, max_length=200), AfterValidator(_storable)]
Content = Annotated[str, Strict(), AfterValidator(_storable), AfterValidator(_not_blank)]


class NewConversation(BaseModel):
    """Body of POST /conversations; may be missing altogether."""

    model_config = ConfigDict(extra="forbid")
    title: Title = ""


class NewMessage(BaseModel):
    """Body of POST …/messages. Without `parent_id` it follows the newest answer; null starts a new tree."""

    model_config = ConfigDict(extra="forbid")
    content: Content
    parent_id: uuid.UUID | None = None


@blueprint.post("")
def create() -> tuple[dict[str, Any], int, dict[str, str]]:
    """Start an empty conversation."""
    body = _read_body(NewConversation, optional=True)
    conversation = Conversation(
        owner=session_id(), title=body.title, id=uuid.uuid4(), created_at=now(), updated_at=now()
    )
    with _database().session() as session:
        session.add(conversation)
    return _conversation_json(conversation), 201, {"Location": f"{blueprint.url_prefix}/{conversation.id}"}


@blueprint.get("")
def index() -> dict[str, Any]:
    """The browser session's conversations, the most recent first, at most LIST_LIMIT; none without a session."""
    owner = session_id()
    if owner is None:
        return {"conversations": []}
    with _database().session() as session:
        found = session.scalars(
            select(Conversation)
            .where(Conversation.owner == owner)
            .order_by(Conversation.updated_at.desc())
            .limit(LIST_LIMIT)
        ).all()
    return {"conversations": [_conversation_json(conversation) for conversation in found]}


@blueprint.get("/<uuid:conversation_id>")
def show(conversation_id: uuid.UUID) -> dict[str, Any]:
    """A conversation with all its messages in the order they were written; `parent_id` gives the tree."""
    with _database().session() as session:
        conversation = _find(session, conversation_id)
        mark_dead_generations(session, conversation_id)
        messages = session.scalars(
            select(Message).where(Message.conversation_id == conversation_id).order_by(Message.created_at)
        ).all()
    return _conversation_json(conversation) | {"messages": [_message_json(message) for message in messages]}


@blueprint.delete("/<uuid:conversation_id>")
def delete(conversation_id: uuid.UUID) -> tuple[str, int]:
    """Delete a conversation and its messages; an answer in progress ends."""
    with _database().session() as session:
        session.delete(_find(session, conversation_id))
    return "", 204


@blueprint.post("/<uuid:conversation_id>/messages")
def post_message(conversation_id: uuid.UUID) -> Response:
    """Save the user's message and stream the model's answer to it as Server-Sent Events.

    `start` (identifiers), `delta` (text), then `done` (status, usage) or `error` (a problem document). An error
    before the model has accepted the question is an ordinary problem response instead.
    """
    settings, model, database = _settings(), cast(Model, current_app.extensions["model"]), _database()
    body = _read_body(NewMessage)
    if len(body.content) > settings.max_message_chars:
        raise Problem(
            422,
            "Message too long",
            f"A message may have {settings.max_message_chars} characters; this one has {len(body.content)}.",
        )

    with database.session() as session:
        conversation = _find(session, conversation_id)
        mark_dead_generations(session, conversation_id)
        messages = session.scalars(
            select(Message).where(Message.conversation_id == conversation_id).order_by(Message.created_at)
        ).all()
        parent = _parent(messages, body)
        if parent is not None and parent.status == Status.STREAMING:
            # Whoever writes on does not wait for the rest, for example after pressing "stop" a moment ago.
            mark_interrupted(session, Message.id == parent.id)
        question, answer = _new_pair(conversation_id, parent, body.content, model.name)
        turns = _turns(settings, messages, parent, body.content)
        conversation.title = conversation.title or _title(body.content)
        conversation.updated_at = now()
        session.add(question)
        session.flush()
        session.add(answer)
    metrics.messages_total.labels("user", model.name).inc()

    generation = Generation(database, model, answer.id, turns, settings.stream_max_seconds)
    generation.start()
    stream = EventStream(
        generation,
        _sse(
            "start",
            {
                "conversation_id": conversation_id,
                "title": conversation.title,
                "message_id": answer.id,
                "user_message_id": question.id,
                "parent_id": question.parent_id,
            },
        ),
    )
    first = stream.wait_for_model()
    if first is not None:
        raise _model_problem(first, message_id=answer.id, user_message_id=question.id)
    return Response(
        stream,
        mimetype="text/event-stream",
        # nginx must pass every event on at once, and nobody may transform or keep it.
        headers={"X-Accel-Buffering": "no", "Cache-Control": "no-store, no-transform"},
    )


class EventStream:
    """A generation as Server-Sent Events. Closing it before the end (the reader left) cancels the generation."""

    def __init__(self, generation: Generation, start: bytes) -> None:
        self._generation = generation
        self._pending = [start]
        self._finished = False
        self._counted = False

    def wait_for_model(self) -> ModelError | None:
        """Wait until the model accepts the question, at most PING_EVERY; the error when it does not."""
        try:
            match self._generation.events.get(timeout=PING_EVERY):
                case Failed(error):
                    return error
                case Opened():
                    pass
                case event:
                    raise AssertionError(f"unexpected {event}")
        except queue.Empty:
            self._generation.heartbeat()
        metrics.open_streams.inc()
        self._counted = True
        return None

    def __iter__(self) -> "EventStream":
        return self

    def __next__(self) -> bytes:
        if self._pending:
            return self._pending.pop()
        if self._finished:
            raise StopIteration
        try:
            return self._encode(self._generation.events.get(timeout=PING_EVERY))
        except queue.Empty:
            self._generation.heartbeat()
            return b": ping\n\n"

    def close(self) -> None:
        """Called by the server after the last event and also when the reader has gone."""
        self._uncount()
        if not self._finished:
            self._generation.cancel()

    def _finish(self, last: bytes) -> bytes:
        self._finished = True
        self._uncount()
        return last

    def _uncount(self) -> None:
        if self._counted:
            self._counted = False
            metrics.open_streams.dec()

    def _encode(self, event: Event) -> bytes:
        match event:
            case Opened():
                return b": the model has accepted the question\n\n"
            case Delta(text):
                return _sse("delta", {"text": text})
            case Done():
                usage = {"prompt_tokens": event.prompt_tokens, "completion_tokens": event.completion_tokens}
                data = {
                    "message_id": self._generation.message_id,
                    "status": event.status,
                    "finish_reason": event.finish_reason,
                    "usage": usage,
                }
                return self._finish(_sse("done", data))
            case Failed(error):
                return self._finish(
                    _sse("error", _model_problem(error, message_id=self._generation.message_id).document())
                )


def mark_dead_generations(session: Session, conversation_id: uuid.UUID) -> None:
    """Mark answers whose process has died (kill -9, power loss) as interrupted; their text is what was saved last."""
    mark_interrupted(session, Message.conversation_id == conversation_id, Message.updated_at < now() - DEAD_AFTER)


def mark_interrupted(session: Session, *which: ColumnElement[bool]) -> None:
    """End streaming answers; a generation that is still alive notices when it saves next."""
    session.execute(update(Message).where(Message.status == Status.STREAMING, *which).values(status=Status.INTERRUPTED))


def _read_body[Body: BaseModel](model: type[Body], *, optional: bool = False) -> Body:
    """The request's body as `model`; a Problem that says what is wrong otherwise."""
    raw = request.get_data()
    if request.content_length is None and len(raw) >= (request.max_content_length or 0):
        raise RequestEntityTooLarge  # werkzeug cuts a chunked body off at the limit without a word
    if optional and not raw:
        return model()
    if request.mimetype != "application/json":
        raise Problem(415, "Unsupported media type", "Send the body as application/json.")
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Problem(400, "Malformed JSON", f"The body is not valid JSON: {error}.") from None
    try:
        return model.model_validate(data)
    except ValidationError as error:
        errors = [
            {"field": ".".join(map(str, item["loc"])) or "body", "message": item["msg"].removeprefix("Value error, ")}
            for item in error.errors()
        ]
        detail = "; ".join(f"{item['field']}: {item['message']}" for item in errors)
        raise Problem(422, "Invalid request", detail, errors=errors) from None


def _find(session: Session, conversation_id: uuid.UUID) -> Conversation:
    """The conversation, if it exists and is the browser session's own or nobody's; a Problem (404) otherwise."""
    mine = or_(Conversation.owner.is_(None), Conversation.owner == session_id())
    conversation = session.scalar(select(Conversation).where(Conversation.id == conversation_id, mine))
    if conversation is None:
        raise Problem(404, "Not found", "There is no such conversation in this session.")
    return conversation


def _parent(messages: Sequence[Message], body: NewMessage) -> Message | None:
    """The answer that the new message follows. A Problem when there is no such answer."""
    answers = {message.id: message for message in messages if message.role == Role.ASSISTANT}
    if body.parent_id is not None:
        parent = answers.get(body.parent_id)
        if parent is None:
            raise Problem(422, "Invalid request", "parent_id: is not an answer of this conversation")
    elif "parent_id" in body.model_fields_set or not answers:
        return None
    else:
        parent = list(answers.values())[-1]
    return parent


def _new_pair(conversation_id: uuid.UUID, parent: Message | None, content: str, model: str) -> tuple[Message, Message]:
    """The user's message and the empty answer to it."""
    clock = now()
    question = Message(
        id=uuid.uuid4(),
        conversation_id=conversation_id,
        parent_id=parent.id if parent else None,
        role=Role.USER,
        status=Status.COMPLETE,
        content=content,
        created_at=clock,
        updated_at=clock,
    )
    clock += timedelta(microseconds=1)  # sorts behind its question
    answer = Message(
        id=uuid.uuid4(),
        conversation_id=conversation_id,
        parent_id=question.id,
        role=Role.ASSISTANT,
        status=Status.STREAMING,
        model=model,
        created_at=clock,
        updated_at=clock,
    )
    return question, answer


def _turns(settings: Settings, messages: Sequence[Message], parent: Message | None, content: str) -> list[Turn]:
    """What the model is sent: the branch that leads to the new message, as much of its end as the context window holds.

    A question without any answer is left out together with it: many chat templates insist on turns that alternate.
    """
    by_id = {message.id: message for message in messages}
    tokens = settings.model_context_tokens - min(settings.model_max_tokens, settings.model_context_tokens // 2)
    room = tokens * CHARS_PER_TOKEN - len(settings.system_prompt or "") - len(content)
    newest_first: list[Turn] = [{"role": "user", "content": content}]
    while parent is not None:
        question = by_id[cast(uuid.UUID, parent.parent_id)]  # an answer always has a question
        if parent.content:
            room -= len(parent.content) + len(question.content)
            if room < 0:
                break
            newest_first += [
                {"role": "assistant", "content": parent.content},
                {"role": "user", "content": question.content},
            ]
        parent = by_id[question.parent_id] if question.parent_id else None
    if settings.system_prompt:
        newest_first.append({"role": "system", "content": settings.system_prompt})
    return newest_first[::-1]


def _title(content: str) -> str:
    """A title from the first message: its first words, at most 60 characters."""
    line = " ".join(content.split())
    return line if len(line) <= 60 else line[:59].rsplit(" ", 1)[0] + "…"


def _model_problem(error: ModelError, **extra: object) -> Problem:
    return Problem(error.status, "The model did not answer", error.detail, retry_after=error.retry_after, **extra)


def _sse(name: str, data: dict[str, object]) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"


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
        "content": message.content,
        "model": message.model,
        "usage": {"prompt_tokens": message.prompt_tokens, "completion_tokens": message.completion_tokens},
        "error": message.error,
        "created_at": message.created_at.isoformat(),
    }


def _database() -> Database:
    return cast(Database, current_app.extensions["database"])


def _settings() -> Settings:
    return cast(Settings, current_app.extensions["settings"])
