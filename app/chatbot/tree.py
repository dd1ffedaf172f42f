"""The messages of a conversation as a tree: questions and answers in turn, with a branch for each second try."""

import uuid
from collections.abc import Sequence

from chatbot.database import Message, Role
from chatbot.model import Turn
from chatbot.settings import Settings
from chatbot.usage import CHARS_PER_TOKEN


class Tree:
    """All messages of one conversation, given in the order they were written."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self._by_id = {message.id: message for message in messages}
        self._newest_child = {message.parent_id: message for message in messages}

    def get(self, message_id: uuid.UUID, role: Role) -> Message | None:
        """The message, if it exists and is of that role."""
        message = self._by_id.get(message_id)
        return message if message is not None and message.role == role else None

    def parent(self, message: Message) -> Message | None:
        """The message that this one answers or follows."""
        return None if message.parent_id is None else self._by_id.get(message.parent_id)

    def path(self, message: Message | None) -> list[Message]:
        """From the root to this message."""
        path: list[Message] = []
        while message is not None:
            path.append(message)
            message = self.parent(message)
        return path[::-1]

    def branch(self, current: uuid.UUID | None) -> list[Message]:
        """The branch that goes through the message `current`, and from there on to the newest; newest without one."""
        message = self._by_id.get(current) if current else None
        if message is None:
            message = list(self._by_id.values())[-1] if self._by_id else None
        while message is not None and message.id in self._newest_child:
            message = self._newest_child[message.id]
        return self.path(message)


def turns(settings: Settings, path: Sequence[Message], *, continued: bool = False) -> list[Turn]:
    """What the model is sent for the question at the end of the path, as much of it as the context window holds.

    A question without any answer is left out together with it: many chat templates insist on turns that alternate.
    Where an answer is `continued`, the path ends with it, and the model is asked to go on.
    """
    tokens = settings.model_context_tokens - min(settings.model_max_tokens, settings.model_context_tokens // 2)
    room = tokens * CHARS_PER_TOKEN - len(settings.system_prompt or "")
    newest_first: list[Turn] = []
    if continued:
        newest_first.append({"role": "user", "content": CONTINUE})
    else:
        newest_first.append({"role": "user", "content": path[-1].content})
        path = path[:-1]
    room -= len(newest_first[0]["content"])
    for question, answer in zip(path[-2::-2], path[::-2], strict=True):
        if answer.content:
            room -= len(answer.content) + len(question.content)
            if room < 0:
                break
            newest_first += [
                {"role": "assistant", "content": answer.content},
                {"role": "user", "content": question.content},
            ]
    if settings.system_prompt:
        newest_first.append({"role": "system", "content": settings.system_prompt})
    return newest_first[::-1]


CONTINUE = "Your last answer was cut off. Continue it exactly where it ends, without repeating anything."
