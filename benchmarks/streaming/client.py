"""The readers of the benchmark: open all streams at the same moment and print what arrived as JSON.

`python client.py <port>` reads a line of JSON that says what to ask: for each of the `streams` its path and the API
token, null where the server wants none, and the `body` of all. It says `ready` and begins with the next line. Times are
in seconds.
"""

import asyncio
import json
import re
import sys
import time
from typing import cast

from upstream import STAMPS_PER_SECOND, TOKENS

TOKEN = re.compile(rb"(\d{8}) ")
# A stream that has not ended by then counts as failed (seconds).
PATIENCE = 120


def request(path: str, token: str | None, body: bytes) -> bytes:
    """The request of one stream."""
    head = f"POST {path} HTTP/1.1\r\nHost: benchmark\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    if token is not None:
        head += f"\r\nAuthorization: Bearer {token}"
    return head.encode() + b"\r\nConnection: close\r\n\r\n" + body


class Reader(asyncio.Protocol):
    """One stream: when each token left the model and when it arrived."""

    def __init__(self, question: bytes) -> None:
        self._question = question
        self._rest = b""
        self._end = b""
        self.sent = 0.0
        self.stamps: list[int] = []
        self.arrivals: list[float] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.sent = time.monotonic()
        cast(asyncio.Transport, transport).write(self._question)

    def data_received(self, data: bytes) -> None:
        arrived = time.monotonic()
        data = self._rest + data
        last = 0
        for found in TOKEN.finditer(data):
            self.stamps.append(int(found[1]))
            self.arrivals.append(arrived)
            last = found.end()
        self._rest = data[max(last, len(data) - 8) :]
        self._end = (self._end + data)[-300:]

    def connection_lost(self, _: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def complete(self) -> bool:
        """Whether every token arrived, once and in order, and the end was told."""
        in_order = all(a < b for a, b in zip(self.stamps, self.stamps[1:], strict=False))
        return len(self.stamps) == TOKENS and in_order and b"event: done" in self._end

    def jitters(self) -> list[float]:
        """How much each gap between two tokens differs from the one that the model made."""
        left = [number / STAMPS_PER_SECOND for number in self.stamps]
        return [abs((self.arrivals[n] - self.arrivals[n - 1]) - (left[n] - left[n - 1])) for n in range(1, len(left))]


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


async def main(port: int) -> None:
    plan = json.loads(sys.stdin.readline())
    body = json.dumps(plan["body"]).encode()
    questions = [request(path, token, body) for path, token in plan["streams"]]
    print("ready", flush=True)
    sys.stdin.readline()
    loop = asyncio.get_running_loop()
    readers = [Reader(question) for question in questions]
    await asyncio.gather(*(loop.create_connection(lambda r=reader: r, "127.0.0.1", port) for reader in readers))
    await asyncio.wait([reader.ended for reader in readers], timeout=PATIENCE)
    begun = [reader for reader in readers if reader.arrivals]
    first = [reader.arrivals[0] - reader.sent for reader in begun]
    jitter = [value for reader in begun for value in reader.jitters()]
    result = {
        "complete": sum(reader.complete() for reader in readers),
        "tokens": sum(len(reader.stamps) for reader in readers),
        "first_p50": percentile(first, 0.5),
        "first_p95": percentile(first, 0.95),
        "jitter_p95": percentile(jitter, 0.95),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
