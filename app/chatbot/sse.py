"""Server-Sent Events: read from the model, written to the browser.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from collections.abc import Mapping

import orjson

# A server that sends more than this (bytes) without ending the event is broken.
MAX_EVENT_BYTES = 1024 * 1024


class EventTooLargeError(ValueError):
    """An event has no end."""


class DataParser:
    """Takes a stream in pieces of any size and gives the data of its events; names and identifiers are skipped."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0
        self._after_cr = False
        self._at_start = True

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that this piece ends. Raises EventTooLargeError."""
        if self._after_cr and piece:
            self._after_cr = False
            piece = piece.removeprefix(b"\n")
        if b"\r" in piece:
            self._after_cr = piece.endswith(b"\r")
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()
        if self._at_start and lines:
            self._at_start = False
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
        events = []
        for line in lines:
            if line.startswith(b"data:"):
                value = line[6:] if line[5:6] == b" " else line[5:]
                self._data.append(value)
                self._size += len(value)
            elif line == b"data":
                self._data.append(b"")
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
                self._size = 0
        if len(self._rest) + self._size > MAX_EVENT_BYTES:
            raise EventTooLargeError("an event has no end")
        return events


def encode(name: str, identifier: int, data: Mapping[str, object]) -> bytes:
    """One event. JSON has no line breaks of its own, so that its data is a single line."""
    return b"event: %s\nid: %d\ndata: %s\n\n" % (name.encode(), identifier, orjson.dumps(data))


PING = b": ping\n\n"
