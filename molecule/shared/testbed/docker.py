"""A thin layer over the docker command line: run it, and say clearly what went wrong."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]
CACHE = REPOSITORY / ".cache" / "testbed"
# Two checkouts on one machine share the engine, so they share the lock too.
LOCK = Path("/tmp/chatbot-testbed.lock")  # noqa: S108  (an advisory lock, nothing is read from it)


class TestbedError(RuntimeError):
    """Something that the person at the keyboard can mend; printed without a traceback."""


def say(message: str) -> None:
    """Print one line of progress at once."""
    print(f"testbed: {message}", file=sys.stderr, flush=True)


def run(
    *command: str,
    check: bool = True,
    stdin: str | None = None,
    timeout: float = 600,
    environment: dict[str, str] | None = None,
) -> str:
    """Run a command and return its standard output, stripped; `timeout` in seconds.

    Raises:
        TestbedError: with the command and the last lines it printed, when it exits non-zero and check is set.
    """
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False, env=environment
    )
    if check and done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise TestbedError(f"`{' '.join(command)}` failed with exit code {done.returncode}:\n{tail}")
    return done.stdout.strip()


def docker(*arguments: str, check: bool = True, stdin: str | None = None, timeout: float = 600) -> str:
    """Run `docker …`; see run()."""
    return run("docker", *arguments, check=check, stdin=stdin, timeout=timeout)


def inspect(kind: str, name: str) -> dict[str, Any] | None:
    """Return what `docker <kind> inspect` says of a thing, None when there is none."""
    answer = docker(kind, "inspect", name, check=False)
    found = json.loads(answer) if answer else []
    return found[0] if found else None


def execute(container: str, script: str, timeout: float = 300) -> str:
    """Run a shell script inside a container and return what it printed."""
    return docker("exec", "-i", container, "sh", "-eu", stdin=script, timeout=timeout)


def wait_until(what: str, ready: Callable[[], bool], seconds: float = 60) -> None:
    """Poll until ready() holds.

    Raises:
        TestbedError: naming `what` when it does not hold within `seconds`.
    """
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TestbedError(f"{what}: not there after {seconds:.0f} s")
        time.sleep(0.3)


@contextmanager
def lock() -> Iterator[None]:
    """Hold the machine-wide lock: scenarios run side by side, but images and addresses are handed out one by one."""
    with LOCK.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
