"""A real Valkey (or Redis, which speaks the same) on a Unix socket, for tests and benchmarks."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import eventually, find_program, process

PASSWORD = "pass word/@:"


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    pid: int


@contextlib.contextmanager
def start_valkey(socket: Path | None = None) -> Iterator[Server | None]:
    """A server, on this socket where one is named; None where no such program is installed."""
    # Debian's packages of tools hold the server, too: one program, which looks at the name that it is called by. They
    # start no service on this machine.
    program = find_program("valkey-server", "redis-server", "valkey-check-rdb", "redis-check-rdb")
    if not program:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="vk-") as directory:
        socket = socket or Path(directory, "s")
        arguments = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--requirepass", PASSWORD]
        with process(
            "valkey-server", *arguments, executable=program, cwd=directory, stdout=subprocess.DEVNULL
        ) as child:
            eventually(socket.exists)
            yield Server(f"unix://{socket}", child.pid)


@contextlib.contextmanager
def valkey_server(socket: Path | None = None) -> Iterator[str]:
    """The same, as its URL; skips the test where no such program is installed."""
    with start_valkey(socket) as server:
        if server is None:
            pytest.skip(
                "neither Valkey nor Redis is installed (Debian 13: apt-get install valkey-tools, 12: redis-tools)"
            )
        yield server.url
