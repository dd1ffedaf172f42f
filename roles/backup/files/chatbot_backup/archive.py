"""The archive of PostgreSQL's changes, kept by pgBackRest: base backups, and every segment of WAL since.

With both, the database can be had as it was at any moment. PostgreSQL hands a segment over when it is full, or after
`archive_timeout` seconds; where the archive does not take it, it stays on the disk, up to pgBackRest's
`archive-push-queue-max`. What is dropped beyond that is a gap: no moment behind it can be reached until the next base
backup. `files/pgbackrest-archive-push` writes such a gap down, because PostgreSQL itself does not hear of it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chatbot_backup.books import load_base, publish_archive, publish_base
from chatbot_backup.common import (
    BUSY,
    DISK_FULL,
    NO_REPOSITORY,
    OTHER,
    READ_ONLY,
    STOPPED,
    UNREACHABLE,
    USAGE,
    WRONG_PASSWORD,
    Failure,
    Settings,
    as_user,
    first_line,
    log,
)
from chatbot_backup.database import Server

CONFIGURATION = Path("/etc/pgbackrest/pgbackrest.conf")
# Where the role puts a new one until it has proven good, for root alone.
TRIED = Path("/etc/chatbot-backup/pgbackrest.conf")
# Where a configuration is that is used for one command.
RUN = Path("/run")
# One line for each segment that was dropped: when it was last written, in seconds, and its name.
DROPPED = Path("/var/spool/pgbackrest/chatbot-dropped")
# A segment of WAL, in bytes, as the distribution's clusters have them.
SEGMENT = 16 << 20
# What `pgbackrest info` says of a repository: there is no archive in it yet.
NOTHING_THERE = (1, 3)
# A repository that pgBackRest cannot read has this one, and words.
UNREADABLE = 99

# pgBackRest's words, in lower case, and what they mean; the first that fits is taken.
CAUSES = (
    # Nonsense instead of text is what a wrong passphrase makes of a file.
    (WRONG_PASSWORD, ("formaterror", "cryptoerror")),
    (BUSY, ("unable to acquire lock",)),
    (DISK_FULL, ("no space left", "disk quota exceeded")),
    (READ_ONLY, ("read-only file system",)),
    (
        UNREACHABLE,
        (
            "hostconnecterror", "unable to connect", "connection refused", "unable to get address", "timeout",
            "serviceerror", "protocolerror", "403 (forbidden)", "401 (unauthorized)", "permission denied",
        ),
    ),
    (NO_REPOSITORY, ("missing stanza", "filemissingerror", "pathmissingerror", "stanza-create been performed")),
)  # fmt: skip
REMEDIES = {
    WRONG_PASSWORD: "the password does not open the archive (or what is there is damaged). Put the password that made "
    "it into backup_point_in_time_password and run site.yml --tags backup.",
    BUSY: "another pgBackRest is at work. Wait for it: pgrep -a pgbackrest",
    DISK_FULL: "the disk of the archive is full (df -h). Make room, or lower backup_point_in_time_keep_days.",
    READ_ONLY: "the archive's file system is read-only. A disk with errors is mounted so: see dmesg and mount.",
    UNREACHABLE: "the archive cannot be reached or refuses us. Check backup_point_in_time_repositories and the "
    "network.",
    NO_REPOSITORY: "there is no archive where it should be. Is a disk not mounted? A new one is made by: "
    "site.yml --tags backup",
}


def failure(said: str, doing: str) -> Failure:
    """Return the failure that pgBackRest's words tell."""
    lines = [" ".join(line.split()) for line in readable(said).splitlines()]
    shown = first_line([line for line in lines if "ERROR" in line] + lines)[:200]
    code = next((code for code, words in CAUSES if any(word in said.lower() for word in words)), OTHER)
    if code == OTHER:
        return Failure(OTHER, f"pgBackRest's {doing} failed: {shown}")
    return Failure(code, f"{REMEDIES[code]} (pgbackrest {doing}: {shown})")


def readable(text: str) -> str:
    """Return a text without what no terminal can show: a wrong passphrase makes pgBackRest quote nonsense."""
    return "".join(each for each in text if (each.isprintable() or each == "\n") and each != "\ufffd")


def pgbackrest(settings: Settings, *words: str, configuration: Path = CONFIGURATION, seconds: float = 0) -> str:
    """Run pgBackRest as postgres; return its output.

    Raises:
        Failure: when it fails, with the remedy; or does not end within `seconds`, by default the time of a backup.
    """
    command = ["pgbackrest", f"--config={configuration}", f"--stanza={settings.stanza}", *words]
    doing = next(word for word in words if not word.startswith("-"))
    limit = seconds or settings.timeout
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=limit, **as_user("postgres"))
    except FileNotFoundError:
        raise Failure(OTHER, "pgBackRest is not installed. Install it with: site.yml --tags backup") from None
    except subprocess.TimeoutExpired:
        raise Failure(UNREACHABLE, f"pgBackRest's {doing} did not end in time. {REMEDIES[UNREACHABLE]}") from None
    output = str(done.stdout.decode(errors="replace"))
    if done.returncode:
        raise failure(done.stderr.decode(errors="replace") + output, doing)
    return output


def info(settings: Settings, configuration: Path = CONFIGURATION) -> dict[str, Any]:
    """Return what pgBackRest knows of the archive: repositories with their state, clusters, backups.

    Raises:
        Failure: when no repository can be read.
    """
    if not settings.stanza:
        raise Failure(USAGE, "point in time is off on this host. Set backup_point_in_time: true in the inventory.")
    # Warnings would stand before the answer.
    words = ("info", "--output=json", "--log-level-console=off", "--log-level-stderr=error")
    output = pgbackrest(settings, *words, configuration=configuration, seconds=300)
    found: list[dict[str, Any]] = json.loads(output or "[]", strict=False)
    nothing: dict[str, Any] = {"repo": [], "backup": [], "db": []}
    about = next((one for one in found if one["name"] == settings.stanza), nothing)
    unreadable = [one for one in about["repo"] if one["status"]["code"] == UNREADABLE]
    for one in unreadable:
        log(f"chatbot-backup: repository {one['key']} of the archive: {readable(one['status']['message'])[:200]}")
    if unreadable and len(unreadable) == len(about["repo"]):
        raise failure(unreadable[0]["status"]["message"], "info")
    return about


def try_configuration(settings: Settings) -> None:
    """See that pgBackRest takes a new configuration, and that its passwords open what is there, before it is in use.

    Raises:
        Failure: when it does not. A repository that cannot be reached now is no fault of the configuration.
    """
    try:
        with written(TRIED.read_text()) as configuration:
            about = info(settings, configuration)
    except Failure as reason:
        if reason.code not in (UNREACHABLE, NO_REPOSITORY):
            raise
        return
    for one in about["repo"]:
        told = failure(one["status"]["message"], "info")
        if one["status"]["code"] == UNREADABLE and told.code == WRONG_PASSWORD:
            raise told


def init(settings: Settings) -> list[str]:
    """Make the archive, or let it know of a new cluster, and see that segments arrive; return what was done.

    A base backup belongs to it when something was made or continued, and when the archive was switched on again:
    without one no moment from now on can be reached.

    Raises:
        Failure: when PostgreSQL's segments do not arrive in every repository.
    """
    done = []
    about, present = info(settings), cluster_in_use()
    for one in about["repo"]:
        known = [each for each in about["db"] if each["repo-key"] == one["key"]]
        if one["status"]["code"] in NOTHING_THERE or not known:
            alone(settings, one["key"], "stanza-create")
            done.append(f"a new archive was made in repository {one['key']}")
        elif identity(max(known, key=lambda each: int(each["id"]))) != present:
            alone(settings, one["key"], "stanza-upgrade")
            done.append(f"the archive in repository {one['key']} goes on with the present cluster")
    pgbackrest(settings, "check", seconds=300)
    about = info(settings)
    if done or "success" not in load_base() or not all(of_cluster_in_use(about, one["key"]) for one in about["repo"]):
        base(settings)
        done.append("a base backup was made")
    return done


def alone(settings: Settings, key: int, command: str) -> None:
    """Run a command for one repository that pgBackRest only has for all: on a rebuilt host they differ.

    Raises:
        Failure: when it fails.
    """
    lines = []
    for line in CONFIGURATION.read_text().splitlines():
        repository = re.fullmatch(r"repo(\d+)(-.*)", line)
        if repository is None:
            lines.append(line)
        elif int(repository[1]) == key:
            lines.append(f"repo1{repository[2]}")
    with written("\n".join(lines) + "\n") as configuration:
        pgbackrest(settings, command, configuration=configuration, seconds=300)


@contextmanager
def written(text: str) -> Iterator[Path]:
    """Provide a configuration for the block's duration; only postgres can read it."""
    with tempfile.NamedTemporaryFile("w", prefix="chatbot-archive-", suffix=".conf", dir=RUN) as file:
        file.write(text)
        file.flush()
        shutil.chown(file.name, "postgres")
        yield Path(file.name)


def identity(database: dict[str, Any]) -> tuple[str, str]:
    """Return the version and the number of a cluster that the archive knows."""
    return database["version"], str(database["system-id"])


def cluster_in_use() -> tuple[str, str]:
    """Return the version and the number of the cluster that serves."""
    server = Server()
    return str(server.version()), server.sql("SELECT system_identifier FROM pg_control_system()")


def of_cluster_in_use(about: dict[str, Any], key: int = 0) -> list[dict[str, Any]]:
    """Return the good base backups of the cluster that serves, oldest first, of one repository or of all."""
    present = cluster_in_use()
    same = {
        (one["repo-key"], one["id"]) for one in about["db"] if identity(one) == present and key in (0, one["repo-key"])
    }
    found = [
        one
        for one in about["backup"]
        if not one["error"] and (one["database"]["repo-key"], one["database"]["id"]) in same
    ]
    return sorted(found, key=lambda one: int(one["timestamp"]["stop"]))


def base(settings: Settings) -> list[dict[str, Any]]:
    """Make a base backup in every repository, then drop old ones with their changes; return those that were made.

    Raises:
        Failure: when one repository did not get its own; the others have theirs. The metrics say so, too.
    """
    begin = time.time()
    try:
        made = [base_in(settings, one["key"], begin) for one in info(settings)["repo"]]
    except Failure as reason:
        publish_base(settings, {"end": time.time(), "code": reason.code})
        raise
    failures = [one for one in made if isinstance(one, Failure)]
    good = [one for one in made if not isinstance(one, Failure)]
    if failures:
        publish_base(settings, {"end": time.time(), "code": failures[0].code})
        raise failures[0]
    figures = {
        "timestamp": time.time(),
        "duration_seconds": round(time.time() - begin, 1),
        "size_bytes": max(one["info"]["size"] for one in good),
        "added_bytes": sum(one["info"]["repository"]["delta"] for one in good),
    }
    publish_base(settings, {"begin": begin, "end": time.time(), "code": 0, "success": figures})
    if not dropped(begin):
        DROPPED.unlink(missing_ok=True)
    return good


def base_in(settings: Settings, key: int, begin: float) -> dict[str, Any] | Failure:
    """Make a base backup in one repository: a full one every `full_every` days, otherwise what has changed since it.

    Returns pgBackRest's description of it, or the failure: it keeps no other repository from getting its own.
    """
    try:
        full = [one for one in of_cluster_in_use(info(settings), key) if one["type"] == "full"]
        # Half a day less: it starts at the same time every day.
        old = not full or begin - int(full[-1]["timestamp"]["start"]) > (settings.full_every - 0.5) * 86400
        pgbackrest(settings, f"--type={'full' if old else 'diff'}", f"--repo={key}", "backup")
        return of_cluster_in_use(info(settings), key)[-1]
    except Failure as reason:
        if reason.code > STOPPED:
            raise
        log(f"chatbot-backup: base backup in repository {key}: {reason}")
        return reason


def dropped(since: float) -> list[float]:
    """Return when the segments were written that the archive does not have, of those later than a time."""
    try:
        lines = DROPPED.read_text().splitlines()
    except FileNotFoundError:
        return []
    return [moment for moment in (float(line.split()[0]) for line in lines) if moment > since]


def watch(settings: Settings) -> dict[str, float]:
    """Tell the metrics up to which moment everything is in the archive.

    A segment is handed over `archive_timeout` seconds after its first change at the latest. So what was written
    before the oldest one that waits was finished, less that time, is there; without one, what was written until now.

    Raises:
        Failure: when PostgreSQL does not answer, or does not archive. The metrics get old then.
    """
    asked = Server().sql(
        """
        SELECT extract(epoch FROM clock_timestamp()), extract(epoch FROM min(modification)), count(modification),
            (SELECT setting FROM pg_settings WHERE name = 'archive_timeout'), current_setting('archive_mode')
        FROM (SELECT 1) AS one LEFT JOIN pg_ls_archive_statusdir() ON name LIKE '%.ready'
        """
    )
    now, oldest, waiting, timeout, mode = asked.split("|")
    if mode != "on":
        raise Failure(OTHER, "PostgreSQL does not archive (archive_mode). Switch it on with: site.yml --tags backup")
    gap = dropped(float(load_base().get("begin", 0)))
    point = min([float(oldest or now), *gap]) - float(timeout)
    figures = {"point": point, "waiting": int(waiting) * SEGMENT, "gap": float(bool(gap))}
    publish_archive(settings, figures)
    return figures


def flush(seconds: float = 60) -> None:
    """Let everything that was written until now get into the archive, and mark its end with a transaction.

    PostgreSQL knows that it has come to a moment only by a transaction behind it.

    Raises:
        Failure: when PostgreSQL does not answer.
    """
    server = Server()
    server.sql("SELECT pg_current_xact_id()")
    segment = server.sql("SELECT pg_walfile_name(pg_switch_wal())")
    end = time.monotonic() + seconds
    waiting = "SELECT name FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"
    while f"{segment}.ready" in server.sql(waiting).splitlines():
        if time.monotonic() > end:
            log(f"segment {segment} is not in the archive yet: what was written last cannot be reached")
            return
        time.sleep(0.5)
