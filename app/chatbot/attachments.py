"""The API of uploaded files, and what the model gets of them."""

import contextlib
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence

from flask import Blueprint, Response, request, send_file
from sqlalchemy import Integer, bindparam, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from chatbot import schemas, services
from chatbot.bodies import invalid, respond
from chatbot.context import File, Files, Said, room_of
from chatbot.conversations import find_conversation
from chatbot.database import ATTACHMENTS, Attachment, Conversation, now
from chatbot.identity import account_id
from chatbot.openapi import FILE, Upload, operation
from chatbot.problems import Problem
from chatbot.statements import Run

blueprint = Blueprint("attachments", __name__, url_prefix="/api/v1")

# What the multipart format adds to a file.
FORM_BYTES = 16 * 1024


@blueprint.post("/conversations/<uuid:conversation_id>/attachments")
@operation({201: schemas.Attachment}, body=Upload, problems=(400, 404, 409, 413, 415, 422, 429, 501, 507))
def upload(conversation_id: uuid.UUID) -> Response:
    """Upload a file for this conversation.

    Text, Markdown, CSV or PDF; images where the model sees them. The type is decided by the content.
    """
    settings, uploads = services.settings(), services.uploads()
    with services.database().session() as session:
        find_conversation(session, conversation_id)
        _refuse_too_many(session, conversation_id)
    if request.mimetype != "multipart/form-data":
        raise Problem(415, "Unsupported media type", "Send the file as multipart/form-data.")
    request.max_content_length = settings.max_upload_bytes + FORM_BYTES
    file = request.files.get("file")
    if file is None:
        raise invalid("file", "Field required")
    attachment = Attachment(id=uuid.uuid4(), conversation_id=conversation_id, name=clean_name(file.filename or ""))
    with _gone_unless_kept(attachment.id):
        attachment.bytes = uploads.save(file, attachment.id)
        found = uploads.examine(attachment.id, attachment.name)
        attachment.type, attachment.pages = found.type, found.pages
        attachment.text, attachment.characters = found.text, len(found.text)
        attachment.sent, attachment.created_at = False, now()
        try:
            with services.database().session() as session:
                _refuse_too_many(session, conversation_id)
                session.add(attachment)
        except IntegrityError:
            raise Problem(404, "Not found", "The conversation was deleted meanwhile.") from None
    location = f"{blueprint.url_prefix}/attachments/{attachment.id}/content"
    return respond(schemas.Attachment.model_validate(attachment), 201, {"Location": location})


@blueprint.get("/attachments/<uuid:attachment_id>/content")
@operation({200: FILE}, problems=(404, 501))
def content(attachment_id: uuid.UUID) -> Response:
    """Download a file as it was uploaded."""
    with services.database().session() as session:
        attachment = _find(session, attachment_id)
    try:
        response = send_file(
            services.uploads().path(attachment.id),
            attachment.type,
            as_attachment=True,
            download_name=attachment.name,
            conditional=False,
        )
    except FileNotFoundError:
        raise Problem(404, "Not found", "The file is no longer on this host.") from None
    # A browser must not run it, should somebody open it nevertheless.
    response.headers["Content-Security-Policy"] = "sandbox; default-src 'none'"
    return response


@blueprint.delete("/attachments/<uuid:attachment_id>")
@operation({204: ()}, problems=(404, 409))
def remove(attachment_id: uuid.UUID) -> tuple[str, int]:
    """Delete a file that was not sent yet; with a message it stays as long as the conversation."""
    with services.database().session() as session:
        attachment = _find(session, attachment_id)
        unsent = (Attachment.id == attachment.id, Attachment.sent.is_(False))
        if not session.execute(delete(Attachment).where(*unsent).returning(Attachment.id)).all():
            raise Problem(409, "Conflict", "The file is part of a message; it goes with the conversation.")
    services.uploads().remove([attachment_id])
    return "", 204


_MARK_SENT = (
    update(ATTACHMENTS)
    .where(ATTACHMENTS.c.id == bindparam("file"), ATTACHMENTS.c.conversation_id == bindparam("conversation"))
    .values(sent=True)
    .returning(ATTACHMENTS.c.id)
)
_FILE = select(
    *(ATTACHMENTS.c[name] for name in ("name", "type", "bytes", "characters")),
    func.substr(ATTACHMENTS.c.text, 1, bindparam("room", type_=Integer)).label("text"),
).where(ATTACHMENTS.c.id == bindparam("file"))


def mark_sent(run: Run, conversation_id: uuid.UUID, identifiers: Sequence[uuid.UUID]) -> list[str] | None:
    """Make these files part of a message. A Problem (422) where one is not of this conversation."""
    wanted = list(dict.fromkeys(identifiers))
    for identifier in wanted:
        if not run(_MARK_SENT, file=identifier, conversation=conversation_id):
            raise invalid("attachments", "is not a file of this conversation")
    return [str(identifier) for identifier in wanted] or None


def files_of(run: Run, path: Iterable[Said]) -> Files:
    """The files that belong to the questions of a path, with as much of their texts as the model can take."""
    settings, uploads = services.settings(), services.uploads()
    files = {}
    for key in (key for message in path for key in message.attachment_ids or ()):
        for row in run(_FILE, file=uuid.UUID(key), room=room_of(settings)):
            files[key] = File(
                name=row.name,
                type=row.type,
                bytes=row.bytes,
                characters=row.characters,
                text=row.text,
                image=uploads.path(uuid.UUID(key)) if settings.model_vision and settings.data_directory else None,
            )
    return files


def clean_name(name: str) -> str:
    """The name of a file without its directories and without what could deceive a reader; never empty."""
    name = re.split(r"[/\\]", name)[-1]
    name = " ".join("".join(char if char.isprintable() else " " for char in name).split())
    # The end is kept: it says what kind of file it is.
    return name[-200:].strip(". ") or "file"


def _find(session: Session, attachment_id: uuid.UUID) -> Attachment:
    mine = Attachment.id == attachment_id, Conversation.account_id == account_id()
    found = select(Attachment).join(Conversation, Conversation.id == Attachment.conversation_id).where(*mine)
    attachment = session.scalar(found)
    if attachment is None:
        raise Problem(404, "Not found", "There is no such file in this account.")
    return attachment


def _refuse_too_many(session: Session, conversation_id: uuid.UUID) -> None:
    limit = services.settings().max_attachments
    mine = select(func.count()).select_from(Attachment).where(Attachment.conversation_id == conversation_id)
    if (session.scalar(mine) or 0) >= limit:
        raise Problem(409, "Too many files", f"A conversation may have {limit} files.")


@contextlib.contextmanager
def _gone_unless_kept(identifier: uuid.UUID) -> Iterator[None]:
    """Remove the file when what follows fails."""
    try:
        yield
    except BaseException:
        services.uploads().remove([identifier])
        raise
