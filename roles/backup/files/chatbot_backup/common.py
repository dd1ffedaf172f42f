"""What all parts share: failures that tell the remedy, the settings, files that are replaced whole."""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

SETTINGS = Path(os.environ.get("CHATBOT_BACKUP_SETTINGS", "/etc/chatbot-backup/settings.json"))
STATE = Path("/var/lib/chatbot-backup")
CACHE = Path("/var/cache/chatbot-backup")
LOCK = Path("/run/lock/chatbot-backup.lock")

# Exit codes, which are also the metric backup_last_exit_code.
OTHER, USAGE, INCOMPLETE, NO_REPOSITORY, LOCKED, WRONG_PASSWORD, UNREACHABLE = 1, 2, 3, 10, 11, 12, 13
READ_ONLY, DAMAGED, DUMP_FAILED, NOT_AS_RECORDED, DISK_FULL, NO_BACKUP, BUSY, KILLED = 14, 15, 20, 21, 28, 30, 75, 137

# Above it, the number of the signal that ended the work.
STOPPED = 128


class Failure(Exception):  # noqa: N818 - the word that operators read
    """Something that ends the work: a message with cause and remedy, and an exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class RepositorySettings:
    """One place where backups are kept."""

    name: str
    repository: str
    password: str
    environment: dict[str, str] = field(default_factory=dict)
    keep_daily: int = 7
    keep_weekly: int = 4
    append_only: bool = False


@dataclass(frozen=True)
class Settings:
    """What the role has written: names, places and limits of this host. Times in seconds."""

    host: str
    repositories: list[RepositorySettings]
    database: str
    database_owner: str
    uploads: Path
    paths: list[Path]
    reference_paths: list[str]
    sqlite_databases: list[Path]
    release_state: Path
    keep_pre_restore: int
    check_subset: str
    metrics_directory: Path
    timeout: float
    connect_timeout: float = 60
    lock_timeout: float = 60
    # The archive of PostgreSQL's changes: pgBackRest's name for it, empty where there is none, and how often a base
    # backup is a full one, in days.
    stanza: str = ""
    full_every: int = 7

    def repository(self, name: str) -> RepositorySettings:
        """Return a repository by its name; the first one for an empty name.

        Raises:
            Failure: when there is none of that name.
        """
        found = [each for each in self.repositories if each.name == name or not name]
        if not found:
            known = ", ".join(each.name for each in self.repositories)
            raise Failure(USAGE, f"there is no repository named {name} here. backup_repositories has: {known}.")
        return found[0]


def read_settings(file: Path = SETTINGS) -> Settings:
    """Read the settings that the role has written.

    Raises:
        Failure: when they are missing or cannot be understood.
    """
    try:
        content = json.loads(file.read_text())
        for name in ("uploads", "release_state", "metrics_directory"):
            content[name] = Path(content[name])
        for name in ("paths", "sqlite_databases"):
            content[name] = [Path(each) for each in content[name]]
        content["repositories"] = [repository(each) for each in content["repositories"]]
        return Settings(**content)
    except FileNotFoundError:
        raise Failure(OTHER, f"{file} is missing. Write it with: site.yml --tags backup") from None
    except (ValueError, TypeError, KeyError) as error:
        raise Failure(OTHER, f"{file} cannot be read ({error}). Write it anew with: site.yml --tags backup") from None


def repository(content: dict[str, Any]) -> RepositorySettings:
    """Return the settings of one repository; an environment has texts only."""
    environment = {name: str(value) for name, value in (content.get("environment") or {}).items()}
    return RepositorySettings(**content | {"environment": environment})


def log(message: str) -> None:
    """Tell the operator: the journal, or the terminal."""
    print(message, file=sys.stderr, flush=True)


def replace(file: Path, content: str, mode: int = 0o600) -> None:
    """Replace a file in one step; it is on the disk before it takes the old one's place."""
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(handle, "w") as new:
            new.write(content)
            new.flush()
            os.fchmod(new.fileno(), mode)
            os.fsync(new.fileno())
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load(file: Path) -> dict[str, Any]:
    """Return a file's object, or an empty one where there is none or it cannot be read."""
    try:
        found = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def as_user(name: str) -> dict[str, Any]:
    """Arguments of subprocess that let a program run as that account, in a directory that it may enter."""
    account = pwd.getpwnam(name)
    groups = os.getgrouplist(name, account.pw_gid)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": groups, "cwd": "/"}


def megabytes(size: float) -> str:
    """Return a size as people read it."""
    return f"{size / 1048576:.0f} MB" if size >= 1048576 else f"{size / 1024:.0f} kB"


def widen(*pipes: IO[Any] | None) -> None:
    """Let pipes hold a megabyte, where the kernel allows it: the programs at both ends are woken far less often."""
    for pipe in pipes:
        if pipe is not None:
            with suppress(OSError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)


def first_line(texts: Iterable[str]) -> str:
    """Return the first line that says something."""
    return next((line.strip() for text in texts for line in text.splitlines() if line.strip()), "no message")
