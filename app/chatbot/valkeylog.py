"""The logs of all processes and hosts, in Valkey streams.

A process needs two connections, however many answers it writes and reads: one sends what its generations have written
in the meantime as one batch, one waits for all streams that its readers follow with a single XREAD. Who reads an answer
that the same process writes need not ask for it: each entry is passed on as soon as Valkey has it. An entry's
identifier is `<offset>-0`, that of the last one `<offset>-1`: a reader's Last-Event-ID is a place in the stream.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
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

    def deliver(self, position: Position, entry: Entry) -> None:
        """Hand the entry on, unless the reader has it."""
        if position > self.position:
            self.position = position
            self.subscription.deliver(entry)


class ValkeyLog:
    """The logs in one Valkey. `seconds` is the longest life of a log: longer than any answer takes."""

    def __init__(self, valkey: Valkey, seconds: float) -> None:
        self._pool = valkey.connection_pool
        self._seconds = int(seconds)
        self._lock = threading.Lock()
        self._fresh: set[str] = set()  # opened, nothing written yet
        self._writing: set[str] = set()  # opened and not closed, by this process
        self._written: dict[str, Position] = {}  # what Valkey has of these, until it has the last entry
        self._pending: list[Command] = []
        self._flushing = False
        self._following = False
        self._waiting = False  # inside XREAD
        self._readers: dict[str, list[_Reader]] = {}  # that are served by XREAD
        self._near: dict[str, list[_Reader]] = {}  # that are served while writing
        self._down_until = 0.0
        self._wake_key = f"chatbot:wake:{uuid.uuid4()}"
        self._wake_position = "0"
        self._stops_position = f"{int((time.time() - STOPS_SINCE) * 1000)}-0"
        self._stop: Callable[[str], object] = lambda _stream: None

    def open(self, stream: str) -> None:
        with self._lock:
            self._fresh.add(stream)
            self._writing.add(stream)
            self._written[stream] = (0, 0)
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
                for group in (self._readers, self._near):
                    _leave(group, stream, reader)

        subscription = Subscription(forget)
        reader = _Reader(subscription, after)
        with self._lock:
            near = self._is_near(stream, reader)
            (self._near if near else self._readers).setdefault(stream, []).append(reader)
            if self._waiting and not near:
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
            if not self._send(commands):
                self._fail(self._near)
            self._forget_ended(commands)
            time.sleep(PACE)

    def _send(self, commands: list[Command]) -> bool:
        """Whether they reached Valkey."""
        if time.monotonic() < self._down_until:
            return False
        try:
            self._look_at(zip(commands, self._exchange(commands), strict=True))
        except ValkeyError as error:
            self._pause(error)
            return False
        return True

    def _look_at(self, answers: Iterable[tuple[Command, object]]) -> None:
        """Serve the readers in this process; notice refusals, and streams that were evicted or lost with a restart."""
        with self._lock:
            for command, answer in answers:
                if isinstance(answer, ResponseError):
                    log.warning("live streams: Valkey refused an entry: %s", str(answer).split(" ", 1)[0])
                elif command[0] == "XADD" and command[1] != self._wake_key:
                    stream = str(command[1]).removeprefix(PREFIX)
                    if answer is not None:
                        self._pass_on(stream, *command[-3:])
                    elif stream in self._writing:
                        self._fresh.add(stream)

    def _pass_on(self, stream: str, identifier: Any, field: Any, value: Any) -> None:
        """Give this entry, which Valkey has now, to the readers in this process. The caller holds the lock."""
        if stream in self._fresh or stream not in self._written:
            return  # of an earlier log of this name, or the end of a log whose process has died
        end, _, number = identifier.partition("-")
        position = int(end), int(number)
        self._written[stream] = position
        readers = self._near.get(stream)
        if readers:
            entry = Entry(position[0], value) if field == "t" else Entry(position[0], "", value)
            for reader in readers:
                reader.deliver(position, entry)

    def _forget_ended(self, commands: Iterable[Command]) -> None:
        """Whatever became of these, their last entries were the last."""
        with self._lock:
            for command in commands:
                if command[0] == "XADD" and command[-2] == "o":
                    stream = str(command[1]).removeprefix(PREFIX)
                    if stream not in self._writing:  # it may have begun again
                        self._written.pop(stream, None)

    def _is_near(self, stream: str, reader: _Reader) -> bool:
        """Whether the reader has all of this stream that Valkey has, and the rest is written here."""
        written = self._written.get(stream)
        return written is not None and reader.position >= written

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
                self._fail(self._readers)
                self._fail(self._near)
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
            for _, (_, name) in items:
                if name.decode() in self._writing:
                    self._stop(name.decode())
            return
        entries = [(_position(item[0]), _entry(item)) for item in items]
        stream = key.removeprefix(PREFIX)
        with self._lock:
            for reader in list(self._readers.get(stream, ())):
                for position, entry in entries:
                    reader.deliver(position, entry)
                if self._is_near(stream, reader):
                    _leave(self._readers, stream, reader)
                    self._near.setdefault(stream, []).append(reader)

    # --- Both ---

    def _fail(self, group: Mapping[str, Sequence[_Reader]]) -> None:
        """Tell these readers that the log is unavailable."""
        with self._lock:
            waiting = [reader for readers in group.values() for reader in readers]
        for reader in waiting:
            reader.subscription.fail()

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


def _leave(group: dict[str, list[_Reader]], stream: str, reader: _Reader) -> None:
    readers = group.get(stream, [])
    if reader in readers:
        readers.remove(reader)
        if not readers:
            del group[stream]


def _position(identifier: bytes) -> Position:
    offset, _, number = identifier.partition(b"-")
    return int(offset), int(number)


def _entry(item: tuple[bytes, list[bytes]]) -> Entry:
    identifier, (field, value) = item
    end = _position(identifier)[0]
    return Entry(end, value.decode()) if field == b"t" else Entry(end, "", value)
