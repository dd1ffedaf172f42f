#!/usr/bin/env python3
"""The lock of a release: one run at a time changes what serves on a host.

It lies on the host and names its owner: who, from which control node, in which process, since when and until when.
Every step happens under a second, short lock of the kernel (flock on a file beside it), so that two runs never both
believe that they have it. Times are the host's own: the clocks of control nodes do not matter.

    release_lock.py take    FILE OWNER SECONDS [--instead-of TOKEN]
    release_lock.py renew   FILE OWNER SECONDS
    release_lock.py release FILE OWNER
    release_lock.py ended   OWNER              (on the control node)

OWNER is what callback_plugins/chatbot_release.py says of a run, as JSON: token, who, node, pid, started. The first
three print one JSON object: `taken` (whether the lock is the owner's now), `before` (whose it was, when somebody
else's), `expired` (whether that one had run out). `ended` prints whether the owner was a process of this control node
that has ended. Standard library only; the host's Python reads it from standard input.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def node() -> str:
    """Name the space of process numbers that this process lives in: the same host, boot and container."""
    parts = [os.uname().nodename]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def started(pid: int) -> str:
    """Return when a process began, in the kernel's ticks; empty where that cannot be known, or when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    # A zombie has ended; only its parent has not asked yet.
    return "" if fields[0] in "ZX" else fields[19]


def ended(owner: dict[str, Any]) -> bool:
    """Tell whether the owner is known to have ended: a process of this very control node, by number and beginning."""
    if owner.get("node") != node() or not owner.get("pid"):
        return False
    return started(int(owner["pid"])) != str(owner.get("started", ""))


def stamp(seconds: float) -> str:
    """Return a time as people read it, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


@contextlib.contextmanager
def alone(file: Path) -> Iterator[None]:
    """Let nobody else look at the lock or change it meanwhile."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".guard").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield


def read(file: Path) -> dict[str, Any] | None:
    """Return the lock as it is, or None. What cannot be read is no lock: it was cut off by a crash."""
    try:
        held = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return held if isinstance(held, dict) else None


def write(file: Path, owner: dict[str, Any], since: float, seconds: float) -> None:
    """Make the lock the owner's, in one step."""
    until = time.time() + seconds
    held = owner | {"since": stamp(since), "since_seconds": since, "until": stamp(until), "until_seconds": until}
    staged = file.with_suffix(".new")
    staged.write_text(json.dumps(held))
    staged.replace(file)


def take(file: Path, owner: dict[str, Any], seconds: float, instead_of: str = "") -> dict[str, Any]:
    """Take the lock when it is free, has run out, or belongs to `instead_of`, whose process is known to have ended."""
    with alone(file):
        held = read(file)
        mine = held is not None and held["token"] == owner["token"]
        expired = held is not None and time.time() > held["until_seconds"]
        free = held is None or mine or expired or held["token"] == instead_of
        if free:
            write(file, owner, held["since_seconds"] if held and mine else time.time(), seconds)
        return {"taken": free, "before": None if mine else held, "expired": expired}


def renew(file: Path, owner: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Move the expiry on; not when the lock is not the owner's any more."""
    with alone(file):
        held = read(file)
        mine = held is not None and held["token"] == owner["token"]
        if held and mine:
            write(file, owner, held["since_seconds"], seconds)
        return {"taken": mine, "before": None if mine else held, "expired": False}


def release(file: Path, owner: dict[str, Any]) -> dict[str, Any]:
    """Give the lock back; somebody else's stays."""
    with alone(file):
        held = read(file)
        if held is None or held["token"] == owner["token"]:
            file.unlink(missing_ok=True)
            held = None
        return {"taken": False, "before": held, "expired": False}


def main() -> int:
    """Do what the command line says and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("take", "renew", "release"):
        command = commands.add_parser(name)
        command.add_argument("file", type=Path)
        command.add_argument("owner", type=json.loads)
        if name != "release":
            command.add_argument("seconds", type=float)
        if name == "take":
            command.add_argument("--instead-of", default="", metavar="TOKEN")
    commands.add_parser("ended").add_argument("owner", type=json.loads)
    options = vars(parser.parse_args())
    programs: dict[str, Callable[..., object]] = {"take": take, "renew": renew, "release": release, "ended": ended}
    function = programs[options.pop("command")]
    print(json.dumps(function(**options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
