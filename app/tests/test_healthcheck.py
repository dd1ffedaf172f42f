"""Docker's health check against real sockets: an application that is alive, one that is not, one that is not there."""

import socket
import threading
from collections.abc import Iterator

import healthcheck
import pytest


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def answers(server: socket.socket, reply: bytes) -> threading.Thread:
    """Answer one request with the bytes."""

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(reply)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("reply", "code", "said"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n{}", 0, ""),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", 1, "HTTP/1.1 503 Service Unavailable"),
        (b"", 1, "empty answer"),
    ],
)
def test_tells_an_application_that_lives_from_one_that_does_not(
    listener: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reply: bytes,
    code: int,
    said: str,
) -> None:
    monkeypatch.setenv("CHATBOT_BIND", f"0.0.0.0:{listener.getsockname()[1]}")
    thread = answers(listener, reply)
    assert healthcheck.main() == code
    thread.join(5)
    assert said in capsys.readouterr().out


def test_says_that_nothing_listens(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = listener.getsockname()[1]
    listener.close()
    monkeypatch.setenv("CHATBOT_BIND", f":{port}")
    assert healthcheck.main() == 1
    assert f"127.0.0.1:{port}" in capsys.readouterr().out


def test_does_not_wait_for_ever(listener: socket.socket) -> None:
    with pytest.raises(TimeoutError):
        healthcheck.answer(listener.getsockname()[1], timeout=0.2)
