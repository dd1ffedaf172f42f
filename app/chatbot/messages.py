"""The API of messages: ask, edit, regenerate, continue; follow an answer, and stop it."""

import contextlib
import re
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Any, NamedTuple

from flask import Blueprint, Response, request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, Insert, bindparam, insert, null, select, update
from sqlalchemy.orm import Session

from chatbot import metrics, schemas, services
from chatbot.allowance import check_allowance
from chatbot.attachments import files_of, mark_sent
from chatbot.bodies import Content, invalid, read_body, respond
from chatbot.context import turns
from chatbot.conversations import find_conversation, no_conversation
from chatbot.database import CONVERSATIONS, MESSAGES, Conversation, Message, Role, Status, now
from chatbot.generation import Job
from chatbot.generations import Generations
from chatbot.identity import account_id, principal
from chatbot.model import Turn
from chatbot.openapi import EVENTS, operation
from chatbot.problems import Problem, model_problem
from chatbot.statements import Run, through
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


class Head(NamedTuple):
    """A conversation, as far as a question needs it."""

    id: uuid.UUID
    title: str
    model: str | None
    system_prompt: str | None
    current_message_id: uuid.UUID | None


class Said(NamedTuple):
    """One of its messages."""

    id: uuid.UUID
    parent_id: uuid.UUID | None
    role: str
    status: str
    content: str
    attachment_ids: list[str] | None
    created_at: datetime


_mine = CONVERSATIONS.c.id == bindparam("conversation")
_HEAD = select(*(CONVERSATIONS.c[name] for name in Head._fields)).where(
    _mine, CONVERSATIONS.c.account_id == bindparam("account")
)
_SAID = (
    select(*(MESSAGES.c[name] for name in Said._fields))
    .where(MESSAGES.c.conversation_id == bindparam("conversation"))
    .order_by(MESSAGES.c.created_at)
)
_SHOW = (
    update(CONVERSATIONS)
    .where(_mine)
    .values(title=bindparam("heading"), current_message_id=bindparam("shown"), updated_at=bindparam("clock"))
)


def _insertion(count: int) -> Insert:
    """Saves so many messages, whose values are numbered."""

    def row(number: int) -> dict[str, ColumnElement[Any]]:
        values: dict[str, ColumnElement[Any]] = {
            name: bindparam(f"{name}_{number}", type_=MESSAGES.c[name].type) for name in Said._fields
        }
        return values | {
            "conversation_id": bindparam("into", type_=MESSAGES.c.conversation_id.type),
            "model": bindparam("answered_by", type_=MESSAGES.c.model.type) if number == count - 1 else null(),
            "updated_at": values["created_at"],
        }

    return insert(MESSAGES).values([row(number) for number in range(count)])


# An answer alone, or a question with its answer.
_INSERT = {count: _insertion(count) for count in (1, 2)}
_INSERT_AND_SHOW = {
    count: _SHOW.add_cte(insertion.returning(MESSAGES.c.id).cte("said")) for count, insertion in _INSERT.items()
}


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
    database = services.database()
    with database.statements() as run:
        conversation, tree = _look_up(run, conversation_id)
    if body.parent_id is not None:
        parent = tree.get(body.parent_id, Role.ASSISTANT)
        if parent is None:
            raise invalid("parent_id", "is not an answer of this conversation")
    elif "parent_id" in body.model_fields_set:
        parent = None
    else:
        branch = tree.branch(conversation.current_message_id)
        parent = next((message for message in reversed(branch) if message.role == Role.ASSISTANT), None)
    path = tree.path(parent)
    if parent is not None and parent.status == Status.STREAMING:
        path[-1] = _cut_short(parent)
    return _question(conversation, path, body.content, body.attachments)


@blueprint.post("/<uuid:message_id>/edit")
@operation({200: EVENTS}, body=EditedMessage, problems=(400, 413, 415, 422, *ASKING))
def edit(conversation_id: uuid.UUID, message_id: uuid.UUID) -> Response:
    """Ask another question in the place of this one: its sibling, with an answer of its own. Streams like `ask`."""
    body = read_body(EditedMessage)
    _refuse_too_long(body.content)
    with services.database().statements() as run:
        conversation, tree = _look_up(run, conversation_id)
    question = _expect(tree, message_id, Role.USER)
    files = body.attachments
    if files is None:
        files = [uuid.UUID(key) for key in question.attachment_ids or ()]
    return _question(conversation, tree.path(question)[:-1], body.content, files)


@blueprint.post("/<uuid:message_id>/regenerate")
@operation({200: EVENTS}, problems=ASKING)
def regenerate(conversation_id: uuid.UUID, message_id: uuid.UUID) -> Response:
    """Let the model answer the same question once more: a sibling of this answer. Streams like `ask`."""
    with services.database().statements() as run:
        conversation, tree = _look_up(run, conversation_id)
    path = tree.path(_expect(tree, message_id, Role.ASSISTANT))[:-1]
    answer = _new_message(path[-1], Role.ASSISTANT, Status.STREAMING)
    with _writing() as run:
        _check_allowance(run)
        job = _begin(run, conversation, path, [answer])
    return _generate(conversation, answer, job)


@blueprint.post("/<uuid:message_id>/continue")
@operation({200: EVENTS}, problems=(409, *ASKING))
def resume_answer(conversation_id: uuid.UUID, message_id: uuid.UUID) -> Response:
    """Let the model go on with an answer that was cut. Streams like `ask`, from the end of the text that there is."""
    with services.database().statements() as run:
        conversation, tree = _look_up(run, conversation_id)
    answer = _expect(tree, message_id, Role.ASSISTANT)
    with services.database().session() as session:
        run = through(session)
        _check_allowance(run)
        mine = (Message.id == message_id, Message.status.in_(CUT), Message.content != "")
        again = {"status": Status.STREAMING, "finish_reason": None, "error": None, "updated_at": now()}
        cut = session.scalar(update(Message).where(*mine).values(again).returning(Message))
        if cut is None:
            raise Problem(409, "Conflict", "Only an answer that was cut after its first words can be continued.")
        run(_SHOW, conversation=conversation_id, heading=conversation.title, shown=message_id, clock=now())
        job = Job(
            message_id,
            _turns(run, conversation, tree.path(answer), continued=True),
            cut.content,
            account_id(),
            cut.model,
            (cut.prompt_tokens or 0, cut.completion_tokens or 0),
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


def _look_up(run: Run, conversation_id: uuid.UUID) -> tuple[Head, Tree[Said]]:
    """The conversation, if it is the account's own, and its messages; a Problem (404) otherwise.

    Answers whose process has died are interrupted.
    """
    heads = run(_HEAD, conversation=conversation_id, account=account_id())
    if not heads:
        raise no_conversation()
    said = [Said(*row) for row in run(_SAID, conversation=conversation_id)]
    if streaming := [message.id for message in said if message.status == Status.STREAMING]:
        with services.database().session() as session:
            services.generations().reap(session, *streaming)
        said = [Said(*row) for row in run(_SAID, conversation=conversation_id)]
    return Head(*heads[0]), Tree(said)


def _expect(tree: Tree[Said], message_id: uuid.UUID, role: Role) -> Said:
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


def _cut_short(said: Said) -> Said:
    """End an answer because its reader writes on; the message as it was saved."""
    with services.database().session() as session:
        answer = session.get_one(Message, said.id)
    with contextlib.suppress(LogUnavailableError):
        services.generations().stop(answer.id)
        answer = _wait_for_end(answer)
    if answer.status == Status.STREAMING:  # its process does not react: it will notice when it saves next
        with services.database().session() as session:
            mine = (Message.id == answer.id, Message.status == Status.STREAMING)
            session.execute(update(Message).where(*mine).values(status=Status.INTERRUPTED, finish_reason="superseded"))
    return said._replace(content=answer.content)


def _wait_for_end(answer: Message) -> Message:
    """The message as soon as it has ended, or as it is after STOPPED_WITHIN."""
    end = time.monotonic() + STOPPED_WITHIN
    while answer.status == Status.STREAMING and time.monotonic() < end:
        time.sleep(0.05)
        with services.database().session() as session:
            answer = session.scalar(select(Message).where(Message.id == answer.id)) or answer
    return answer


def _question(conversation: Head, path: list[Said], content: str, files: Sequence[uuid.UUID]) -> Response:
    """Save a question behind this path and stream its answer. A Problem (429) where the account has had enough."""
    parent = path[-1] if path else None
    named = conversation.title
    conversation = conversation._replace(title=named or title_of(content))
    with _writing(files) as run:
        _check_allowance(run)
        keys = mark_sent(run, conversation.id, files)
        question = _new_message(parent, Role.USER, Status.COMPLETE, content, keys)
        answer = _new_message(question, Role.ASSISTANT, Status.STREAMING)
        then = None
        if not named and (titles := services.titles()):
            then = partial(titles.improve, account_id(), conversation.id, conversation.title, content)
        job = _begin(run, conversation, [*path, question], [question, answer], then)
    metrics.messages_total.labels("user", job.model).inc()
    return _generate(conversation, answer, job)


def _writing(files: Sequence[uuid.UUID] = ()) -> AbstractContextManager[Run]:
    """Where messages are saved: in a transaction, unless that is one statement anyway."""
    database = services.database()
    return database.statements(transaction=bool(files) or not database.combines)


def _check_allowance(run: Run) -> None:
    asking = principal()
    check_allowance(run, asking.account_id, asking.monthly_token_budget, services.settings())


def _turns(run: Run, conversation: Head, path: Sequence[Said], *, continued: bool = False) -> list[Turn]:
    return turns(services.settings(), conversation.system_prompt, path, files_of(run, path), continued=continued)


def _new_message(
    parent: Said | None, role: Role, status: Status, content: str = "", files: list[str] | None = None
) -> Said:
    """It sorts behind its parent, also where that was written in the same moment."""
    clock = now()
    if parent is not None:
        clock = max(clock, parent.created_at + timedelta(microseconds=1))
    return Said(uuid.uuid4(), parent.id if parent else None, role, status, content, files, clock)


def _begin(
    run: Run, conversation: Head, path: Sequence[Said], new: Sequence[Said], then: Callable[[str], None] | None = None
) -> Job:
    """Save the new messages, of which the last is the answer to be written, and show their branch; what to generate."""
    answer, model = new[-1], services.selection().chosen(conversation.model)
    # Read before anything is saved: an answer without its generation would look as if it were being written.
    sent = _turns(run, conversation, path)
    rows = {
        f"{name}_{number}": value for number, message in enumerate(new) for name, value in message._asdict().items()
    }
    shown = {"conversation": conversation.id, "heading": conversation.title, "shown": answer.id, "clock": now()}
    rows |= {"into": conversation.id, "answered_by": model}
    if services.database().combines:
        run(_INSERT_AND_SHOW[len(new)], **rows, **shown)
    else:
        run(_INSERT[len(new)], **rows)
        run(_SHOW, **shown)
    return Job(answer.id, sent, account_id=account_id(), model=model, then=then)


def _generate(conversation: Head, answer: Said, job: Job) -> Response:
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
    conversation: Head | Conversation, answer: Said | Message, after: int, on_close: Callable[[], None] | None = None
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
