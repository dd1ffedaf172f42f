"""Making backups: each repository for itself, so that a failing one keeps none of the others from getting theirs."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chatbot_backup import catalogue
from chatbot_backup.books import Runs, publish_checks
from chatbot_backup.catalogue import DUMP, MANIFEST, PRE_RESTORE, REGULAR
from chatbot_backup.common import (
    INCOMPLETE,
    NO_REPOSITORY,
    OTHER,
    STATE,
    STOPPED,
    Failure,
    RepositorySettings,
    Settings,
    load,
    log,
    megabytes,
)
from chatbot_backup.database import Moment, Server, StoppedError, dump
from chatbot_backup.manifest import VERSION, Checksums
from chatbot_backup.restic import Repository, summary

STAGING = STATE / "staging"
# So long every backup is kept: one that somebody made before a risky change must not go for the next one of that day.
KEEP_ALL = "2d"
# How many incomplete backups are kept for whoever looks for the reason.
KEEP_INCOMPLETE = 3


def run(settings: Settings, purpose: str = REGULAR, only: str = "") -> list[str]:
    """Back up into every repository (or `only` one); return the names of the backups.

    Raises:
        Failure: when one of them did not get its backup; the others have theirs.
    """
    # The state before a restore is kept where it is quickest to have again.
    only = only or (settings.repositories[0].name if purpose == PRE_RESTORE else "")
    runs = Runs(settings)
    regular = purpose == REGULAR and not only
    if regular:
        runs.begin()
    checksums = Checksums(settings.uploads)
    made, failures = [], []
    for place in [settings.repository(only)] if only else settings.repositories:
        try:
            success = back_up(settings, place, purpose, checksums)
        except Failure as failure:
            failures.append(failure)
            log(f"chatbot-backup: {place.name}: {failure}")
            if regular:
                runs.end(place.name, failure.code)
            if failure.code > STOPPED:
                runs.killed()
                raise
        else:
            made.append(str(success["snapshot"]))
            if regular:
                runs.end(place.name, 0, success)
    if regular:
        runs.finish()
    if len(failures) == 1 and not made:
        raise Failure(failures[0].code, str(failures[0]))
    if failures:
        raise Failure(
            failures[0].code,
            f"{len(failures)} of {len(failures) + len(made)} repositories got no good backup; the reasons are above.",
        )
    return made


def back_up(settings: Settings, place: RepositorySettings, purpose: str, checksums: Checksums) -> dict[str, Any]:
    """Make one backup in one repository, then drop old ones; return its figures.

    Raises:
        Failure: when there is no good backup; nothing takes what was stored for one.
    """
    repository = Repository(place, settings)
    repository.open_to_write()
    begin = time.time()
    name = datetime.fromtimestamp(begin, UTC).strftime(catalogue.NAME)
    tags = [purpose, f"run-{name}"]
    manifest: dict[str, Any] = {
        "version": VERSION,
        "name": name,
        "host": settings.host,
        "purpose": purpose,
        "begin": begin,
        "release": load(settings.release_state).get("release", ""),
        "database": None,
    }
    added = 0
    try:
        if settings.database:
            manifest["database"], added = store_database(settings, repository, tags)
        files, stored = store_files(settings, repository, tags, checksums)
    except subprocess.TimeoutExpired:
        raise repository.late() from None
    manifest |= {"files": files, "end": time.time()}
    added += stored["data_added"]
    repository.backup_text([*tags, "manifest"], MANIFEST, json.dumps(manifest))
    kept = drop_old(settings, repository, purpose)
    dumped = manifest["database"]["dump_bytes"] if manifest["database"] else 0
    size = dumped + stored["total_bytes_processed"]
    log(
        f"backup {name} in {place.name}: {megabytes(size)}, {megabytes(added)} of them new; {kept} backups are kept "
        "there"
    )
    return {
        "snapshot": name,
        "timestamp": time.time(),
        "duration_seconds": round(time.time() - begin, 1),
        "size_bytes": size,
        "added_bytes": added,
        "database_dump_bytes": dumped,
        "backups": kept,
        "snapshots": kept,
    }


def store_database(settings: Settings, repository: Repository, tags: list[str]) -> tuple[dict[str, Any], int]:
    """Stream a dump into the repository; return what the manifest says of it, and the bytes that it added."""
    options = [word for tag in [*tags, "part-database"] for word in ("--tag", tag)]
    command = ["backup", "--json", "--host", settings.host, *options, "--stdin", "--stdin-filename", DUMP]
    # restic's progress goes to a file: nobody would read it from a pipe while the dump is written.
    with (
        tempfile.TemporaryFile() as progress,
        Moment(Server(), settings.database) as moment,
        repository.process(*command, stdin=subprocess.PIPE, stdout=progress) as running,
    ):
        try:
            dumped = dump(moment, running.popen)
        except StoppedError:
            running.popen.wait(timeout=repository.left())
            raise repository.failure(running.said(), "backup") from None
        if running.popen.wait(timeout=repository.left()) != 0:
            raise repository.failure(running.said(), "backup")
        progress.seek(0)
        output = progress.read().decode()
    about = {
        "name": settings.database,
        "postgresql": moment.version,
        "schema": moment.schema,
        "bytes": moment.bytes,
        "dump_bytes": dumped.bytes,
        "dump_sha256": dumped.sha256,
        "rows": moment.rows,
    }
    return about, int(summary(output)["data_added"])


def store_files(
    settings: Settings, repository: Repository, tags: list[str], checksums: Checksums
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Store uploads, configuration and state; return what the manifest says of them, and restic's summary.

    A file that is deleted while it is read makes a snapshot incomplete: once more, then it is an error.
    """
    shutil.rmtree(STAGING, ignore_errors=True)
    STAGING.mkdir(mode=0o700)
    try:
        paths = [settings.uploads, *settings.paths, *copies(settings)]
        paths += [found for pattern in settings.reference_paths for found in matching(pattern)]
        present = [str(path) for path in paths if path.exists()]
        for path in paths:
            if not path.exists():
                log(f"{path} does not exist here: left out")
        if not present:
            # The manifest still needs a snapshot to speak of; a host without any path has a database only.
            (STAGING / "empty").touch()
            present = [str(STAGING / "empty")]
        for attempt in (1, 2):
            checksums.read()
            whole, stored = repository.backup([*tags, "part-files"], "--exclude", "/etc/chatbot-backup", *present)
            if whole:
                return {"paths": present, "uploads": checksums.settled()}, stored
            if attempt == 1:
                repository.forget([stored["snapshot_id"]])
                log("some files could not be read: trying once more")
        keep_incomplete(settings, repository, stored["snapshot_id"])
        raise Failure(
            INCOMPLETE,
            f"some files could not be read (named above), so this is no good backup; what could be read is snapshot "
            f"{stored['snapshot_id'][:8]}, tagged incomplete. Mend the files or take them out of backup_paths.",
        )
    finally:
        shutil.rmtree(STAGING, ignore_errors=True)


def matching(pattern: str) -> list[Path]:
    """Return the files of a pattern with an absolute path."""
    return sorted(Path("/").glob(pattern.lstrip("/")))


def keep_incomplete(settings: Settings, repository: Repository, snapshot: str) -> None:
    """Keep an incomplete snapshot under a tag of its own, which no restore takes for a good one."""
    if repository.place.append_only:
        return
    repository.run("tag", "--quiet", "--set", "incomplete", snapshot)
    repository.run(
        "forget", "--quiet", "--host", settings.host, "--tag", "incomplete", "--group-by", "host",
        "--keep-last", str(KEEP_INCOMPLETE),
    )  # fmt: skip


def copies(settings: Settings) -> list[Path]:
    """Copy databases of SQLite with its own means: a copy of the file itself may be half of a transaction."""
    made = []
    for database in settings.sqlite_databases:
        if not database.exists():
            continue
        copy = STAGING / database.name
        try:
            with (
                closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as source,
                closing(sqlite3.connect(copy)) as target,
            ):
                source.backup(target)
        except sqlite3.Error as error:
            raise Failure(
                OTHER,
                f"{database} cannot be copied: {error}. Look at it with: sqlite3 {database} 'PRAGMA integrity_check'",
            ) from None
        made.append(copy)
    return made


def drop_old(settings: Settings, repository: Repository, purpose: str) -> int:
    """Drop backups beyond the number to keep and what killed runs have left; return how many backups there are now.

    In an append-only repository nothing can be dropped from here: that is its purpose.
    """
    known = repository.snapshots()
    if repository.place.append_only:
        return len(catalogue.backups(known))
    days, weeks = str(repository.place.keep_daily), str(repository.place.keep_weekly)
    rules = ["--keep-within", KEEP_ALL, "--keep-daily", days, "--keep-weekly", weeks]
    regular = [each for each in catalogue.backups(known) if each.purpose == REGULAR]
    # Not more than as many days as are kept: restic need not be asked, which takes it half a second of processor.
    dropped = forget_old(settings, repository, REGULAR, *rules) if len(regular) > repository.place.keep_daily else set()
    if purpose == PRE_RESTORE:
        dropped |= forget_old(settings, repository, PRE_RESTORE, "--keep-last", str(settings.keep_pre_restore))
    kept = [each for each in known if each["id"] not in dropped]
    left = catalogue.left_over(kept)
    repository.forget(left)
    if dropped or left:
        repository.run("prune", "--quiet", "--max-unused", "10%")
    return len(catalogue.backups(kept))


def forget_old(settings: Settings, repository: Repository, purpose: str, *rules: str) -> set[str]:
    """Drop the manifests that the rules do not keep; return their identifiers. Their parts are left over then."""
    which = ["--host", settings.host, "--group-by", "host", "--tag", f"{purpose},manifest"]
    _, output = repository.run("forget", "--json", *which, *rules)
    groups = json.loads(output.strip() or "[]") or []
    return {each["id"] for group in groups for each in group["remove"] or []}


def check(settings: Settings) -> None:
    """Check every repository and read a part of its data back.

    Raises:
        Failure: when one of them is not good; all were looked at.
    """
    results: dict[str, int] = {}
    for place in settings.repositories:
        try:
            repository = Repository(place, settings)
            repository.open_to_write()
            repository.run("check", "--quiet", f"--read-data-subset={settings.check_subset}")
        except Failure as failure:
            log(f"chatbot-backup: {place.name}: {failure}")
            results[place.name] = failure.code
        else:
            log(f"{place.name}: no errors were found")
            results[place.name] = 0
    publish_checks(settings, results)
    bad = [name for name, code in results.items() if code]
    if bad:
        raise Failure(results[bad[0]], f"the check of {', '.join(bad)} was not good; the reasons are above.")


def init(settings: Settings) -> None:
    """Make the repositories that are not there yet.

    A wrong password or a lost network never leads to a new one, and restic itself refuses to make one over another. One
    that cannot be reached is told and keeps none of the others from being made.
    """
    failures = []
    for place in settings.repositories:
        repository = Repository(place, settings)
        try:
            repository.open()
            log(f"{place.name}: the repository is there")
        except Failure as failure:
            if failure.code != NO_REPOSITORY:
                failures.append(failure)
                log(f"chatbot-backup: {place.name}: {failure}")
                continue
            repository.run("init", "--quiet")
            log(f"{place.name}: a new repository was made")
    if failures:
        raise failures[0]


def rows_of(settings: Settings, place: RepositorySettings) -> list[dict[str, Any]]:
    """Return the backups of one repository for people and programs, oldest first."""
    repository = Repository(place, settings)
    return [
        {
            "backup": each.name,
            "repository": place.name,
            "purpose": each.purpose,
            "snapshot": each.manifest[:8],
            "parts": each.parts,
        }
        for each in catalogue.backups(repository.open_to_read())
    ]
