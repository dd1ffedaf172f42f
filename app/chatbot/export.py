"""A conversation as a file: Markdown to read, JSON with everything."""

import re
import unicodedata
from collections.abc import Mapping, Sequence

from chatbot import schemas
from chatbot.database import Role


def markdown(conversation: schemas.WholeConversation) -> str:
    """The branch that is shown, as a text to read."""
    messages = {message.id: message for message in conversation.messages}
    parts = [f"# {_line(conversation.title) or 'Conversation'}", f"*{conversation.created_at:%Y-%m-%d %H:%M} UTC*"]
    if conversation.system_prompt:
        parts += ["## System prompt", conversation.system_prompt]
    for message in (messages[identifier] for identifier in conversation.current_branch):
        parts.append(f"## {_speaker(message)}")
        parts += _files(message.attachments)
        if message.content:
            parts.append(message.content)
        if message.role is Role.ASSISTANT and message.status != "complete":
            parts.append(f"*({message.status})*")
    return "\n\n".join(parts) + "\n"


def _speaker(message: schemas.Message) -> str:
    if message.role is Role.USER:
        return "You"
    return f"Assistant ({_line(message.model)})" if message.model else "Assistant"


def _files(attachments: Sequence[schemas.Attachment]) -> list[str]:
    return [f"*File: {_line(attachment.name)}*" for attachment in attachments]


def _line(text: str) -> str:
    """On one line, and without meaning in Markdown."""
    return re.sub(r"([\\`*_\[\]<>#])", r"\\\1", " ".join(text.split()))


def disposition(title: str, extension: str) -> Mapping[str, str]:
    """The header that makes a browser save the answer under the conversation's title."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-").lower()[:60].strip("-") or "conversation"
    return {"Content-Disposition": f'attachment; filename="{name}.{extension}"'}
