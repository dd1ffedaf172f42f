"""A fake: a tiny server that speaks the streaming part of the chat-completions API and does what a test tells it to."""

import json
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Wait = Callable[[], object]


@dataclass
class FakeOpenAI:
    """Answers each question as its attributes say at that moment. Times are in seconds."""

    pieces: list[str] = field(default_factory=lambda: ["Hello", " ", "world"])
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    # Statuses for the first requests, before `status` counts.
    failures: list[int] = field(default_factory=list)
    before_headers: float = 0
    between: float = 0
    usage: bool = True
    # The names that GET /models lists, or the body it answers with.
    models: list[str] | bytes = field(default_factory=lambda: ["test-model", "other-model"])
    # Answers of other models than the one that `pieces` is for.
    answers: dict[str, list[str]] = field(default_factory=dict)
    listed: int = 0  # how often the models were asked for
    # Called before the piece of that number; may block until the test says so.
    waits: dict[int, Wait] = field(default_factory=dict)
    # Leave out the pieces that the last answer in the question holds already: a model that really continues.
    continues: bool = False
    # Break the connection instead of finishing.
    cut: bool = False
    raw: bytes | None = None
    tls: ssl.SSLContext | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    sent: int = 0
    left: int = 0  # streams whose reader went away before the end

    def __enter__(self) -> Self:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                fake._answer(self)

            def do_GET(self) -> None:
                fake._list(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        if self.tls:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The base URL for the application's settings."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self._server.server_address[1]}/v1"

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        self.requests.append(body)
        self.keys.append(handler.headers["Authorization"])
        time.sleep(self.before_headers)
        status = self.failures.pop(0) if self.failures else self.status
        if status != 200:
            text = json.dumps({"error": {"message": "secret text of the provider", "code": "some_code"}}).encode()
            handler.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(text)),
                **self.headers,
            }.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(text)
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        pieces = self.answers.get(body.get("model", ""), self.pieces)
        if self.continues:
            pieces = _rest(pieces, body["messages"])
        try:
            self._stream(handler, pieces)
        except OSError:
            self.left += 1
            handler.close_connection = True

    def _list(self, handler: BaseHTTPRequestHandler) -> None:
        self.listed += 1
        time.sleep(self.before_headers)
        text = self.models
        if not isinstance(text, bytes):
            text = json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in text]}).encode()
        handler.send_response(self.status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)

    def _stream(self, handler: BaseHTTPRequestHandler, pieces: list[str]) -> None:
        def send(data: bytes) -> None:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            handler.wfile.flush()

        def event(**data: object) -> None:
            send(b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": [], **data}).encode() + b"\n\n")

        if self.raw is not None:
            send(self.raw)
        event(choices=[{"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}])
        for number, piece in enumerate(pieces):
            self.waits.get(number, lambda: None)()
            time.sleep(self.between)
            event(choices=[{"index": 0, "delta": {"content": piece}, "finish_reason": None}])
            self.sent += 1
        if self.cut:
            handler.close_connection = True
            return
        event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
        if self.usage:
            event(usage={"prompt_tokens": 7, "completion_tokens": len(pieces), "total_tokens": 7 + len(pieces)})
        send(b"data: [DONE]\n\n")
        handler.wfile.write(b"0\r\n\r\n")


def _rest(pieces: list[str], messages: list[dict[str, Any]]) -> list[str]:
    """The pieces behind those that the last answer among the messages begins with. ValueError when they do not fit."""
    text = next((message["content"] for message in reversed(messages) if message["role"] == "assistant"), "")
    count = 0
    while text and count < len(pieces):
        if not text.startswith(pieces[count]):
            raise ValueError(f"not cut behind a whole piece: {text!r}")
        text = text.removeprefix(pieces[count])
        count += 1
    return pieces[count:]
