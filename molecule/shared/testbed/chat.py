"""A client of the chat as a stranger on the network sees it: HTTPS checked certificate, login, streamed answer."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar


class ChatError(RuntimeError):
    """The chat did not answer as it should; the message says what it answered."""


class MovedError(ChatError):
    """The process that streamed the answer ends; `resume` goes on where it was."""


class _Connection(http.client.HTTPSConnection):
    """HTTPS to a given address, under the name of the site."""

    def __init__(self, domain: str, address: str, port: int, context: ssl.SSLContext, timeout: float) -> None:
        super().__init__(domain, port, context=context, timeout=timeout)
        self._address = address
        self._tls = context

    def connect(self) -> None:
        plain = socket.create_connection((self._address, self.port), self.timeout)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)


class ChatClient:
    """Talks to one site, signed in where an account is given.

    Attributes:
        arrivals: when each piece of the last answer arrived, in seconds after the question was sent.
        total_seconds: when the last answer was complete, in seconds after the question was sent.
        usage: what the `done` event said of the last answer.
        conversation: path of the last conversation.
        message: path of the last answer.
        last_event_id: identifier of the last event that arrived.
        retry_after: when the last response asked to be tried again, in seconds; empty where it did not say.
    """

    # Cookie and CSRF token by account: attempts to sign in are limited, so all clients of an account share one.
    _sessions: ClassVar[dict[tuple[str, int, str], dict[str, str]]] = {}

    def __init__(
        self,
        domain: str,
        *,
        address: str,
        port: int = 443,
        authority: Path,
        account: tuple[str, str] | None = None,
        timeout: float = 60,
    ) -> None:
        """Talk to `domain` at `address`; `authority` is a PEM file: the root that must have signed its certificate.

        `account` is e-mail address and password.
        """
        self._domain, self._address, self._port, self._timeout = domain, address, port, timeout
        self._context = ssl.create_default_context(cafile=str(authority))
        self._headers = {"Content-Type": "application/json"}
        self._account = account
        self.arrivals: list[float] = []
        self.total_seconds = 0.0
        self.usage: dict[str, Any] = {}
        self.conversation = self.message = self.last_event_id = self.retry_after = ""

    @property
    def first_token_seconds(self) -> float:
        """Time to first token of the last answer, in seconds."""
        return self.arrivals[0]

    def _connect(self) -> _Connection:
        return _Connection(self._domain, self._address, self._port, self._context, self._timeout)

    def certificate_issuer(self) -> str:
        """Return the common name of who signed the site's certificate.

        Raises:
            ChatError: when the site cannot be reached or its certificate is not signed by the authority.
        """
        connection = self._connect()
        try:
            connection.connect()
            certificate = connection.sock.getpeercert() or {}
        except OSError as error:
            raise ChatError(f"https://{self._domain}:{self._port}/ at {self._address}: {error}") from error
        finally:
            connection.close()
        names: Any = certificate.get("issuer", ())
        return str(next(value for part in names for key, value in part if key == "commonName"))

    def _send(
        self, method: str, path: str, payload: str | bytes | None, headers: dict[str, str], *, again: bool = False
    ) -> tuple[_Connection, http.client.HTTPResponse]:
        """Send one request, after signing in where the application asks for that; the caller closes the connection."""
        key = (self._domain, self._port, self._account[0] if self._account else "")
        connection = self._connect()
        try:
            connection.request(method, path, payload, self._headers | self._sessions.get(key, {}) | headers)
            response = connection.getresponse()
            self.retry_after = response.getheader("Retry-After", "")
            if response.status != 401 or not self._account or again:
                return connection, response
        except BaseException:
            connection.close()
            raise
        connection.close()
        self._sessions[key] = self._sign_in(*self._account)
        return self._send(method, path, payload, headers, again=True)

    def _sign_in(self, email: str, password: str) -> dict[str, str]:
        body = json.dumps({"email": email, "password": password})
        connection = self._connect()
        try:
            connection.request("POST", "/api/v1/session", body, self._headers)
            response = connection.getresponse()
            raw = response.read().decode(errors="replace")
        finally:
            connection.close()
        if response.status != 200:
            raise ChatError(f"{email} cannot sign in: HTTP {response.status}: {raw}")
        cookie = response.getheader("Set-Cookie", "").partition(";")[0]
        return {"Cookie": cookie, "X-CSRFToken": json.loads(raw)["csrf_token"]}

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Send one request; return status and body, decoded where it is JSON. A str or bytes body goes as it is."""
        payload = body if isinstance(body, str | bytes | None) else json.dumps(body)
        connection, response = self._send(method, path, payload, headers or {})
        try:
            raw = response.read().decode(errors="replace")
            kind = response.getheader("Content-Type", "")
        finally:
            connection.close()
        return response.status, json.loads(raw) if "json" in kind else raw

    def ask(self, question: str) -> Iterator[str]:
        """Ask in a new conversation and yield the pieces of the answer as they arrive.

        Raises:
            ChatError: when the answer is refused, ends in an error or breaks off.
        """
        status, conversation = self.call("POST", "/api/v1/conversations", {})
        if status != 201:
            raise ChatError(f"no conversation: HTTP {status}: {conversation}")
        self.conversation = f"/api/v1/conversations/{conversation['id']}"
        yield from self._read("POST", f"{self.conversation}/messages", {"content": question})

    def resume(self, *, at: str | None = None) -> Iterator[str]:
        """Yield what the last answer has beyond the event `at` (the last one that arrived), as after a lost connection.

        Raises:
            ChatError: as `ask` does.
        """
        last = {"Last-Event-ID": self.last_event_id if at is None else at}
        yield from self._read("GET", f"{self.message}/stream", None, last)

    def go_on(self) -> Iterator[str]:
        """Have the model go on with the last answer, which was cut, and yield the pieces that it adds.

        Raises:
            ChatError: as `ask` does.
        """
        yield from self._read("POST", f"{self.message}/continue", None)

    def kept(self) -> dict[str, Any]:
        """Return the last answer as the site keeps it: text, status and more.

        Raises:
            ChatError: when the site does not give it.
        """
        status, found = self.call("GET", self.conversation)
        if status != 200:
            raise ChatError(f"no conversation: HTTP {status}: {found}")
        return next(message for message in found["messages"] if self.message.endswith(message["id"]))

    def _read(self, method: str, path: str, body: Any, headers: dict[str, str] | None = None) -> Iterator[str]:
        self.arrivals, self.usage = [], {}
        started = time.monotonic()
        connection, response = self._send(method, path, body and json.dumps(body), headers or {})
        try:
            if response.status != 200:
                raise ChatError(f"no answer: HTTP {response.status}: {response.read().decode(errors='replace')}")
            for name, identifier, data in _events(response):
                self.last_event_id = identifier
                if name == "start":
                    self.message = f"{self.conversation}/messages/{data['message_id']}"
                elif name == "delta":
                    self.arrivals.append(time.monotonic() - started)
                    yield data["text"]
                elif name == "resume":
                    raise MovedError(f"the answer goes on elsewhere: {data}")
                elif name == "error":
                    raise ChatError(f"the answer ended in an error: {data}")
                elif name == "done":
                    self.usage, self.total_seconds = data, time.monotonic() - started
                    return
            raise ChatError("the answer broke off")
        finally:
            connection.close()


def _events(response: http.client.HTTPResponse) -> Iterator[tuple[str, str, Any]]:
    name, identifier, data = "", "", ""
    while line := response.readline():
        text = line.decode().rstrip("\n")
        if text.startswith("event: "):
            name = text.removeprefix("event: ")
        elif text.startswith("id: "):
            identifier = text.removeprefix("id: ")
        elif text.startswith("data: "):
            data = text.removeprefix("data: ")
        elif not text and name:
            yield name, identifier, json.loads(data)
            name, data = "", ""
