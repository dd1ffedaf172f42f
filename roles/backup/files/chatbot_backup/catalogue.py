"""Which backups there are: what snapshots belong together, which one somebody means, which are left over.

A backup is up to three snapshots with a tag in common (`run-20261126T031700Z`, when it began): `part-database` with the
dump, `part-files`, and at last `manifest`, which says what is in the others. Without a manifest there is no backup:
what a killed run has left is never taken for a good one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from chatbot_backup.common import NO_BACKUP, USAGE, Failure

NAME = "%Y%m%dT%H%M%SZ"
DUMP, MANIFEST = "database.dump", "manifest.json"
# The purpose of a backup: every night's, or the state before a restore.
REGULAR, PRE_RESTORE = "chatbot", "pre-restore"
PARTS = ("database", "files")
# What else somebody may name than a time: a backup, or one of its snapshots.
BACKUP_NAME, SNAPSHOT = r"\d{8}T\d{6}Z", r"[0-9a-f]{8,64}"
# A backup that began later than so long from now was made while the clock was wrong, or the clock is wrong now.
TOLERANCE = timedelta(hours=1)


@dataclass(frozen=True)
class Backup:
    """One backup in one repository: identifiers of its snapshots by part."""

    name: str
    purpose: str
    manifest: str
    parts: dict[str, str] = field(default_factory=dict)

    @property
    def begun(self) -> datetime:
        """When it began; later changes are not in it."""
        return datetime.strptime(self.name, NAME).replace(tzinfo=UTC)


def run_of(snapshot: dict[str, Any]) -> str:
    """Return the name of the run that has made a snapshot; empty for somebody else's."""
    tags = snapshot.get("tags") or []
    return next((tag.removeprefix("run-") for tag in tags if re.fullmatch(r"run-\d{8}T\d{6}Z", tag)), "")


def backups(snapshots: list[dict[str, Any]]) -> list[Backup]:
    """Return the complete backups, oldest first."""
    found = {}
    for each in snapshots:
        tags = each.get("tags") or []
        if run_of(each) and "manifest" in tags:
            purpose = PRE_RESTORE if PRE_RESTORE in tags else REGULAR
            parts = {
                part: one["id"]
                for one in snapshots
                for part in PARTS
                if run_of(one) == run_of(each) and f"part-{part}" in (one.get("tags") or [])
            }
            found[run_of(each)] = Backup(run_of(each), purpose, each["id"], parts)
    return [found[name] for name in sorted(found)]


def left_over(snapshots: list[dict[str, Any]]) -> list[str]:
    """Return the snapshots of runs that have no manifest: killed ones, and those whose manifest was dropped."""
    whole = {each.name for each in backups(snapshots)}
    return [
        each["id"]
        for each in snapshots
        if run_of(each) and run_of(each) not in whole and any(f"part-{part}" in each["tags"] for part in PARTS)
    ]


def moment(text: str) -> datetime | None:
    """Read a time as people write it, in the host's time zone unless it names one; a date alone is that day's end."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        found += timedelta(days=1, seconds=-1)
    return found.astimezone(UTC)


def now() -> datetime:
    """Return the time; a test has its own."""
    return datetime.now(UTC)


def of_the_future(known: list[Backup]) -> list[str]:
    """Return the names of the regular backups whose time is yet to come."""
    limit = now() + TOLERANCE
    return [each.name for each in known if each.purpose == REGULAR and each.begun > limit]


def choose(at: str, known: list[Backup], where: str) -> Backup:
    """Return the backup that somebody means: latest, a backup's name, a snapshot's identifier or a time.

    The latest one is never of the future: made while the clock was wrong, it would stay the latest for good.

    Raises:
        Failure: when there is none, with a list of those that there are, or when nothing of that form is known.
    """
    regular = [each for each in known if each.purpose == REGULAR]
    listed = (
        ", ".join(f"{each.name} ({each.purpose})" for each in known[-10:]) or "none; playbooks/backup.yml makes one"
    )
    if at == "latest":
        ahead = of_the_future(known)
        chosen, wanted = [each for each in regular if each.name not in ahead], "good backup"
        if ahead and not chosen:
            raise Failure(
                NO_BACKUP,
                f"All backups in {where} are of the future: {', '.join(ahead[-10:])}. Is the clock of this host right "
                "(timedatectl)? If it is, choose one by its name: -e at=<backup>.",
            )
    elif re.fullmatch(BACKUP_NAME, at):
        chosen, wanted = [each for each in known if each.name == at], f"backup {at}"
    elif re.fullmatch(SNAPSHOT, at):
        chosen = [each for each in known if any(one.startswith(at) for one in (each.manifest, *each.parts.values()))]
        wanted = f"snapshot {at}"
    elif (limit := moment(at)) is not None:
        chosen, wanted = [each for each in regular if each.begun <= limit], f"backup from {at} or before"
    else:
        raise Failure(
            USAGE,
            f"at={at} is not understood. Use latest, a backup's name or snapshot from playbooks/backups.yml, or a "
            f"time such as "
            '"2026-11-26 12:00".',
        )
    if not chosen:
        raise Failure(NO_BACKUP, f"There is no {wanted} in {where}. Available: {listed}.")
    return chosen[-1]
