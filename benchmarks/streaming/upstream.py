"""The model of the benchmark: `python upstream.py <port>` answers every question with TOKENS tokens.

They leave PAUSE seconds apart, the first one at once: what a client waits for it is the relay's doing. A token is the
time at which it left, so that whoever reads it knows what happened on the way.
"""

import asyncio
import sys
import time
from typing import cast

TOKENS = 100
PAUSE = 0.02
# Units of a stamp; eight digits and a space make a token.
STAMPS_PER_SECOND = 100_000

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
# With the fields that OpenAI sends.
COMMON = (
    b'"id":"chatcmpl-CgH2vTfXqPzW7YbKd0LmRnAs4Ue91","object":"chat.completion.chunk","created":1763942400,'
    b'"model":"benchmark-2026-11-01","service_tier":"default","system_fingerprint":"fp_0123456789"'
)
CHUNK = (
    b"data: {%s," % COMMON
    + b'"choices":[{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s}],"usage":null,"obfuscation":"x8Kq2"}\n\n'
)
USAGE = (
    b'data: {%s,"choices":[],"usage":{"prompt_tokens":1900,"completion_tokens":%d,"total_tokens":%d,'
    b'"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,'
    b'"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}},"obfuscation":""}\n\n'
    % (COMMON, TOKENS, TOKENS + 1900)
)


def stamp() -> int:
    """The time, in eight digits."""
    return int(time.monotonic() * STAMPS_PER_SECOND) % 10**8


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Answer(asyncio.Protocol):
    """One connection. All running answers are in `running`, with the number of tokens sent."""

    running: dict["Answer", int] = {}  # noqa: RUF012 - shared on purpose

    def __init__(self) -> None:
        self._request = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._request += data
        head, separator, body = self._request.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
        if separator and len(body) >= length:
            self._request = b""
            self.transport.write(HEAD)
            self.running[self] = 0
            self.send()

    def connection_lost(self, _: Exception | None) -> None:
        self.running.pop(self, None)

    def send(self) -> None:
        """The next token, or the end."""
        sent = self.running[self]
        if sent < TOKENS:
            self.transport.write(http_chunk(CHUNK % (b'{"content":"%08d "}' % stamp(), b"null")))
            self.running[self] = sent + 1
        else:
            end = http_chunk(CHUNK % (b"{}", b'"stop"')) + http_chunk(USAGE) + http_chunk(b"data: [DONE]\n\n")
            self.transport.write(end + b"0\r\n\r\n")
            del self.running[self]


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_server(Answer, "127.0.0.1", port, backlog=4096)
    due = loop.time()
    while True:
        due = max(due + PAUSE, loop.time())
        await asyncio.sleep(due - loop.time())
        for answer in list(Answer.running):
            answer.send()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
