"""The API of messages: ask, edit, regenerate, continue; follow an answer, and stop it."""

import contextlib
import re
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, cast

from flask import Blueprint, Response, request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from chatbot import metrics, schemas, services
from chatbot.allowance import check_allowance
from chatbot.attachments import files_of, mark_sent
from chatbot.bodies import Content, invalid, read_body, respond
from chatbot.context import turns
from chatbot.conversations import find_conversation, find_with_messages
from chatbot.database import CONVERSATIONS, MESSAGES, Conversation, Message, Role, Status, now
from chatbot.generation import Job
from chatbot.generations import Generations
from chatbot.identity import account_id, principal
from chatbot.model import Turn
from chatbot.openapi import EVENTS, operation
from chatbot.problems import Problem, model_problem
from chatbot.streaming import Follower, event_response
from chatbot.streamlog import LogUnavailableError
from chatbot.titles import title_of
from chatbot.tree import Tree

blueprint = Blueprint("messages", __name__, url_prefix="/api/v1/conversations/<uuid:conversation_id>/messages")

# The endpoints that make the model work.
GENERATING = ("messages.ask", "messages.edit", "messages.regenerate", "messages.resume_answer")
# A model that has not accepted the question by then (seconds) is waited for inside the event stream.
ACCEPTED_WITHIN = 10.0
# A new message waits so long (seconds) for the answer it interrupts to be saved.
STOPPED_WITHIN = 3.0
# Endings after which an answer can be continued.
CUT = (Status.STOPPED, Status.INTERRUPTED, Status.FAILED)
LAST_EVENT_ID = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "Identifier of the last event that the reader has; without it the answer comes from its begin.",
    "schema": {"type": "string", "pattern": "^[0-9]{1,9}$"},
}
# The model's troubles, and what every question may meet.
ASKING = (404, 429, 502, 504)

Attachments = Annotated[list[uuid.UUID], Field(max_length=100)]


class NewMessage(BaseModel):
    """Body of POST …/messages. Without `parent_id` it ends the current branch; null starts a new tree."""

    model_config = ConfigDict(extra="forbid")
    content: Content
    parent_id: uuid.UUID | None = None
    attachments: Attachments = []


class EditedMessage(BaseModel):
    """Body of POST …/messages/<id>/edit. Without `attachments` the files of the question stay."""

    model_config = ConfigDict(extra="forbid")
    content: Content
    attachments: Attachments | None = None


@blueprint.post("")
@operation({200: EVENTS}, body=NewMessage, problems=(400, 413, 415, 422, *ASKING))
def ask(conversation_id: uuid.UUID) -> Response:
    """Save the user's message and stream the model's answer to it as Server-Sent Events.

    `start` (identifiers), `delta` (text), then `done` (status, usage) or `error` (a problem document). An error
    before the model has accepted the question is an ordinary problem response instead. `resume` at the end means that
    the server is being replaced: GET …/stream with `Last-Event-ID` goes on where this response ends.
    """
    body = read_body(NewMessage)
    _refuse_too_long(body.content)
    with services.database().session() as session:
        conversation, messages = find_with_messages(session, conversation_id)
        tree = Tree(messages)
        if body.parent_id is not None:
            parent = tree.get(body.parent_id, Role.ASSISTANT)
            if parent is None:
                raise invalid("parent_id", "is not an answer of this conversation")
        elif "parent_id" in body.model_fields_set:
            parent = None
        else:
            branch = tree.branch(conversation.current_message_id)
            parent = next((message for message in reversed(branch) if message.role == Role.ASSISTANT), None)
        if parent is None or parent.status != Status.STREAMING:
            answer, job = _question(session, conversation, tree, parent, body.content, body.attachments)
            parent = None
    if parent is not None:
        parent = _cut_short(parent)
        with services.database().session() as session:
            answer, job = _question(session, conversation, tree, parent, body.content, body.attachments)
    return _generate(conversation, answer, job)


@blueprint.post("/<uuid:message_id>/edit")
@operation({200: EVENTS}, body=EditedMessage, problems=(400, 413, 415, 422, *ASKING))
def edit(conversation_id: uuid.UUID, message_id: uuid.UUID) -> Response:
    """Ask another question in the place of this one: its sibling, with an answer of its own. Streams like `ask`."""
    body = read_body(EditedMessage)
    _refuse_too_long(body.content)
    with services.database().session() as session:
        conversation, messages = find_with_messages(session, conversation_id)
        tree = Tree(messages)
        question = _expect(tree, message_id, Role.USER)
        files = body.attachments
        if files is None:
            files = [uuid.UUID(key) for key in question.attachment_ids or ()]
        answer, job = _question(session, conversation, tree, tree.parent(question), body.content, files)
    return _generate(conversation, answer, job)


@blueprint.post("/<uuid:message_id>/regenerate")
@operation({200: EVENTS}, problems=ASKING)
def regenerate(conversation_id: uuid.UUID, message_id: uuid.UUID) -> Response:
    """Let the model answer the same question once more: a sibling of this answer. Streams like `ask`."""
    with services.database().session() as session:
        conversation, messages = find_with_messages(session, conversation_id)
        tree = Tree(messages)
        question = cast(Message, tree.parent(_expect(tree, message_id, Role.ASSISTANT)))
        _check_allowance(session)
        row = _new_answer(conversation, question)
        _insert(session, conversation, [row], conversation.title)
        path = tree.path(question)
        job = Job(row["id"], _turns(session, conversation, path), account_id=account_id(), model=row["model"])
    return _generate(conversation, Message(**row), job)


@blueprint.post("/<uuid:message_id>/continue")
@operation({200: EVENTS}, problems=(409, *ASKING))
def resume_answer(conversation_id: uuid.UUID, message_id: uuid.UUID) -> Response:
    """Let the model go on with an answer that was cut. Streams like `ask`, from the end of the text that there is."""
    with services.database().session() as session:
        conversation, messages = find_with_messages(session, conversation_id)
        tree = Tree(messages)
        answer = _expect(tree, message_id, Role.ASSISTANT)
        _check_allowance(session)
        mine = (Message.id == message_id, Message.status.in_(CUT), Message.content != "")
        again = {"status": Status.STREAMING, "finish_reason": None, "error": None, "updated_at": now()}
        if not session.execute(update(Message).where(*mine).values(again).returning(Message.id)).all():
            raise Problem(409, "Conflict", "Only an answer that was cut after its first words can be continued.")
        _show(session, conversation, message_id, conversation.title)
        job = Job(
            message_id,
            _turns(session, conversation, tree.path(answer), continued=True),
            answer.content,
            account_id(),
            answer.model,
            (answer.prompt_tokens or 0, answer.completion_tokens or 0),
        )
    with contextlib.suppress(LogUnavailableError):  # its readers follow the database then
        services.stream_log().drop(str(message_id))
    return _generate(conversation, answer, job)


@blueprint.get("/<uuid:message_id>/stream")
@operation({200: EVENTS}, headers=(LAST_EVENT_ID,), problems=(400, 404))
def stream(conversation_id: uuid.UUID, message_id: uuid.UUID) -> Response:
    """Follow an answer: all of it, or what comes behind the event named by `Last-Event-ID`."""
    after = request.headers.get("Last-Event-ID", "0")
    if not re.fullmatch(r"[0-9]{1,9}", after):
        raise Problem(400, "Bad request", "Last-Event-ID: is not the identifier of an event of this stream")
    with services.database().session() as session:
        conversation = find_conversation(session, conversation_id)
        message = _expect_answer(session, conversation_id, message_id)
    leave = services.readers().enter(account_id(), services.settings().streams_per_account)
    metrics.resumed_streams.inc()
    return _stream(conversation, message, int(after), leave)


@blueprint.post("/<uuid:message_id>/stop")
@operation({200: schemas.Stopped, 202: schemas.Stopped}, problems=(404,))
def stop(conversation_id: uuid.UUID, message_id: uuid.UUID) -> Response:
    """Stop an answer and keep its text; its readers get `done`. Says how it has ended, or 202 while it is ending."""
    with services.database().session() as session:
        find_conversation(session, conversation_id)
        message = _expect_answer(session, conversation_id, message_id)
    if message.status == Status.STREAMING:
        try:
            services.generations().stop(message_id)
        except LogUnavailableError:
            raise Problem(
                503, "Service unavailable", "The answer cannot be stopped right now; try again.", retry_after=2
            ) from None
        message = _wait_for_end(message)
    ended = schemas.Stopped(message_id=message_id, status=Status(message.status))
    return respond(ended, 202 if message.status == Status.STREAMING else 200)


def _refuse_too_long(content: str) -> None:
    limit = services.settings().max_message_chars
    if len(content) > limit:
        raise Problem(422, "Message too long", f"A message may have {limit} characters; this one has {len(content)}.")


def _expect(tree: Tree, message_id: uuid.UUID, role: Role) -> Message:
    message = tree.get(message_id, role)
    if message is None:
        kind = "question" if role is Role.USER else "answer"
        raise Problem(404, "Not found", f"There is no such {kind} in this conversation.")
    return message


def _expect_answer(session: Session, conversation_id: uuid.UUID, message_id: uuid.UUID) -> Message:
    message = _load(session, services.generations(), conversation_id, message_id)
    if message is None or message.role != Role.ASSISTANT:
        raise Problem(404, "Not found", "There is no such answer in this conversation.")
    return message


def _load(
    session: Session, generations: Generations, conversation_id: uuid.UUID, message_id: uuid.UUID
) -> Message | None:
    """The message; one whose process has died is marked as interrupted."""
    message = session.scalar(
        select(Message).where(Message.id == message_id, Message.conversation_id == conversation_id)
    )
    if message is not None and message.status == Status.STREAMING:
        generations.reap(session, message_id)
    return message


def _cut_short(answer: Message) -> Message:
    """End an answer because its reader writes on; the message as it was saved."""
    with contextlib.suppress(LogUnavailableError):
        services.generations().stop(answer.id)
        answer = _wait_for_end(answer)
    if answer.status == Status.STREAMING:  # its process does not react: it will notice when it saves next
        with services.database().session() as session:
            mine = (Message.id == answer.id, Message.status == Status.STREAMING)
            session.execute(update(Message).where(*mine).values(status=Status.INTERRUPTED, finish_reason="superseded"))
    return answer


def _wait_for_end(answer: Message) -> Message:
    """The message as soon as it has ended, or as it is after STOPPED_WITHIN."""
    end = time.monotonic() + STOPPED_WITHIN
    while answer.status == Status.STREAMING and time.monotonic() < end:
        time.sleep(0.05)
        with services.database().session() as session:
            answer = session.scalar(select(Message).where(Message.id == answer.id)) or answer
    return answer


def _question(
    session: Session,
    conversation: Conversation,
    tree: Tree,
    parent: Message | None,
    content: str,
    files: Sequence[uuid.UUID],
) -> tuple[Message, Job]:
    """Save a question and the empty answer to it. A Problem (429) where the account has had enough."""
    _check_allowance(session)
    question = _row(
        conversation.id,
        parent,
        role=Role.USER,
        status=Status.COMPLETE,
        content=content,
        model=None,
        attachment_ids=mark_sent(session, conversation.id, files),
    )
    asked = Message(**question)
    answer = _new_answer(conversation, asked)
    named = conversation.title
    title = named or title_of(content)
    _insert(session, conversation, [question, answer], title)
    metrics.messages_total.labels("user", answer["model"]).inc()
    then = None
    if not named and (titles := services.titles()):
        then = partial(titles.improve, account_id(), conversation.id, title, content)
    sent = _turns(session, conversation, [*tree.path(parent), asked])
    return Message(**answer), Job(answer["id"], sent, account_id=account_id(), model=answer["model"], then=then)


def _check_allowance(session: Session) -> None:
    asking = principal()
    check_allowance(session, asking.account_id, asking.monthly_token_budget, services.settings())


def _turns(
    session: Session, conversation: Conversation, path: Sequence[Message], *, continued: bool = False
) -> list[Turn]:
    return turns(services.settings(), conversation, path, files_of(session, path), continued=continued)


def _row(conversation_id: uuid.UUID, parent: Message | None, **values: object) -> dict[str, Any]:
    """A new message. It sorts behind its parent, also where that was written in the same moment."""
    clock = now()
    if parent is not None:
        clock = max(clock, parent.created_at + timedelta(microseconds=1))
    return {
        "id": uuid.uuid4(),
        "conversation_id": conversation_id,
        "parent_id": parent.id if parent else None,
        "created_at": clock,
        "updated_at": clock,
        **values,
    }


def _new_answer(conversation: Conversation, question: Message) -> dict[str, Any]:
    return _row(
        question.conversation_id,
        question,
        role=Role.ASSISTANT,
        status=Status.STREAMING,
        content="",
        model=services.selection().chosen(conversation.model),
        attachment_ids=None,
    )


def _insert(session: Session, conversation: Conversation, rows: list[dict[str, Any]], title: str) -> None:
    """Save new messages and show their branch."""
    session.connection().execute(insert(MESSAGES), rows)
    _show(session, conversation, rows[-1]["id"], title)


def _show(session: Session, conversation: Conversation, message_id: uuid.UUID, title: str) -> None:
    """Make the message's branch the current one."""
    set_committed_value(conversation, "title", title)
    values = {"title": title, "current_message_id": message_id, "updated_at": now()}
    session.connection().execute(update(CONVERSATIONS).where(CONVERSATIONS.c.id == conversation.id).values(values))


def _generate(conversation: Conversation, answer: Message, job: Job) -> Response:
    """Start the generation and stream it. A Problem where the model refuses at once."""
    generation = services.generations().start(job)
    refusal = generation.wait_for_model(ACCEPTED_WITHIN)
    if refusal is not None:
        raise model_problem(
            refusal.status,
            refusal.detail,
            retry_after=refusal.retry_after,
            message_id=answer.id,
            user_message_id=answer.parent_id,
        )
    return _stream(conversation, answer, len(job.text))


def _stream(
    conversation: Conversation, answer: Message, after: int, on_close: Callable[[], None] | None = None
) -> Response:
    """The events of an answer behind its first `after` characters; `on_close` is called when its reader has left."""
    database, generations = services.database(), services.generations()

    def load(message_id: uuid.UUID) -> Message | None:
        with database.session() as session:
            return _load(session, generations, conversation.id, message_id)

    start = {
        "conversation_id": conversation.id,
        "title": conversation.title,
        "message_id": answer.id,
        "user_message_id": answer.parent_id,
    }
    follower = Follower(services.stream_log(), load, answer.id, after, services.drain())
    return event_response(start, after, follower.events(), on_close)
