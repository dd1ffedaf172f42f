import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx2
import pytest
from chatbot.transport import Transport

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SMALL = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

type Script = Callable[[socket.socket], object]


@contextmanager
def server(*scripts: Script) -> Iterator[str]:
    """A server that reads a request and then follows the script of its connection; gives its URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for script in scripts:
            connection, _ = listener.accept()
            with connection:
                script(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1?x=1"
    finally:
        thread.join(5)
        listener.close()


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    return data


def says(*parts: bytes) -> Script:
    def script(connection: socket.socket) -> None:
        read_request(connection)
        for part in parts:
            connection.sendall(part)

    return script


@pytest.fixture
def client() -> Iterator[httpx2.Client]:
    with httpx2.Client(transport=Transport(), timeout=5) as client:
        yield client


@pytest.mark.parametrize(
    "response",
    [
        [CHUNKED + b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"],
        [CHUNKED, b"3\r\na", b"bc\r\n3\r", b"\ndef\r\n0\r\n", b"\r\n"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc", b"def"],
        [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc", b"def"],
        [b"HTTP/1.0 200 OK\r\n\r\nabcdef"],
        [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabcdef"],
    ],
)
def test_bodies_of_every_kind(client: httpx2.Client, response: list[bytes]) -> None:
    with server(says(*response)) as url:
        assert client.get(url).content == b"abcdef"


def test_what_is_sent(client: httpx2.Client) -> None:
    requests: list[bytes] = []

    def script(connection: socket.socket) -> None:
        requests.append(read_request(connection))
        connection.sendall(SMALL)

    with server(script) as url:
        assert client.post(url, content=b"hello", headers={"X-Name": "value"}).text == "ok"
    head, _, body = requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1?x=1 HTTP/1.1\r\n")
    assert {
        b"host: 127.0.0.1:" + url.split(":")[2].split("/")[0].encode(),
        b"x-name: value",
        b"content-length: 5",
    } <= set(head.lower().split(b"\r\n"))
    assert body == b"hello"


@pytest.mark.parametrize(
    "response",
    [
        [],
        [b"HTTP/1.1 200"],
        [CHUNKED + b"3\r\nabc\r\n"],
        [CHUNKED + b"zz\r\nabc\r\n"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc"],
        [b"this is not HTTP\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 200_000],
    ],
)
def test_broken_responses(client: httpx2.Client, response: list[bytes]) -> None:
    with server(says(*response)) as url, pytest.raises(httpx2.TransportError):
        client.get(url)


def test_silence_is_a_time_out() -> None:
    over = threading.Event()
    with (
        httpx2.Client(transport=Transport(), timeout=0.1) as client,
        server(lambda _: over.wait(5)) as url,
    ):
        with pytest.raises(httpx2.ReadTimeout):
            client.get(url)
        over.set()


def test_nobody_listens(client: httpx2.Client) -> None:
    with pytest.raises(httpx2.ConnectError):
        client.get("http://127.0.0.1:9/")


def test_a_header_cannot_bring_others_along(client: httpx2.Client) -> None:
    with pytest.raises(httpx2.LocalProtocolError):
        client.get("http://127.0.0.1:9/", headers={"X-Name": "value\r\nX-Other: value"})


def test_a_connection_is_used_again(client: httpx2.Client) -> None:
    def twice(connection: socket.socket) -> None:
        for _ in range(2):
            read_request(connection)
            connection.sendall(SMALL)

    with server(twice) as url:
        assert [client.get(url).text for _ in range(2)] == ["ok", "ok"]


@pytest.mark.parametrize(
    "first",
    [
        [SMALL],  # and then closes, although nobody said so
        [SMALL, b"HTTP/1.1 200 OK\r\n"],  # more than was asked for
        [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"],
    ],
)
def test_a_dead_or_spoilt_connection_is_not_used_again(client: httpx2.Client, first: list[bytes]) -> None:
    with server(says(*first), says(SMALL)) as url:
        assert client.get(url).text == "ok"
        time.sleep(0.2)  # within which the end arrives
        assert client.get(url).text == "ok"


def test_leaving_in_the_middle_closes_the_connection(client: httpx2.Client) -> None:
    left = threading.Event()

    def script(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(CHUNKED + b"3\r\nabc\r\n")
        assert connection.recv(1) == b""
        left.set()

    with server(script) as url:
        with client.stream("GET", url) as response:
            assert next(response.iter_raw()) == b"abc"
        assert left.wait(5)


def test_another_thread_can_end_the_wait(client: httpx2.Client) -> None:
    over = threading.Event()

    def script(connection: socket.socket) -> None:
        says(CHUNKED + b"3\r\nabc\r\n")(connection)
        over.wait(5)

    with server(script) as url:
        response = client.send(client.build_request("GET", url), stream=True)
        body = response.iter_raw()
        assert next(body) == b"abc"
        threading.Timer(0.1, response.close).start()
        with pytest.raises(httpx2.TransportError):
            next(body)
        over.set()


def test_idle_connections_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatbot.transport.IDLE_CONNECTIONS", 1)
    transport = Transport()
    pairs = [socket.socketpair() for _ in range(3)]
    for ours, _ in pairs:
        transport.keep(("http", "m", 80), ours)
    assert [theirs.recv(1) if n < 2 else None for n, (_, theirs) in enumerate(pairs)] == [b"", b"", None]
    transport.close()
    assert pairs[2][1].recv(1) == b""
    for _, theirs in pairs:
        theirs.close()
