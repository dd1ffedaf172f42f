"""A model that counts, in place of the local one, on the test host: `counting_model.py ADDRESS PORT NUMBERS PAUSE`.

It answers "Count." with the numbers from 0 in steps of one, PAUSE seconds apart, so that a reader sees at once whether
a token is missing or came twice. Where the last answer among the messages is a count that is not at its end, it goes on
from there, as an answer does that one release hands over to the next. Any other question gets three numbers. A fake,
because fifty answers of a real model would take half an hour here. Standard library only: it runs on the host.
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NUMBERS, PAUSE = int(sys.argv[3]), float(sys.argv[4])


class Handler(BaseHTTPRequestHandler):
    """Chat completions as a stream, whatever is asked."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """List the one model."""
        body = json.dumps({"object": "list", "data": [{"id": "counting", "object": "model"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Count."""
        messages = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
        end = NUMBERS if any("Count" in str(message["content"]) for message in messages) else 3
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        began = time.monotonic()
        try:
            first = _next(messages)
            for number in range(first, end):
                time.sleep(max(0.0, began + (number - first) * PAUSE - time.monotonic()))
                self._send({"delta": {"content": f"{number} "}, "finish_reason": None})
            self._send({"delta": {}, "finish_reason": "stop"})
            self._chunk(b"data: [DONE]\n\n")
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True

    def _send(self, choice: dict[str, object]) -> None:
        event = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "counting"}
        self._chunk(b"data: " + json.dumps({**event, "choices": [{"index": 0, **choice}]}).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


def _next(messages: list[dict[str, object]]) -> int:
    """The number behind the count that the last answer has begun; 0 without one, or where it has ended."""
    answers = [str(message["content"]) for message in messages if message["role"] == "assistant"]
    counted = answers[-1].split() if answers else []
    following = int(counted[-1]) + 1 if counted and counted[-1].isdigit() else 0
    return following if following < NUMBERS else 0


ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
