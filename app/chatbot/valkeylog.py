"""The logs of all processes and hosts, in Valkey streams.

A process needs two connections, however many answers it writes and reads: one sends what its generations have written
in the meantime as one batch, one waits for all streams that its readers follow with a single XREAD. An entry's
identifier is `<offset>-0`, that of the last one `<offset>-1`: a reader's Last-Event-ID is a place in the stream.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from valkey import Valkey
from valkey.exceptions import ResponseError, ValkeyError

from chatbot.streamlog import KEEP_ENDED_SECONDS, Entry, LogUnavailableError, Subscription

log = logging.getLogger(__name__)

PREFIX = "chatbot:stream:"
STOPS = "chatbot:stops"
# Entries of the list of stop requests; each is read within a second.
MAX_STOPS = 1000
# A stop request is as old as this (seconds) at most when a process begins to listen.
STOPS_SINCE = 10
# Seconds between two batches written, and between two read: several streams share one round trip.
PACE = 0.02
# XREAD waits this long (milliseconds); less than the connection's time-out.
BLOCK_MS = 1000
# After an error Valkey is left alone this long (seconds); what is written meanwhile is lost.
PAUSE_AFTER_ERROR = 1.0
# More entries of one stream come with the next XREAD.
READ_ENTRIES = 128

type Command = tuple[object, ...]
type Position = tuple[int, int]


class _Reader:
    """A subscription, and how far it was served."""

    def __init__(self, subscription: Subscription, after: int) -> None:
        self.subscription = subscription
        self.position: Position = (after, 0)


class ValkeyLog:
    """The logs in one Valkey. `seconds` is the longest life of a log: longer than any answer takes."""

    def __init__(self, valkey: Valkey, seconds: float) -> None:
        self._pool = valkey.connection_pool
        self._seconds = int(seconds)
        self._lock = threading.Lock()
        self._fresh: set[str] = set()  # opened, nothing written yet
        self._writing: set[str] = set()  # opened and not closed, by this process
        self._pending: list[Command] = []
        self._flushing = False
        self._following = False
        self._waiting = False  # inside XREAD
        self._readers: dict[str, list[_Reader]] = {}
        self._down_until = 0.0
        self._wake_key = f"chatbot:wake:{uuid.uuid4()}"
        self._wake_position = "0"
        self._stops_position = f"{int((time.time() - STOPS_SINCE) * 1000)}-0"
        self._stop: Callable[[str], object] = lambda _stream: None

    def open(self, stream: str) -> None:
        with self._lock:
            self._fresh.add(stream)
            self._writing.add(stream)
        self._follow()

    def drop(self, stream: str) -> None:
        self._ask(("DEL", PREFIX + stream))

    def append(self, stream: str, end: int, text: str) -> None:
        with self._lock:
            self._add(stream, f"{end}-0", "t", text)

    def trim(self, stream: str, before: int) -> None:
        with self._lock:
            self._put(("XTRIM", PREFIX + stream, "MINID", f"{before}-0"))

    def close(self, stream: str, end: int, outcome: bytes) -> None:
        with self._lock:
            self._add(stream, f"{end}-1", "o", outcome)
            self._put(("EXPIRE", PREFIX + stream, KEEP_ENDED_SECONDS))
            self._writing.discard(stream)
            self._fresh.discard(stream)

    def subscribe(self, stream: str, after: int) -> Subscription:
        def forget(_: Subscription) -> None:
            with self._lock:
                readers = self._readers.get(stream, [])
                if reader in readers:
                    readers.remove(reader)
                if not readers:
                    self._readers.pop(stream, None)

        subscription = Subscription(forget)
        reader = _Reader(subscription, after)
        with self._lock:
            self._readers.setdefault(stream, []).append(reader)
            if self._waiting:
                self._waiting = False
                self._put(("XADD", self._wake_key, "MAXLEN", "1", "*", "w", ""), ("EXPIRE", self._wake_key, 3600))
        self._follow()
        return subscription

    def tail(self, stream: str) -> list[Entry]:
        return [_entry(item) for item in self._ask(("XRANGE", PREFIX + stream, "-", "+"))]

    def request_stop(self, stream: str) -> None:
        self._ask(("XADD", STOPS, "MAXLEN", "~", str(MAX_STOPS), "*", "s", stream))

    def on_stop(self, callback: Callable[[str], object]) -> None:
        self._stop = callback

    # --- Writing ---

    def _add(self, stream: str, identifier: str, field: str, value: str | bytes) -> None:
        key = PREFIX + stream
        if stream in self._fresh:
            self._fresh.discard(stream)
            self._put(("XADD", key, identifier, field, value), ("EXPIRE", key, self._seconds))
        else:
            # Not when the key has gone: it would come back without its time to live.
            self._put(("XADD", key, "NOMKSTREAM", identifier, field, value))

    def _put(self, *commands: Command) -> None:
        """Send these with the next batch. The caller holds the lock."""
        self._pending.extend(commands)
        if not self._flushing:
            self._flushing = True
            threading.Thread(target=self._flush, name="log-writer", daemon=True).start()

    def _flush(self) -> None:
        """Send batches until there is nothing to send."""
        while True:
            with self._lock:
                commands, self._pending = self._pending, []
                if not commands:
                    self._flushing = False
                    return
            if time.monotonic() >= self._down_until:
                try:
                    self._look_at(zip(commands, self._exchange(commands), strict=True))
                except ValkeyError as error:
                    self._pause(error)
            time.sleep(PACE)

    def _look_at(self, answers: Iterable[tuple[Command, object]]) -> None:
        """Notice refusals, and streams that have disappeared: evicted, or lost with a restart."""
        for command, answer in answers:
            if isinstance(answer, ResponseError):
                log.warning("live streams: Valkey refused an entry: %s", str(answer).split(" ", 1)[0])
            elif answer is None and command[0] == "XADD":
                stream = str(command[1]).removeprefix(PREFIX)
                with self._lock:
                    if stream in self._writing:
                        self._fresh.add(stream)

    # --- Reading ---

    def _follow(self) -> None:
        with self._lock:
            if self._following:
                return
            self._following = True
        threading.Thread(target=self._read_all, name="log-reader", daemon=True).start()

    def _read_all(self) -> None:
        """Serve all readers and hear stop requests, for as long as anybody reads or writes here."""
        while True:
            with self._lock:
                if not self._readers and not self._writing:
                    self._following = False
                    return
                keys = [self._wake_key, STOPS, *(PREFIX + stream for stream in self._readers)]
                positions = [self._wake_position, self._stops_position]
                for readers in self._readers.values():
                    offset, number = min(reader.position for reader in readers)
                    positions.append(f"{offset}-{number}")
                self._waiting = True
            try:
                answer = self._ask(
                    ("XREAD", "COUNT", READ_ENTRIES, "BLOCK", BLOCK_MS, "STREAMS", *keys, *positions), fail_fast=False
                )
                for key, items in answer or ():
                    self._take(key.decode(), items)
            except LogUnavailableError:
                with self._lock:
                    waiting = [reader for readers in self._readers.values() for reader in readers]
                for reader in waiting:
                    reader.subscription.fail()
                time.sleep(PAUSE_AFTER_ERROR)
            finally:
                self._waiting = False
            time.sleep(PACE)

    def _take(self, key: str, items: list[tuple[bytes, list[bytes]]]) -> None:
        if key == self._wake_key:
            self._wake_position = items[-1][0].decode()
            return
        if key == STOPS:
            self._stops_position = items[-1][0].decode()
            for _, (_, stream) in items:
                if stream.decode() in self._writing:
                    self._stop(stream.decode())
            return
        entries = [(_position(item[0]), _entry(item)) for item in items]
        with self._lock:
            for reader in self._readers.get(key.removeprefix(PREFIX), ()):
                for position, entry in entries:
                    if position > reader.position:
                        reader.position = position
                        reader.subscription.deliver(entry)

    # --- Both ---

    def _ask(self, command: Command, *, fail_fast: bool = True) -> Any:
        """The answer to one command. Raises LogUnavailableError; at once after a recent error, where `fail_fast`."""
        if fail_fast and time.monotonic() < self._down_until:
            raise LogUnavailableError
        try:
            (answer,) = self._exchange([command])
        except ValkeyError as error:
            self._pause(error)
            raise LogUnavailableError from None
        if isinstance(answer, ResponseError):
            log.warning("live streams: Valkey refused a command: %s", str(answer).split(" ", 1)[0])
            raise LogUnavailableError
        return answer

    def _exchange(self, commands: Sequence[Command]) -> list[object]:
        """Send commands in one go; their answers, refusals among them. Raises ValkeyError."""
        connection = self._pool.get_connection("log")
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            answers: list[object] = []
            for _ in commands:
                try:
                    answers.append(connection.read_response())
                except ResponseError as error:
                    answers.append(error)
            return answers
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self._pool.release(connection)

    def _pause(self, error: ValkeyError) -> None:
        clock = time.monotonic()
        if clock >= self._down_until:
            log.warning("live streams are unavailable: %s", type(error).__name__)
        self._down_until = clock + PAUSE_AFTER_ERROR


def _position(identifier: bytes) -> Position:
    offset, _, number = identifier.partition(b"-")
    return int(offset), int(number)


def _entry(item: tuple[bytes, list[bytes]]) -> Entry:
    identifier, (field, value) = item
    end = _position(identifier)[0]
    return Entry(end, value.decode()) if field == b"t" else Entry(end, "", value)
