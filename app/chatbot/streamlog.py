"""Logs of the answers that are being written: one writer each, any number of readers, none of whom can hold it up.

A log is short-lived and may lose anything: the database has the whole text a few seconds later, and readers know from
the entries' offsets when something is missing. Offsets count characters of the answer, so that "I have the first 200"
can be continued from a log, from the database, or from both.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

# The last entry stays so long (seconds) for readers that are about to ask for it.
KEEP_ENDED_SECONDS = 60
# A reader that lags further behind (entries) loses what follows, and gets it from the database.
READER_ENTRIES = 256


class LogUnavailableError(Exception):
    """The log cannot be reached, or another process has it. The database still knows the text."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A piece of the answer, and the offset of its end. The last entry has the `outcome` (JSON) instead of text."""

    end: int
    text: str
    outcome: bytes | None = None


class Subscription:
    """What one reader still has to read. The log delivers, the reader reads; they may be different threads."""

    def __init__(self, forget: "Callable[[Subscription], None]") -> None:
        self._entries: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._forget = forget
        self._unavailable = False

    def deliver(self, entry: Entry) -> None:
        """Append an entry; drop text where the reader does not keep up."""
        if entry.outcome is not None or self._entries.qsize() < READER_ENTRIES:
            self._entries.put(entry)

    def fail(self) -> None:
        """Make the reader's next `read` raise, once."""
        if not self._unavailable:
            self._unavailable = True
            self._entries.put(None)

    def read(self, wait: float) -> list[Entry]:
        """All entries that are there, at least one; none after `wait` seconds. Raises LogUnavailableError."""
        entries: list[Entry] = []
        try:
            entry = self._entries.get(timeout=wait)
            while entry is not None:
                entries.append(entry)
                entry = self._entries.get_nowait()
        except queue.Empty:
            return entries
        self._unavailable = False
        raise LogUnavailableError

    def close(self) -> None:
        """Deliver nothing any more."""
        self._forget(self)


class StreamLog(Protocol):
    """All logs of an installation. Writing never blocks and never fails; what cannot be written is lost."""

    def open(self, stream: str) -> None:
        """Begin a log."""

    def drop(self, stream: str) -> None:
        """Forget a log that has ended, before one of that name begins. Raises LogUnavailableError."""

    def append(self, stream: str, end: int, text: str) -> None:
        """Add a piece of text that ends at the offset `end`, which has to grow."""

    def trim(self, stream: str, before: int) -> None:
        """Drop the entries that end before this offset: the database has them."""

    def close(self, stream: str, end: int, outcome: bytes) -> None:
        """Add the last entry; the log disappears KEEP_ENDED_SECONDS later."""

    def subscribe(self, stream: str, after: int) -> Subscription:
        """Read what there is and what will come behind the offset `after`."""

    def tail(self, stream: str) -> list[Entry]:
        """The entries that there are now. Raises LogUnavailableError."""

    def request_stop(self, stream: str) -> None:
        """Ask whoever writes this log to stop, in whatever process. Raises LogUnavailableError."""

    def on_stop(self, callback: Callable[[str], object]) -> None:
        """Call this with the name of each log that this process writes and that somebody asks to stop."""


@dataclass(slots=True)
class _Memory:
    entries: list[Entry] = field(default_factory=list)
    readers: list[tuple[Subscription, int]] = field(default_factory=list)  # with their offsets
    ended_at: float | None = None


class MemoryLog:
    """Logs of this process only: for development. Readers in other processes are told that it is unavailable."""

    def __init__(self) -> None:
        self._streams: dict[str, _Memory] = {}
        self._lock = threading.Lock()
        self._stop: Callable[[str], object] = lambda _stream: None

    def open(self, stream: str) -> None:
        clock = time.monotonic()
        with self._lock:
            self._streams = {
                name: memory
                for name, memory in self._streams.items()
                if memory.ended_at is None or clock - memory.ended_at < KEEP_ENDED_SECONDS
            }
            self._streams[stream] = _Memory()

    def drop(self, stream: str) -> None:
        with self._lock:
            self._streams.pop(stream, None)

    def append(self, stream: str, end: int, text: str) -> None:
        self._add(stream, Entry(end, text))

    def trim(self, stream: str, before: int) -> None:
        with self._lock:
            if memory := self._streams.get(stream):
                memory.entries = [entry for entry in memory.entries if entry.end >= before]

    def close(self, stream: str, end: int, outcome: bytes) -> None:
        self._add(stream, Entry(end, "", outcome))

    def subscribe(self, stream: str, after: int) -> Subscription:
        def forget(subscription: Subscription) -> None:
            with self._lock:
                if memory is not None and (subscription, after) in memory.readers:
                    memory.readers.remove((subscription, after))

        subscription = Subscription(forget)
        with self._lock:
            memory = self._streams.get(stream)
            if memory is None:
                subscription.fail()
            else:
                for entry in memory.entries:
                    if entry.end > after or entry.outcome is not None:
                        subscription.deliver(entry)
                memory.readers.append((subscription, after))
        return subscription

    def tail(self, stream: str) -> list[Entry]:
        with self._lock:
            memory = self._streams.get(stream)
            return list(memory.entries) if memory else []

    def request_stop(self, stream: str) -> None:
        with self._lock:
            memory = self._streams.get(stream)
        if memory is None:
            raise LogUnavailableError
        self._stop(stream)

    def on_stop(self, callback: Callable[[str], object]) -> None:
        self._stop = callback

    def _add(self, stream: str, entry: Entry) -> None:
        with self._lock:
            memory = self._streams.get(stream)
            if memory is None or memory.ended_at is not None:
                return
            if entry.outcome is not None:
                memory.ended_at = time.monotonic()
            memory.entries.append(entry)
            for subscription, after in memory.readers:
                if entry.end > after or entry.outcome is not None:
                    subscription.deliver(entry)
