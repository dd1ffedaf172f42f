"""The database as it was at any moment: a base backup and the changes since, replayed by a server of its own.

That server lives for these minutes, below a directory of its own and on a socket of its own. What it then holds is
streamed into a new database of the server in use, beside the present one, as from a backup of restic.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from chatbot_backup import archive, catalogue
from chatbot_backup.common import (
    DAMAGED,
    NO_BACKUP,
    NO_REPOSITORY,
    NOT_AS_RECORDED,
    OTHER,
    STOPPED,
    Failure,
    Settings,
    first_line,
)
from chatbot_backup.database import Moment, Server, copy, read
from chatbot_backup.manifest import compare_tables, named
from chatbot_backup.scratch import Scratch, versions

PLACE = Path("/var/lib/chatbot-point-in-time")
SOCKET = Path("/run/chatbot-point-in-time")
TARGET = "%Y-%m-%d %H:%M:%S.%f+00"


@dataclass(frozen=True)
class Point:
    """A moment that the archive can bring back, and the base backup to begin with."""

    moment: datetime
    label: str
    repository: int
    version: int
    # Of the files of the whole cluster, in bytes.
    bytes: int

    @property
    def name(self) -> str:
        """Return the moment as -e at=<time> takes it."""
        return self.moment.isoformat(sep=" ")


def find(settings: Settings, at: str) -> tuple[Point | None, str]:
    """Return the point that a time means; or none, and the reason why a backup has to do instead.

    Raises:
        Failure: when the moment is yet to come, or the archive cannot be read.
    """
    a_backup = re.fullmatch(f"{catalogue.BACKUP_NAME}|{catalogue.SNAPSHOT}", at)
    moment = None if a_backup else catalogue.moment(at)
    if moment is None:
        return None, ""
    if moment > catalogue.now():
        raise Failure(
            NO_BACKUP, f"{at} is yet to come: {moment.isoformat()}. Give a moment that has passed, or at=latest."
        )
    return at_moment(settings, moment)


def at_moment(settings: Settings, moment: datetime) -> tuple[Point | None, str]:
    """Return the point of a moment that has passed; or none, and the reason.

    Raises:
        Failure: when the archive cannot be read.
    """
    about = archive.info(settings)
    if all(one["status"]["code"] in archive.NOTHING_THERE for one in about["repo"]):
        words = archive.REMEDIES[NO_REPOSITORY]
        raise Failure(NO_REPOSITORY, f"{words} The newest backup of before comes with -e from=<repository>.")
    known = [one for one in about["backup"] if not one["error"]]
    earlier = [one for one in known if int(one["timestamp"]["stop"]) < moment.timestamp()]
    if not earlier:
        if not known:
            return None, "the archive has no base backup yet"
        begin = datetime.fromtimestamp(min(int(one["timestamp"]["stop"]) for one in known), UTC)
        return None, f"the archive begins at {begin.isoformat()}, after that moment"
    # Of those that are alike, the one in the first repository: it is the nearest.
    newest = max(earlier, key=lambda one: (int(one["timestamp"]["stop"]), -int(one["database"]["repo-key"])))
    version = version_of(about, newest)
    if version not in versions():
        return None, f"the archive of that moment is PostgreSQL {version}'s, whose programs are gone from this host"
    key = int(newest["database"]["repo-key"])
    return Point(moment, newest["label"], key, version, int(newest["info"]["size"])), ""


def prove(settings: Settings) -> dict[str, Any]:
    """Bring the database to the present moment aside, and read all of it; return the figures, as a drill has them.

    Raises:
        Failure: when that is not possible. What is in use is not touched.
    """
    begin, moment = time.time(), catalogue.now()
    archive.flush()
    point, reason = at_moment(settings, moment)
    if point is None:
        raise Failure(NO_BACKUP, f"{reason}. Make a base backup: systemctl start chatbot-backup-base")
    with replayed(point, settings) as source, Moment(source, settings.database) as held:
        size = read(held)
        rows = sum(held.rows.values())
    lost = max(0.0, begin - archive.watch(settings)["point"])
    return {
        "base": point.label,
        "rows": rows,
        "bytes": size,
        "rto": round(time.time() - begin, 1),
        "rpo": round(lost, 1),
    }


def version_of(about: dict[str, Any], backup: dict[str, Any]) -> int:
    """Return the major version of PostgreSQL that a base backup is of."""
    which = (backup["database"]["repo-key"], backup["database"]["id"])
    return next(int(one["version"]) for one in about["db"] if (one["repo-key"], one["id"]) == which)


def fill(point: Point, settings: Settings, server: Server, name: str, owner: str) -> dict[str, Any]:
    """Make a database as it was at that moment, and compare it with the one that it was made from.

    Returns:
        What a manifest says of a database: version, schema, size, and the rows of each table.

    Raises:
        Failure: when the moment cannot be reached, or the two are not the same.
    """
    archive.flush()
    with replayed(point, settings) as source, Moment(source, settings.database) as moment:
        server.create(name, owner)
        copy(moment, server, name)
        differences = compare_tables(moment.rows, server.rows(name))
        if differences:
            raise Failure(NOT_AS_RECORDED, f"the database of {point.name} did not arrive whole: {named(differences)}.")
        return {
            "name": settings.database,
            "postgresql": moment.version,
            "schema": moment.schema,
            "bytes": moment.bytes,
            "rows": moment.rows,
        }


@contextmanager
def replayed(point: Point, settings: Settings) -> Iterator[Server]:
    """Run a server with the whole cluster as it was at that moment; nothing of it is left afterwards."""
    scratch = Scratch(PLACE, SOCKET, point.version)
    scratch.clean()
    PLACE.mkdir(mode=0o711, exist_ok=True)
    scratch.make()
    try:
        archive.pgbackrest(
            settings,
            f"--pg1-path={scratch.data}",
            f"--repo={point.repository}",
            f"--set={point.label}",
            "--type=time",
            f"--target={point.moment.strftime(TARGET)}",
            "--target-action=promote",
            "restore",
        )
        for name, text in (
            ("postgresql.conf", ""),
            ("pg_hba.conf", "local all postgres peer\n"),
            ("pg_ident.conf", ""),
        ):
            scratch.write(name, text)
        replay(point, scratch, settings.timeout)
        yield scratch.server
    finally:
        scratch.clean()
        with suppress(OSError):
            SOCKET.rmdir()


def clean() -> None:
    """End and remove the server that a killed restore has left."""
    Scratch(PLACE, SOCKET).clean()


def replay(point: Point, scratch: Scratch, seconds: float) -> None:
    """Start the server, and wait until it has replayed all changes until the moment.

    Raises:
        Failure: when it ends before: the archive does not reach so far, or a segment is missing or damaged.
    """
    end = time.monotonic() + seconds
    try:
        # Without hot_standby it need not have the sizes of the server that has written the changes.
        scratch.start("-c archive_mode=off -c hot_standby=off -c shared_buffers=64MB", int(seconds))
    except Failure as failure:
        raise failure if failure.code > STOPPED else ended(point, scratch) from None
    while time.monotonic() < end:
        try:
            if scratch.server.sql("SELECT pg_is_in_recovery()") == "f":
                return
        except Failure as failure:
            if failure.code > STOPPED:
                raise
        if not (scratch.data / "postmaster.pid").exists():
            raise ended(point, scratch)
        time.sleep(0.5)
    raise Failure(OTHER, f"replaying the changes until {point.name} took longer than backup_timeout, {seconds:.0f} s.")


def ended(point: Point, scratch: Scratch) -> Failure:
    """Return the failure of a server that has ended in the middle of its changes, by its last words."""
    said = scratch.log_file.read_text(errors="replace")
    lines = said.splitlines()
    if "recovery ended before configured recovery target was reached" in said:
        last = next((line for line in reversed(lines) if "last completed transaction was at log time" in line), "")
        reached = catalogue.moment(last.partition("log time ")[2].strip())
        # That transaction shows that the moment before it was reached.
        before = (reached - timedelta(microseconds=1)).replace(microsecond=0) if reached else None
        nearest = f"The last moment in it: -e 'at=\"{before.isoformat(sep=' ')}\"'" if before else ""
        return Failure(
            NO_BACKUP,
            f"the archive has a gap, or ends, before {point.name}. {nearest or 'Choose an earlier moment'}; or the "
            "newest backup of before with -e from=<repository>.",
        )
    # Whoever asks a server that is not ready is told so there as well.
    grave = [line for line in lines if any(word in line for word in ("FATAL", "PANIC", "ERROR"))]
    words = first_line(line for line in reversed(grave) if "accepting connections" not in line)
    return Failure(DAMAGED, f"the changes until {point.name} cannot be replayed: {words}")
