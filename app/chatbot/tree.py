"""The messages of a conversation as a tree: questions and answers in turn, with a branch for each second try."""

import uuid
from collections.abc import Sequence
from typing import Protocol

from chatbot.database import Role


class Node(Protocol):
    """A message, as far as its place is concerned."""

    @property
    def id(self) -> uuid.UUID:
        """Its identifier."""

    @property
    def parent_id(self) -> uuid.UUID | None:
        """The message that it answers or follows."""

    @property
    def role(self) -> str:
        """Who said it."""


class Tree[Message: Node]:
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
