"""HTTP/1.1 over plain sockets, parsed in C: what the openai library sends its requests with.

httpx2's own transport parses in Python, which at hundreds of streams costs more than all the rest of the application.
Under gunicorn the sockets are gevent's. Proxies, HTTP/2 and redirects are left to httpx2: see `model.py`.
"""

import contextlib
import select
import socket
import ssl
import time
import weakref
from collections.abc import Iterator
from functools import cached_property

import httptools
import httpx2
from gevent import monkey

# Which does not wait: gevent's costs ten times as much.
_poll = monkey.get_original("select", "poll")
# One read takes what has arrived, up to this many bytes.
READ_BYTES = 65536
# An unused connection is kept this long (seconds), and so many of them: the next question saves the handshake.
IDLE_SECONDS = 15.0
IDLE_CONNECTIONS = 20
# A server that sends more than this (bytes) without ending its headers is broken.
MAX_HEAD_BYTES = 65536

type Origin = tuple[str, str, int]


class Transport(httpx2.BaseTransport):
    """Sends each request over a connection of its own, an idle one where there is one. Threads may share it."""

    def __init__(self) -> None:
        self._idle: dict[Origin, list[tuple[socket.socket, float]]] = {}
        # Not __del__, before which the sockets may have gone.
        self.close = weakref.finalize(self, _close_all, self._idle)  # type: ignore[method-assign]

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """Reading all authorities takes 20 ms and a megabyte: only where the model is asked by HTTPS."""
        context = httpx2.create_ssl_context()
        context.set_alpn_protocols(["http/1.1"])
        return context

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request and return when the response's headers are there; its body is read while iterating.

        Raises httpx2.TransportError: TimeoutException, NetworkError or ProtocolError.
        """
        timeouts = request.extensions.get("timeout", {})
        secure = request.url.scheme == "https"
        origin = (request.url.scheme, request.url.host, request.url.port or (443 if secure else 80))
        message = _encode(request)
        connection = self._take_idle(origin) or self._connect(origin, timeouts.get("connect"))
        try:
            with _explained(httpx2.WriteTimeout, httpx2.WriteError):
                connection.settimeout(timeouts.get("write"))
                connection.sendall(message)
                connection.settimeout(timeouts.get("read"))
            body = _Body(self, origin, connection)
            body.read_head()
        except BaseException:
            connection.close()
            raise
        return httpx2.Response(body.status, headers=body.headers, stream=body)

    def keep(self, origin: Origin, connection: socket.socket) -> None:
        """Take back a connection whose response was read to its end."""
        idle = self._idle.setdefault(origin, [])
        idle.append((connection, time.monotonic()))
        if len(idle) > IDLE_CONNECTIONS:
            idle.pop(0)[0].close()

    def _take_idle(self, origin: Origin) -> socket.socket | None:
        idle = self._idle.get(origin, [])
        while idle:
            connection, since = idle.pop()
            if time.monotonic() - since < IDLE_SECONDS and not _readable(connection):
                return connection
            connection.close()
        return None

    def _connect(self, origin: Origin, timeout: float | None) -> socket.socket:
        scheme, host, port = origin
        with _explained(httpx2.ConnectTimeout, httpx2.ConnectError):
            connection = socket.create_connection((host, port), timeout)
            try:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if scheme == "https":
                    return self._tls.wrap_socket(connection, server_hostname=host)
            except BaseException:
                connection.close()
                raise
        return connection


class _Body(httpx2.SyncByteStream):
    """One response while it arrives. The methods that begin with `on_` are the parser's."""

    def __init__(self, transport: Transport, origin: Origin, connection: socket.socket) -> None:
        self._transport = transport
        self._origin = origin
        self._connection: socket.socket | None = connection
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._complete = False
        self._reusable = False
        self._has_head = False
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []

    def on_message_begin(self) -> None:
        self._reusable = False  # also when something follows the end
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._has_head = self.status >= 200  # before come interim responses, which have no body

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        self._complete = self._has_head
        self._reusable = self._has_head and self._parser.should_keep_alive()

    def read_head(self) -> None:
        """Read until the response's status and headers are known."""
        size = 0
        while not self._has_head:
            size += self._read()
            if size > MAX_HEAD_BYTES and not self._has_head:
                raise httpx2.RemoteProtocolError("the response's headers have no end")

    def __iter__(self) -> Iterator[bytes]:
        """What arrives, as large as it comes."""
        while True:
            if self._pieces:
                pieces, self._pieces = self._pieces, []
                yield b"".join(pieces)
            elif self._complete:
                return
            else:
                self._read()

    def close(self) -> None:
        """Give the connection back, or break it off where the response has not ended; any thread may do that."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._reusable:
            self._transport.keep(self._origin, connection)
            return
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits in recv()
        connection.close()

    def _read(self) -> int:
        """Feed the parser with the next bytes; how many there were."""
        connection = self._connection
        if connection is None:
            raise httpx2.ReadError("the response was closed")
        with _explained(httpx2.ReadTimeout, httpx2.ReadError):
            data = connection.recv(READ_BYTES)
        if not data:
            if not self._has_head or self._has_length():
                raise httpx2.RemoteProtocolError("the server closed the connection in the middle of a response")
            self._complete = True  # the end of the connection is the end of the body
            return 0
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise httpx2.RemoteProtocolError(f"not HTTP: {type(error).__name__}") from None
        return len(data)

    def _has_length(self) -> bool:
        return any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self.headers)


def _close_all(idle: dict[Origin, list[tuple[socket.socket, float]]]) -> None:
    for connections in idle.values():
        for connection, _ in connections:
            connection.close()
    idle.clear()


def _encode(request: httpx2.Request) -> bytes:
    """The request as it goes over the wire."""
    lines = [request.method.encode() + b" " + request.url.raw_path + b" HTTP/1.1"]
    lines += [name + b": " + value for name, value in request.headers.raw]
    if any(b"\r" in line or b"\n" in line for line in lines):
        raise httpx2.LocalProtocolError("a header must not contain line breaks")
    return b"\r\n".join([*lines, b"", request.read()])


def _readable(connection: socket.socket) -> bool:
    """Whether something waits to be read: on an idle connection that is its end."""
    poll = _poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


@contextlib.contextmanager
def _explained(timeout: type[httpx2.TimeoutException], other: type[httpx2.NetworkError]) -> Iterator[None]:
    """Turn the socket's errors into httpx2's."""
    try:
        yield
    except TimeoutError as error:
        raise timeout(str(error)) from error
    except (OSError, ssl.SSLError, UnicodeError) as error:
        raise other(str(error)) from error
