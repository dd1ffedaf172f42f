"""What has become of the runs: a file for programs, and metrics for node_exporter's textfile collector."""

from __future__ import annotations

import json
import time
from typing import Any

from chatbot_backup.common import KILLED, STATE, Settings, load, replace

RUNS = STATE / "runs.json"
LAST_SUCCESS = STATE / "last-success.json"
CHECKS = STATE / "checks.json"
DRILL = STATE / "drill.json"
BASE = STATE / "base.json"

# Metric, meaning, and the key of a repository's last good run that it shows.
OF_SUCCESS = (
    ("backup_last_success_timestamp_seconds", "End of the last good backup.", "timestamp"),
    ("backup_duration_seconds", "Duration of the last good backup.", "duration_seconds"),
    ("backup_size_bytes", "Size of everything in the last good backup.", "size_bytes"),
    ("backup_added_bytes", "Data that the last good backup added.", "added_bytes"),
    ("backup_database_dump_bytes", "Size of the database's dump.", "database_dump_bytes"),
    ("backup_snapshots", "Backups of this host in the repository.", "backups"),
)
OF_DRILL = (
    ("backup_last_verified_restore_timestamp_seconds", "End of the last drill that was good.", "verified"),
    ("backup_drill_last_run_timestamp_seconds", "End of the last drill, good or bad.", "end"),
    ("backup_drill_success", "1 if the last drill was good.", "success"),
    ("backup_drill_exit_code", "Exit code of the last drill (see chatbot-backup).", "code"),
    ("backup_recovery_time_seconds", "Time that the last good drill took until the chat served (RTO).", "rto"),
    ("backup_recovery_point_seconds", "Age of the backup that the last good drill restored (RPO).", "rpo"),
    ("backup_drill_restored_bytes", "Size of the dump that the last good drill restored.", "bytes"),
)
# The archive of PostgreSQL's changes is no repository of restic's, but the metrics have a place for it.
ARCHIVE = "archive"
OF_ARCHIVE = (
    ("backup_archive_recovery_point_timestamp_seconds", "Everything written before it is in the archive.", "point"),
    ("backup_archive_queue_bytes", "Changes on the disk that the archive has not taken yet.", "waiting"),
    ("backup_archive_gap", "1 if changes were dropped since the last base backup.", "gap"),
)
OF_BASE = (
    ("backup_base_last_success_timestamp_seconds", "End of the last good base backup.", "timestamp"),
    ("backup_base_duration_seconds", "Duration of the last good base backup.", "duration_seconds"),
    ("backup_base_size_bytes", "Size of the database's files in the last good base backup.", "size_bytes"),
    ("backup_base_added_bytes", "Data that the last good base backup added to the archive.", "added_bytes"),
)


def metric(name: str, meaning: str, values: dict[str, float]) -> str:
    """Return one metric in the exporter's text format, with a value for each repository."""
    if not values:
        return ""
    lines = [f"# HELP {name} {meaning}", f"# TYPE {name} gauge"]
    for repository, value in values.items():
        labels = f'{{repository="{repository}"}}' if repository else ""
        lines.append(f"{name}{labels} {value:.15g}")
    return "\n".join(lines) + "\n"


def publish(settings: Settings, name: str, text: str) -> None:
    """Write a file of metrics in one step, where the exporter's directory exists."""
    if settings.metrics_directory.is_dir():
        replace(settings.metrics_directory / name, text, 0o644)


def text_of_runs(runs: dict[str, Any], names: list[str]) -> str:
    """Return the metrics of the last runs of these repositories."""
    known = {name: runs[name] for name in names if name in runs}
    ended = {name: one for name, one in known.items() if one.get("end")}
    parts = [
        metric(
            "backup_last_run_timestamp_seconds",
            "End of the last backup run, good or bad.",
            {name: one["end"] for name, one in ended.items()},
        ),
        metric(
            "backup_last_run_success",
            "1 if the last backup run was good.",
            {name: float(one["code"] == 0) for name, one in ended.items()},
        ),
        metric(
            "backup_last_exit_code",
            "Exit code of the last backup run (see chatbot-backup).",
            {name: one["code"] for name, one in ended.items()},
        ),
    ]
    for name, meaning, key in OF_SUCCESS:
        parts.append(
            metric(name, meaning, {place: one["success"][key] for place, one in known.items() if one.get("success")})
        )
    return "".join(parts)


class Runs:
    """The last run of every repository."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.names = [each.name for each in settings.repositories]
        self.known = load(RUNS)

    def begin(self) -> None:
        """Write down that all repositories are to get a backup: one that is killed now has not got it."""
        for name in self.names:
            self.known[name] = self.known.get(name, {}) | {"begin": time.time(), "running": True}
        self._store()

    def end(self, name: str, code: int, success: dict[str, Any] | None = None) -> None:
        """Write down how it went with one repository."""
        self.known[name] = self.known[name] | {"end": time.time(), "code": code, "running": False}
        if success is not None:
            self.known[name]["success"] = success
        self._store()
        self.publish()

    def killed(self) -> list[str]:
        """Write down which repositories a run that has ended without a word has left; return their names."""
        left = [name for name in self.names if self.known.get(name, {}).get("running")]
        for name in left:
            self.end(name, KILLED)
        return left

    def finish(self) -> None:
        """Let the health check know of a run that was good everywhere."""
        done = [self.known[name] for name in self.names]
        if all(one["code"] == 0 for one in done):
            everywhere = {name: self.known[name]["success"] for name in self.names}
            replace(LAST_SUCCESS, json.dumps(done[0]["success"] | {"repositories": everywhere}) + "\n")

    def publish(self) -> None:
        """Write the metrics."""
        publish(self.settings, "chatbot_backup.prom", text_of_runs(self.known, self.names))

    def _store(self) -> None:
        replace(RUNS, json.dumps(self.known) + "\n")


def publish_checks(settings: Settings, results: dict[str, int]) -> None:
    """Write down how the checks of the repositories went."""
    known = load(CHECKS)
    known |= {name: {"end": time.time(), "success": float(code == 0)} for name, code in results.items()}
    replace(CHECKS, json.dumps(known) + "\n")
    here = {each.name: known[each.name] for each in settings.repositories if each.name in known}
    text = metric(
        "backup_check_success",
        "1 if the last check of the repository was good.",
        {name: one["success"] for name, one in here.items()},
    ) + metric(
        "backup_check_timestamp_seconds",
        "End of the last check, good or bad.",
        {name: one["end"] for name, one in here.items()},
    )
    publish(settings, "chatbot_backup_check.prom", text)


def publish_drill(settings: Settings, repository: str, changes: dict[str, Any]) -> None:
    """Write down how a drill of a repository, or of the archive, went; what is known of the last good one stays."""
    suffix = "_archive" if repository == ARCHIVE else ""
    file = DRILL.with_stem(DRILL.stem + suffix)
    known = load(file) if load(file).get("repository") == repository else {}
    known |= {"repository": repository} | changes
    replace(file, json.dumps(known) + "\n")
    text = "".join(metric(name, meaning, {repository: known[key]}) for name, meaning, key in OF_DRILL if key in known)
    publish(settings, f"chatbot_backup_drill{suffix}.prom", text)


def publish_archive(settings: Settings, figures: dict[str, float]) -> None:
    """Write down how far the archive of PostgreSQL's changes is."""
    text = "".join(metric(name, meaning, {ARCHIVE: figures[key]}) for name, meaning, key in OF_ARCHIVE)
    publish(settings, "chatbot_backup_archive.prom", text)


def load_base() -> dict[str, Any]:
    """Return what is known of the base backups: the last run, and the last good one."""
    return load(BASE)


def publish_base(settings: Settings, changes: dict[str, Any]) -> None:
    """Write down how a base backup went; what is known of the last good one stays."""
    known = load_base() | changes
    replace(BASE, json.dumps(known) + "\n")
    text = metric(
        "backup_base_last_run_success", "1 if the last base backup was good.", {ARCHIVE: float(known["code"] == 0)}
    )
    if "success" in known:
        text += "".join(metric(name, meaning, {ARCHIVE: known["success"][key]}) for name, meaning, key in OF_BASE)
    publish(settings, "chatbot_backup_base.prom", text)
