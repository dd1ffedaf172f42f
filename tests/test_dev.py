"""tools/dev: the application is there, and everything it has started is gone after Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def dev(directory: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """The program with another model (nobody listens there), until the end of the test."""
    given = {name: value for name, value in os.environ.items() if not name.startswith(("CHATBOT_", "MODEL_"))}
    given |= {"DEV_DIRECTORY": str(directory), "MODEL_URL": "http://127.0.0.1:9/v1", "MODEL_NAME": "test"}
    command = [sys.executable, str(ROOT / "tools/dev")]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=given | variables, **output) as child:  # type: ignore[call-overload]
        try:
            yield child
        finally:
            child.kill()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.server
def test_it_serves_until_ctrl_c(tmp_path: Path) -> None:
    port = free_port()
    with dev(tmp_path, PORT=str(port)) as child:
        assert child.stdout
        lines = []
        for line in child.stdout:
            lines.append(line)
            if line.startswith(f"==> http://127.0.0.1:{port}/"):
                break
        else:
            raise AssertionError("".join(lines))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/ready", timeout=10) as answer:
            assert json.load(answer)["status"] == "ready"
        sign_in = json.dumps({"email": "you@example.org", "password": (tmp_path / "password").read_text()})
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/v1/session", sign_in.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            assert json.load(answer)["account"]["role"] == "admin"
        child.send_signal(signal.SIGINT)
        rest = child.stdout.read()
        assert child.wait(30) == 0
    assert rest.rstrip().endswith("stopped")
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) != 0
    assert (tmp_path / "secret-key").stat().st_mode & 0o077 == 0


def test_it_says_what_is_missing(tmp_path: Path) -> None:
    with dev(tmp_path, MODEL_NAME="", PORT=str(free_port())) as child:
        assert child.stdout
        assert "MODEL_URL needs MODEL_NAME" in child.stdout.read()
        assert child.wait(30) == 1
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with dev(tmp_path, PORT=str(taken.getsockname()[1])) as child:
            assert child.stdout
            assert "is taken" in child.stdout.read()
            assert child.wait(30) == 1
