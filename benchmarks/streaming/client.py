"""The readers of the benchmark: opens N streams at the same moment and prints what arrived as JSON.

`python client.py <port> <streams> [token…]`; of API tokens, where the server wants them, each serves as many streams as
the others. Times are in seconds.
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
BODY = json.dumps({"content": "How do tides work?"}).encode()
API_TOKENS = sys.argv[3:]


def request(path: str, body: bytes, number: int) -> bytes:
    """The request of the stream of that number."""
    head = f"POST {path} HTTP/1.1\r\nHost: benchmark\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    if API_TOKENS:
        head += f"\r\nAuthorization: Bearer {API_TOKENS[number % len(API_TOKENS)]}"
    return head.encode() + b"\r\nConnection: close\r\n\r\n" + body


class Reader(asyncio.Protocol):
    """One stream: when each token left the model and when it arrived."""

    def __init__(self, path: str, number: int) -> None:
        self._path, self._number = path, number
        self._rest = b""
        self._end = b""
        self.sent = 0.0
        self.stamps: list[int] = []
        self.arrivals: list[float] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.sent = time.monotonic()
        cast(asyncio.Transport, transport).write(request(self._path, BODY, self._number))

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


async def conversation(port: int, number: int, limit: asyncio.Semaphore) -> str:
    """A new conversation's path."""
    async with limit:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("/api/v1/conversations", b"{}", number))
        answer = await reader.read()
        writer.close()
    return f"/api/v1/conversations/{json.loads(re.findall(rb'{.*}', answer)[0])['id']}/messages"


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


async def main(port: int, streams: int) -> None:
    limit = asyncio.Semaphore(16)
    paths = await asyncio.gather(*(conversation(port, number, limit) for number in range(streams)))
    print("ready", flush=True)
    sys.stdin.readline()
    loop = asyncio.get_running_loop()
    readers = [Reader(path, number) for number, path in enumerate(paths)]
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
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
