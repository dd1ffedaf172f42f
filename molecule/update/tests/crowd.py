"""Users of the chat, bounded: a few requests a second and a dozen answers that are read token by token, without an end.

Every answer is the count of counting_model.py, so that a missing, doubled or cut token shows at once.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from testbed.chat import ChatClient, ChatError, MovedError

# What molecule/update/prepare.yml tells the model: numbers, a third of a second apart, which makes half a minute.
NUMBERS = 100
WHOLE = "".join(f"{number} " for number in range(NUMBERS))
READERS = 12
REQUESTS_PER_SECOND = 5
PATHS = ("/api/v1/health", "/api/v1/account", "/", "/api/v1/models")
# A stream that was told to go on elsewhere has so long (seconds) to do so; it tries again every half second.
RESUME_WITHIN = 30.0
# One that broke off has come to its end by then (seconds): resumed, and told that its process was killed.
SETTLED_WITHIN = 120.0


@dataclass
class Event:
    """One thing that happened to the host, and what the users saw of it."""

    name: str
    seconds: float = 0.0
    # Seconds until another release answered a request for the first time; 0 where none did.
    switched: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    # What went wrong meanwhile, with the time of day.
    failures: list[str] = field(default_factory=list)

    def row(self) -> str:
        """Return a line of the table."""
        switched = f"{self.switched:.0f}" if self.switched else "-"
        shown = [f"{self.seconds:7.0f}{switched:>9}"] + [f"{self.counts[column]:>12}" for column in COLUMNS]
        return f"{self.name:32}" + "".join(shown)


COLUMNS = ("requests", "failed", "closed", "answers", "moved", "cut", "interrupted", "broken")
HARM = ("failed", "cut", "interrupted", "broken")
HEADER = f"{'event':32}{'seconds':>7}{'switched':>9}" + "".join(f"{column:>12}" for column in COLUMNS)
LEGEND = """switched: seconds until a request was answered by another release;
requests, and failed ones; closed: told when to come again (503 with Retry-After); answers read to their end;
moved: told to go on at the other colour, and did; cut: connections that broke off without that;
interrupted: answers whose process was killed: kept as far as they were read, to be continued;
broken: answers with a missing or doubled token, or without an end"""


class Crowd:
    """Starts with `start`, ends with `stop`; `event` gives what happens meanwhile a row of the table."""

    def __init__(self, domain: str, address: str, authority: Path, account: tuple[str, str]) -> None:
        self._site = {"address": address, "authority": authority, "account": account}
        self._domain = domain
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._counts: Counter[str] = Counter()
        # The release that answered last, and when (monotonic clock) it did so for the first time.
        self._serving: tuple[str, float] = ("", 0.0)
        # Those whose answer broke off and has not come to an end since.
        self.waiting: set[ChatClient] = set()
        self.events: list[Event] = []
        self.failures: list[str] = []
        self.maintenance = False

    def _client(self) -> ChatClient:
        return ChatClient(self._domain, **self._site)

    def look(self, path: str) -> tuple[int, dict[str, str], str]:
        """Return status, headers and body of one request."""
        connection, response = self._client()._send("GET", path, None, {})
        try:
            return response.status, dict(response.getheaders()), response.read().decode()
        finally:
            connection.close()

    def count(self, column: str, failure: str = "") -> None:
        """Count something, and remember what went wrong."""
        with self._lock:
            self._counts[column] += 1
            if failure:
                self.failures.append(f"{time.strftime('%H:%M:%S')} {column}: {failure}"[:300])

    def start(self) -> None:
        """Let them in, one after the other. The first signs in for all: attempts to sign in are limited."""
        assert self.look("/api/v1/account")[0] == 200
        for work in [self._ask] + [self._read] * READERS:
            self._threads.append(threading.Thread(target=work, daemon=True))
            self._threads[-1].start()
            time.sleep(0.3)

    def stop(self) -> None:
        """Let them finish what they read."""
        self._stop.set()
        end = time.monotonic() + 90
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            self.count("broken", "an answer has no end")

    @contextlib.contextmanager
    def event(self, name: str, rest: float = 3.0) -> Iterator[Event]:
        """Count what users see while something happens, `rest` seconds longer, and until what broke off has ended."""
        event, before, began = Event(name), Counter(self._counts), time.monotonic()
        noted = len(self.failures)
        self.events.append(event)
        try:
            yield event
        finally:
            event.seconds = time.monotonic() - began
            event.switched = max(0.0, self._serving[1] - began)
            time.sleep(rest)
            # What broke off belongs to this event, also where it is known only later what became of it.
            end = time.monotonic() + SETTLED_WITHIN
            while self.waiting and time.monotonic() < end:
                time.sleep(0.2)
            event.counts = self._counts - before
            event.failures = self.failures[noted:]

    def assert_unharmed(self, event: Event) -> None:
        """Nothing failed, broke off or was garbled since the event began."""
        harm = {column: event.counts[column] for column in HARM if event.counts[column]}
        assert harm == {}, (event.name, self.failures[-5:])
        assert event.counts["requests"] > 0

    def assert_only_questions_refused(self, event: Event) -> None:
        """A process was killed: its answers broke off, and questions on their way to it at that moment were refused.

        Nobody may repeat those. Whoever only reads notices nothing, and whoever asks a moment later is answered.
        """
        failed = [line for line in event.failures if " failed: " in line]
        assert [line for line in failed if " failed: /" in line] == [], event.name
        assert len({line.split()[0] for line in failed}) <= 3, (event.name, failed)
        assert event.counts["broken"] == 0, (event.name, event.failures[-5:])
        assert event.counts["requests"] > 0

    def table(self) -> str:
        """Return all rows."""
        return "\n".join([HEADER, *(event.row() for event in self.events), LEGEND])

    def _ask(self) -> None:
        client, number = self._client(), 0
        while not self._stop.wait(1 / REQUESTS_PER_SECOND):
            path = PATHS[number % len(PATHS)]
            number += 1
            self.count("requests")
            try:
                status, body = client.call("GET", path)
            except (OSError, ChatError, http.client.HTTPException) as error:
                self.count("failed", f"{path}: {error!r}")
                continue
            if status == 503 and client.retry_after and self.maintenance and path != "/api/v1/health":
                self.count("closed")
            elif status != 200:
                self.count("failed", f"{path}: {status} {body!r}")
            elif path == "/api/v1/health" and body["release"] != self._serving[0]:
                self._serving = (body["release"], time.monotonic())

    def _read(self) -> None:
        while not self._stop.is_set():
            client = self._client()
            self._read_one(client)
            self.waiting.discard(client)

    def _read_one(self, client: ChatClient) -> None:
        """Ask, read the answer to its end, and count what became of it."""
        try:
            text = self._answer(client)
        except (OSError, ChatError, http.client.HTTPException) as error:
            if self.maintenance and not client.message and client.retry_after and "503" in str(error):
                self.count("closed")
                self._stop.wait(1)
            else:
                self.count("failed" if not client.message else "broken", repr(error))
                self._stop.wait(0.5)
            return
        if text == WHOLE:
            self.count("answers")
        elif self._is_kept(client, text):
            self.count("interrupted")
        else:
            self.count("broken", f"{len(text)} characters: …{text[-60:]!r}")

    def _is_kept(self, client: ChatClient, text: str) -> bool:
        """Whether an answer ended because its process was killed, and what was read of it is all that there is."""
        if client.usage.get("finish_reason") != "worker_lost" or not WHOLE.startswith(text):
            return False
        try:
            return bool(client.kept()["content"] == text)
        except (OSError, ChatError, http.client.HTTPException):
            return False

    def _answer(self, client: ChatClient) -> str:
        """Read one answer, over as many connections as it is told to take."""
        text, pieces, end = "", client.ask("Count."), 0.0
        while True:
            try:
                for piece in pieces:
                    text += piece
                    end = 0.0
            except (OSError, ChatError, http.client.HTTPException) as error:
                if not client.message:
                    raise
                if isinstance(error, MovedError):
                    self.count("moved")
                elif not end:
                    self.count("cut", repr(error))
                    self.waiting.add(client)
                end = end or time.monotonic() + RESUME_WITHIN
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)
                pieces = client.resume()
            else:
                return text
