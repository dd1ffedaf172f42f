"""A real Valkey (or Redis, which speaks the same) on a Unix socket, for a test."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import eventually, find_program, process

PASSWORD = "pass word/@:"


@contextlib.contextmanager
def valkey_server() -> Iterator[str]:
    """Gives the server's URL; skips the test where no such program is installed."""
    program = find_program("valkey-server", "redis-server")
    if not program:
        pytest.skip("neither valkey-server nor redis-server is installed (Debian: apt-get install valkey-server)")
    with tempfile.TemporaryDirectory(prefix="vk-") as directory:
        socket = Path(directory, "s")
        arguments = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--requirepass", PASSWORD]
        with process(program, *arguments, cwd=directory, stdout=subprocess.DEVNULL):
            eventually(socket.exists)
            yield f"unix://{socket}"
