"""What the model is sent: the system prompt, as many of the last messages as its context window holds, their files."""

import base64
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from chatbot.model import Turn
from chatbot.settings import Settings
from chatbot.usage import CHARS_PER_TOKEN

log = logging.getLogger(__name__)

# What an image counts for, in characters. Models differ; most scale it down to about a thousand tokens.
CHARS_PER_IMAGE = 3000
CONTINUE = "Your last answer was cut off. Continue it exactly where it ends, without repeating anything."


class Said(Protocol):
    """A message, as far as the model is concerned."""

    @property
    def content(self) -> str:
        """The text."""

    @property
    def attachment_ids(self) -> list[str] | None:
        """The identifiers of a question's files."""


@dataclass(frozen=True, slots=True)
class File:
    """A file that belongs to a question: the begin of its text, or where the image is if the model sees images."""

    name: str
    type: str
    bytes: int
    characters: int
    text: str
    image: Path | None


# By identifier.
type Files = Mapping[str, File]


def room_of(settings: Settings) -> int:
    """How many characters question, history and files may have together."""
    tokens = settings.model_context_tokens - min(settings.model_max_tokens, settings.model_context_tokens // 2)
    return tokens * CHARS_PER_TOKEN


def chars_of(sent: Sequence[Turn]) -> int:
    """How many characters that is, an image as CHARS_PER_IMAGE."""
    chars = 0
    for turn in sent:
        parts = [{"text": turn["content"]}] if isinstance(turn["content"], str) else turn["content"]
        chars += sum(len(part["text"]) if "text" in part else CHARS_PER_IMAGE for part in parts)
    return chars


def turns(
    settings: Settings, own_prompt: str | None, path: Sequence[Said], files: Files, *, continued: bool = False
) -> list[Turn]:
    """What the model is sent for the question at the end of the path, as much of it as the context window holds.

    `own_prompt` is the conversation's system prompt. A question without any answer is left out together with it: many
    chat templates insist on turns that alternate. Where an answer is `continued`, the path ends with it, and the model
    is asked to go on.
    """
    system_prompt = "\n\n".join(filter(None, (settings.system_prompt, own_prompt)))
    room = Room(room_of(settings) - len(system_prompt), settings.max_upload_bytes)
    newest_first: list[Turn] = []
    if continued:
        room.chars -= len(CONTINUE)
        newest_first.append({"role": "user", "content": CONTINUE})
    else:
        newest_first.append({"role": "user", "content": room.question(path[-1], files)})
        path = path[:-1]
    for question, answer in zip(path[-2::-2], path[::-2], strict=True):
        if answer.content:
            if room.chars < len(answer.content) + len(question.content):
                break
            room.chars -= len(answer.content)
            newest_first += [
                {"role": "assistant", "content": answer.content},
                {"role": "user", "content": room.question(question, files)},
            ]
    if system_prompt:
        newest_first.append({"role": "system", "content": system_prompt})
    return newest_first[::-1]


@dataclass(slots=True)
class Room:
    """What is left of the context window (characters), and of the bytes that a request may have in images."""

    chars: int
    image_bytes: int

    def question(self, message: Said, files: Files) -> str | list[dict[str, Any]]:
        """A question with its files in front of it; what has no room is cut, and the model is told so."""
        self.chars -= len(message.content)
        texts: list[str] = []
        images: list[dict[str, Any]] = []
        for file in (files[key] for key in message.attachment_ids or () if key in files):
            if not file.type.startswith("image/"):
                texts.append(self._text(file))
            elif image := self._image(file):
                images.append(image)
            else:
                texts.append(f"[The image {file.name} cannot be shown]")
        text = "\n\n".join([*texts, message.content])
        return [*images, {"type": "text", "text": text}] if images else text

    def _text(self, file: File) -> str:
        shown = file.text[: max(0, self.chars)]
        self.chars -= len(shown)
        cut = f"\n[Cut: {len(shown)} of {file.characters} characters fit.]" if len(shown) < file.characters else ""
        return f"[Begin of the file {file.name}]\n{shown}{cut}\n[End of the file {file.name}]"

    def _image(self, file: File) -> dict[str, Any] | None:
        """The image as the API takes it, None where there is no room for it."""
        if file.image is None or self.chars < CHARS_PER_IMAGE or self.image_bytes < file.bytes:
            return None
        try:
            data = base64.b64encode(file.image.read_bytes()).decode()
        except OSError as error:
            log.warning("an image cannot be read: %s", type(error).__name__)
            return None
        self.chars -= CHARS_PER_IMAGE
        self.image_bytes -= file.bytes
        return {"type": "image_url", "image_url": {"url": f"data:{file.type};base64,{data}"}}
