"""Restoring: everything is made beside what is in use and compared with the manifest, and only then takes its place.

What the swap replaces is kept, and a record of each restore says where, so that one command takes it back.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chatbot_backup import catalogue, point_in_time
from chatbot_backup.backup import STAGING
from chatbot_backup.catalogue import DUMP, MANIFEST, Backup
from chatbot_backup.common import (
    DAMAGED,
    DISK_FULL,
    NO_BACKUP,
    NOT_AS_RECORDED,
    OTHER,
    STATE,
    USAGE,
    Failure,
    Settings,
    load,
    megabytes,
    replace,
)
from chatbot_backup.database import Server, restore
from chatbot_backup.manifest import VERSION, compare_files, compare_tables, named
from chatbot_backup.point_in_time import Point
from chatbot_backup.restic import Repository

RECORDS = STATE / "restores"
# What "all" means: configuration is Ansible's, and is restored only when somebody asks for it.
PARTS = {"all": ("database", "uploads"), "database": ("database",), "uploads": ("uploads",), "config": ("config",)}
# Room beside the calculated need, in bytes.
RESERVE = 64 << 20
# For a database that comes from the archive alone: no backup, and nothing in it.
NO_FILES = Backup("", catalogue.REGULAR, "")
NO_MANIFEST: dict[str, Any] = {
    "release": "",
    "database": None,
    "files": {"paths": [], "uploads": {"sha256": {}, "unsettled": [], "bytes": 0}},
}


@dataclass
class Plan:
    """What is to be restored, from where, and under which names beside what is in use."""

    repository: Repository
    backup: Backup
    manifest: dict[str, Any]
    parts: list[str]
    # Backups that are not taken for the latest, because their time is yet to come.
    passed_over: list[str] = field(default_factory=list)
    # The moment that the database is brought back to, where it comes from the archive and not from the backup.
    point: Point | None = None
    # What somebody who has named a time has to know of it.
    note: str = ""
    stamp: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y%m%dt%H%M%S"))

    @property
    def settings(self) -> Settings:
        """Return this host's settings."""
        return self.repository.settings

    @property
    def name(self) -> str:
        """Return what is restored, as -e at= takes it: a moment, or a backup's name."""
        return self.point.name if self.point else self.backup.name

    @property
    def work(self) -> Path:
        """Return the directory that only root can read."""
        return STATE / f"restore-{self.stamp}"

    @property
    def new_database(self) -> str:
        """Return the name of the database that is made."""
        return f"{self.settings.database}_restore_{self.stamp}"

    @property
    def old_database(self) -> str:
        """Return the name that the present database gets."""
        return f"{self.settings.database}_before_{self.stamp}"

    def beside(self, word: str) -> Path:
        """Return a directory beside the uploads, on the same file system."""
        return self.settings.uploads.with_name(f"{self.settings.uploads.name}.{word}-{self.stamp}")

    def about(self) -> dict[str, Any]:
        """Return the plan for people and programs."""
        database = self.manifest["database"] or {}
        return {
            "backup": self.name,
            "repository": self.repository.name,
            "begun": self.point.name if self.point else self.backup.begun.isoformat(),
            "release": self.manifest["release"],
            "parts": self.parts,
            "passed_over": self.passed_over,
            "base": self.point.label if self.point else "",
            "files": self.backup.name if self.point and self.parts != ["database"] else "",
            "note": self.note,
            "tables": len(database.get("rows", {})),
            "rows": sum(database.get("rows", {}).values()),
            "uploads": len(self.manifest["files"]["uploads"]["sha256"]),
        }


def read_manifest(repository: Repository, backup: Backup) -> dict[str, Any]:
    """Read what a backup says of itself, and see that its parts are there.

    Raises:
        Failure: when it is not complete, or was made by a newer version.
    """
    manifest: dict[str, Any] = json.loads(repository.read_text(backup.manifest, MANIFEST))
    if manifest["version"] > VERSION:
        raise Failure(
            USAGE, f"backup {backup.name} was made by a newer version. Update this host first: site.yml --tags backup"
        )
    wanted = [*(["database"] if manifest["database"] else []), "files"]
    missing = [part for part in wanted if part not in backup.parts]
    if missing:
        raise Failure(
            DAMAGED,
            f"backup {backup.name} in {repository.name} is not complete: its {' and '.join(missing)} snapshot was "
            "removed. Choose another one from playbooks/backups.yml, or another repository with -e from=<name>.",
        )
    return manifest


def plan(settings: Settings, at: str, what: str, source: str) -> Plan:
    """See that a restore can be done: repository, backup, contents, version of PostgreSQL and room. Changes nothing.

    Raises:
        Failure: when it cannot.
    """
    if what not in PARTS:
        raise Failure(USAGE, f"what={what} is not understood. Use one of: {', '.join(PARTS)}.")
    repository = Repository(settings.repository(source), settings)
    point, note = None, ""
    # Who names a repository wants a backup of it.
    if settings.stanza and "database" in PARTS[what] and not source:
        point, note = point_in_time.find(settings, at)
    if point and what == "database":
        # No repository of restic's is needed for it, nor need one be within reach.
        made = Plan(repository, NO_FILES, NO_MANIFEST, ["database"], point=point)
    else:
        made = plan_from_backup(repository, at, what, point, note)
    if "database" in made.parts:
        check_version(made, Server())
    check_room(made)
    return made


def plan_from_backup(repository: Repository, at: str, what: str, point: Point | None, note: str) -> Plan:
    """Choose the backup that is meant. Beside a `point`, its uploads are what is wanted, if there are any.

    Raises:
        Failure: when there is none, or nothing in it that this host could take.
    """
    settings = repository.settings
    known = catalogue.backups(repository.open_to_read())
    where = f"repository {repository.name} for {settings.host}"
    others = [each.name for each in settings.repositories if each.name != repository.name]
    where += f" (others: -e from={' or '.join(others)})" if others else ""
    try:
        backup = catalogue.choose(at, known, where)
    except Failure as failure:
        if note:
            raise Failure(failure.code, f"{failure} Nor can it be had to the second: {note}.") from None
        if point is None or failure.code != NO_BACKUP:
            raise
        note = "There is no backup of the uploads from then or before: they stay as they are."
        return Plan(repository, NO_FILES, NO_MANIFEST, ["database"], point=point, note=note)
    manifest = read_manifest(repository, backup)
    parts = [part for part in PARTS[what] if (part == "database" and point) or holds(settings, manifest, part)]
    if not parts or (what != "all" and what not in parts):
        raise Failure(
            NO_BACKUP,
            f"backup {backup.name} holds no {what if what != 'all' else 'database and no uploads'} that this host "
            "could take. playbooks/backups.yml lists the others.",
        )
    if note:
        note = f"Not of that moment, but the backup before it: {note}."
    elif point and "uploads" in parts:
        note = f"The uploads are those of backup {backup.name}, the newest of then or before."
    if point:
        manifest |= {"database": None}  # that one is of another time
    passed_over = catalogue.of_the_future(known) if at == "latest" else []
    return Plan(repository, backup, manifest, parts, passed_over, point, note)


def holds(settings: Settings, manifest: dict[str, Any], part: str) -> bool:
    """Tell whether a backup has something to restore of that part, for this host."""
    if part == "database":
        return bool(settings.database and manifest["database"])
    if part == "uploads":
        return str(settings.uploads) in manifest["files"]["paths"]
    return bool(configuration(settings, manifest))


def configuration(settings: Settings, manifest: dict[str, Any]) -> list[tuple[Path, Path]]:
    """Return the configuration of a backup: where it is in the snapshot, and where it belongs."""
    pairs = [(path, path) for path in settings.paths] + [
        (STAGING / path.name, path) for path in settings.sqlite_databases
    ]
    return [(kept, path) for kept, path in pairs if str(kept) in manifest["files"]["paths"]]


def check_version(made: Plan, server: Server) -> None:
    """Refuse a dump of a newer PostgreSQL, which an older one cannot read."""
    dumped = made.point.version if made.point else made.manifest["database"]["postgresql"]
    theirs, ours = int(str(dumped).partition(".")[0]), server.version()
    if theirs > ours:
        raise Failure(
            USAGE,
            f"the backup is from PostgreSQL {theirs}, this host has {ours}, which cannot read it. Restore it on a "
            f"host with PostgreSQL {theirs} or newer (Debian 13 has 17).",
        )


def check_room(made: Plan) -> None:
    """Refuse a restore for which there is no room: all is made beside what is in use."""
    needs: dict[Path, int] = {}
    if "database" in made.parts:
        # The database as large as it was, and the journal of writing it.
        size = made.point.bytes if made.point else made.manifest["database"]["bytes"]
        needs[Path(Server().sql("SHOW data_directory"))] = int(size * 1.5)
    if made.point:
        # The whole cluster, and the changes that are replayed.
        needs[existing(point_in_time.PLACE)] = int(made.point.bytes * 1.2) + RESERVE
    if "uploads" in made.parts:
        needs[existing(made.settings.uploads)] = made.manifest["files"]["uploads"]["bytes"]
    for directory, own in needs.items():
        # What else goes to the same disk needs its room there, too.
        need = own + sum(
            other
            for path, other in needs.items()
            if path != directory and path.stat().st_dev == directory.stat().st_dev
        )
        free = shutil.disk_usage(directory).free
        if free < need + RESERVE:
            raise Failure(
                DISK_FULL,
                f"the restore needs {megabytes(need + RESERVE)} at {directory}, but the disk has only "
                f"{megabytes(free)} free. Make room (df -h), for example by dropping old "
                f"{made.settings.database}_before_… databases.",
            )


def existing(path: Path) -> Path:
    """Return the nearest directory above that exists."""
    return path if path.is_dir() else existing(path.parent)


def run(made: Plan) -> dict[str, Any]:
    """Restore: make all of it, compare all of it, then swap. Returns what was done, for people and programs.

    Raises:
        Failure: when something is not as the manifest says. What is in use has not been touched then.
    """
    begin = time.monotonic()
    clean(made.settings)
    try:
        swaps = make(made)
        if len(made.parts) != len(swaps):
            raise Failure(OTHER, "not every part was made; nothing was changed.")
        with undisturbed():
            for swap in swaps:
                swap()
    finally:
        clean(made.settings)
    done = made.about() | {"seconds": round(time.monotonic() - begin, 1), "stamp": made.stamp}
    done["kept"] = load(RECORDS / f"{made.stamp}.json")["steps"]
    return done


def make(made: Plan) -> list[Callable[[], None]]:
    """Make every part, files beside the database: PostgreSQL and restic wait for one another most of the time.

    Returns what swaps them, the database first.
    """
    files = [part for part in made.parts if part != "database"]
    with ThreadPoolExecutor(1) as beside:
        made_beside = [beside.submit(MAKERS[part], made) for part in files]
        try:
            database = [MAKERS["database"](made)] if "database" in made.parts else []
            return database + [each.result() for each in made_beside]
        except BaseException:
            # Nobody waits for files that are of no use any more.
            for each in made_beside:
                each.cancel()
            made.repository.stop()
            raise


@contextmanager
def undisturbed() -> Iterator[None]:
    """Pass signals that ask to end over: what has come to its swap is finished, for its parts belong together.

    Blocking them would not do: they would reach a thread that watches a restic, and Python the main one.
    """
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def clean(settings: Settings) -> None:
    """Remove what this or a killed restore has made and not used."""
    point_in_time.clean()
    for directory in [*STATE.glob("restore-*"), *settings.uploads.parent.glob(f"{settings.uploads.name}.restore-*")]:
        shutil.rmtree(directory, ignore_errors=True)
    if settings.database:
        prefix = f"{settings.database}_restore_"
        for name in Server().databases(prefix):
            if re.fullmatch(r"\d{8}t\d{6}", name.removeprefix(prefix)):
                Server().drop(name)


def fill(
    repository: Repository, backup: Backup, manifest: dict[str, Any], server: Server, name: str, owner: str
) -> None:
    """Make a database from a backup and compare it with the manifest; the dump is never on this host's disk.

    Raises:
        Failure: when it is not what the manifest says.
    """
    expected = manifest["database"]
    server.create(name, owner)
    with repository.process("dump", backup.parts["database"], f"/{DUMP}") as running:
        try:
            restored = restore(server, name, running.popen)
        except Failure as failure:
            running.popen.wait(timeout=60)
            words = running.said()
            if words and "signal" not in words:
                raise repository.failure(words, "dump") from None
            raise Failure(failure.code, f"backup {backup.name}: {failure}") from None
        if running.popen.wait(timeout=repository.left()) != 0:
            raise repository.failure(running.said(), "dump")
    differences = []
    if restored.sha256 != expected["dump_sha256"]:
        differences.append(
            f"the dump has {restored.bytes} bytes with another checksum, instead of {expected['dump_bytes']}"
        )
    differences += compare_tables(expected["rows"], server.rows(name))
    if differences:
        raise Failure(
            NOT_AS_RECORDED, f"the database of backup {backup.name} is not what its manifest says: {named(differences)}"
        )


def untouched(failure: Failure) -> Failure:
    """Add to a failure what somebody wants to know first."""
    return Failure(
        failure.code,
        f"{failure} Nothing was changed: what was in use still is. Choose another backup from playbooks/backups.yml "
        "with -e at=<backup>, or another repository with -e from=<name>.",
    )


def make_database(made: Plan) -> Callable[[], None]:
    """Make the database beside the present one; return what swaps them."""
    server, settings = Server(), made.settings
    try:
        if made.point:
            owner = settings.database_owner
            filled = point_in_time.fill(made.point, settings, server, made.new_database, owner)
            made.manifest = made.manifest | {"database": filled}
        else:
            fill(made.repository, made.backup, made.manifest, server, made.new_database, settings.database_owner)
    except Failure as failure:
        raise untouched(failure) from None

    def swap() -> None:
        record(
            made,
            {"kind": "database", "old": made.old_database, "forget": f"sudo -u postgres dropdb {made.old_database}"},
        )
        if settings.database in server.databases(settings.database):
            server.exchange(settings.database, made.new_database, made.old_database)
        else:
            server.sql(f'ALTER DATABASE "{made.new_database}" RENAME TO "{settings.database}"')

    return swap


def take_files(made: Plan, target: Path, paths: list[Path]) -> None:
    """Restore paths of a backup below a directory.

    Raises:
        Failure: when restic finds them damaged or cannot write them.
    """
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    options = [word for path in paths for word in ("--include", str(path))]
    try:
        made.repository.run("restore", made.backup.parts["files"], "--target", str(target), *options)
    except Failure as failure:
        raise untouched(failure) from None


def make_uploads(made: Plan) -> Callable[[], None]:
    """Make the uploads beside the present ones; return what swaps them.

    They belong to whom the present ones belong to: the application's account has another number on another host.
    """
    uploads, new, old = made.settings.uploads, made.beside("restore"), made.beside("before")
    if uploads.is_mount():
        raise Failure(
            USAGE,
            f"{uploads} is a file system of its own, so nothing can take its place. Mount {uploads.parent} instead.",
        )
    take_files(made, new, [uploads])
    restored = new / uploads.relative_to("/")
    restored.mkdir(parents=True, exist_ok=True)
    differences = compare_files(made.manifest["files"]["uploads"], restored)
    if differences:
        words = f"the uploads of backup {made.backup.name} are not what its manifest says: {named(differences)}."
        raise untouched(Failure(NOT_AS_RECORDED, words))
    owner = (uploads if uploads.exists() else uploads.parent).stat()
    for path in (restored, *restored.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)

    def swap() -> None:
        record(made, {"kind": "uploads", "old": str(old), "forget": f"sudo rm -r {old}"})
        if uploads.exists():
            uploads.rename(old)
        restored.rename(uploads)

    return swap


def make_config(made: Plan) -> Callable[[], None]:
    """Make the configuration in a directory that only root can read; return what puts it in place."""
    pairs = configuration(made.settings, made.manifest)
    take_files(made, made.work, [kept for kept, _ in pairs])
    missing = [str(kept) for kept, _ in pairs if not (made.work / kept.relative_to("/")).exists()]
    if missing:
        raise untouched(Failure(NOT_AS_RECORDED, f"backup {made.backup.name} has lost {named(missing)}."))

    def swap() -> None:
        before = STATE / f"before-{made.stamp}"
        for _, path in pairs:
            if path.exists():
                copy(path, before / path.relative_to("/"))
        paths = [str(path) for _, path in pairs]
        record(made, {"kind": "config", "old": str(before), "paths": paths, "forget": f"sudo rm -r {before}"})
        for kept, path in pairs:
            adopt(made.work / kept.relative_to("/"), path)
            put(made.work / kept.relative_to("/"), path)
        notice(made.settings)

    return swap


MAKERS = {"database": make_database, "uploads": make_uploads, "config": make_config}


def copy(source: Path, target: Path) -> None:
    """Copy a file or directory over another, with owners and modes; what only the target has stays."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = source.is_dir()
    if directory:
        target.mkdir(exist_ok=True)
    words = [
        "cp",
        "--archive",
        "--remove-destination",
        "--no-target-directory",
        f"{source}/." if directory else str(source),
        str(target),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(OTHER, f"{source} could not be copied to {target}: {done.stderr.strip()} Is there room? df -h")


def adopt(source: Path, target: Path) -> None:
    """Give restored files the owners of those that they replace: accounts have other numbers on another host."""
    for path in (source, *source.rglob("*")):
        there = target / path.relative_to(source)
        if os.path.lexists(there):
            owner = there.lstat()
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def put(source: Path, target: Path) -> None:
    """Put a restored file or directory in place. A database of SQLite gets the owner that its program needs."""
    if source.is_dir():
        copy(source, target)
        return
    like = target if target.exists() else target.parent
    owner, mode = like.stat(), 0o640
    service(target, "stop")
    try:
        copy(source, target)
        shutil.chown(target, owner.st_uid, owner.st_gid)
        target.chmod(mode)
    finally:
        service(target, "start")


def service(database: Path, verb: str) -> None:
    """Stop or start the program that has a database of SQLite open: Grafana is the one that this project knows."""
    if database.name == "grafana.db":
        known = subprocess.run(
            ["systemctl", "is-enabled", "--quiet", "grafana-server"], check=False, capture_output=True
        )
        if known.returncode == 0:
            subprocess.run(["systemctl", verb, "grafana-server"], check=False, capture_output=True)


def notice(settings: Settings) -> None:
    """Let nginx read restored certificates, where it runs and takes the configuration."""
    if settings.paths:
        subprocess.run(["systemctl", "try-reload-or-restart", "nginx"], check=False, capture_output=True)


def record(made: Plan, step: dict[str, Any]) -> None:
    """Write down what is about to be replaced, before it is: a crash after it can be taken back as well."""
    RECORDS.mkdir(mode=0o700, exist_ok=True)
    file = RECORDS / f"{made.stamp}.json"
    known = load(file) or made.about() | {"stamp": made.stamp, "steps": [], "undone": ""}
    known["steps"].append(step)
    replace(file, json.dumps(known) + "\n")


def undo(settings: Settings) -> dict[str, Any]:
    """Take the newest restore back; return its record. What it had brought is kept under a name with `undone`.

    Raises:
        Failure: when there is none, or what it replaced is gone.
    """
    records = [load(file) for file in sorted(RECORDS.glob("*.json"))]
    open_ones = [one for one in records if not one.get("undone")]
    if not open_ones:
        raise Failure(
            NO_BACKUP,
            "there is no restore to take back on this host. An older state comes with: restore.yml -e at=<backup>",
        )
    last = open_ones[-1]
    check_kept(settings, last)
    for step in reversed(last["steps"]):
        TAKERS[step["kind"]](settings, step, last["stamp"])
    last["undone"] = datetime.now(UTC).isoformat(timespec="seconds")
    replace(RECORDS / f"{last['stamp']}.json", json.dumps(last) + "\n")
    return last


def check_kept(settings: Settings, last: dict[str, Any]) -> None:
    """See that everything which a restore replaced is still there, before anything is changed."""
    for step in last["steps"]:
        if step["kind"] == "database":
            present = bool(Server().databases(step["old"])) or not replaced(settings, step, last["stamp"])
        else:
            present = Path(step["old"]).exists() or not replaced(settings, step, last["stamp"])
        if not present:
            raise Failure(
                NO_BACKUP,
                f"{step['old']}, which the restore of {last['backup']} had set aside, is gone; nothing was changed. "
                "The state before it is a backup, too: chatbot-backup list shows it as pre-restore, and restore.yml "
                "-e at=<backup> restores it.",
            )


def replaced(settings: Settings, step: dict[str, Any], stamp: str) -> bool:
    """Tell whether a recorded step was begun at all: a crash may have come before it."""
    if step["kind"] == "database":
        return not Server().databases(f"{settings.database}_restore_{stamp}")
    return not settings.uploads.with_name(f"{settings.uploads.name}.restore-{stamp}").exists()


def take_back_database(settings: Settings, step: dict[str, Any], stamp: str) -> None:
    """Let the database that was set aside take its place again."""
    if Server().databases(step["old"]):
        Server().exchange(settings.database, step["old"], f"{settings.database}_undone_{stamp}")


def take_back_uploads(settings: Settings, step: dict[str, Any], stamp: str) -> None:
    """Let the uploads that were set aside take their place again."""
    old = Path(step["old"])
    if old.exists():
        if settings.uploads.exists():
            settings.uploads.rename(old.with_name(f"{settings.uploads.name}.undone-{stamp}"))
        old.rename(settings.uploads)


def take_back_config(settings: Settings, step: dict[str, Any], _: str) -> None:
    """Put the configuration that was set aside back; files that only the restore has brought stay."""
    for path in map(Path, step["paths"]):
        kept = Path(step["old"]) / path.relative_to("/")
        if kept.exists():
            put(kept, path)
    notice(settings)


TAKERS = {"database": take_back_database, "uploads": take_back_uploads, "config": take_back_config}
