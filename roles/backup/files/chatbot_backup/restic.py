"""restic, and its messages translated into a cause, a remedy and an exit code of ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from chatbot_backup.common import (
    CACHE,
    DAMAGED,
    DISK_FULL,
    LOCKED,
    NO_REPOSITORY,
    OTHER,
    READ_ONLY,
    UNREACHABLE,
    WRONG_PASSWORD,
    Failure,
    RepositorySettings,
    Settings,
    first_line,
    log,
    widen,
)

# restic has distinct exit codes only since 0.17 (Debian 12 has 0.14), so its words decide. The first that fits is
# taken: what is certain comes before what may be several things.
CAUSES = (
    (WRONG_PASSWORD, ("wrong password",)),
    (LOCKED, ("already locked",)),
    (DISK_FULL, ("no space left", "disk quota exceeded", "insufficient storage")),
    (READ_ONLY, ("read-only file system",)),
    (
        UNREACHABLE,
        (
            "dial tcp", "connection refused", "no such host", "i/o timeout", "unable to start the sftp session",
            "connection reset", "no route to host", "access denied", "accessdenied", "permission denied",
            "403 forbidden", "401 unauthorized", "signature we calculated", "network is unreachable",
            "service unavailable",
        ),
    ),
    # Older versions ask this whatever has kept them from looking: that comes first.
    (NO_REPOSITORY, ("is there a repository at", "repository does not exist", "bucket does not exist")),
    (
        DAMAGED,
        (
            "hash does not match id", "does not match", "ciphertext verification failed", "invalid data returned",
            "repository contains errors", "not found in index", "pack has error", "unexpected eof", "is damaged",
        ),
    ),
)  # fmt: skip
REMEDIES = {
    WRONG_PASSWORD: "the password does not open {it}. Put the password that made this repository into "
    "chatbot_backup_password (or the repository's own) and run site.yml --tags backup.",
    LOCKED: "another restic is at work in {it}. Wait for it; a lock that was left behind goes with: "
    "chatbot-backup restic --repository {name} unlock",
    DISK_FULL: "a disk is full at {it} (df -h shows which). Make room, or lower keep_daily and keep_weekly of {name} "
    "in backup_repositories.",
    READ_ONLY: "{it} is read-only, so no backup can be written there. A disk with errors is mounted so: see dmesg "
    "and mount, then mount -o remount,rw.",
    NO_REPOSITORY: "there is no repository at {it}. Is a disk not mounted? A new one is made by: chatbot-backup init",
    UNREACHABLE: "{it} cannot be reached or refuses us. Check {name} in backup_repositories (repository, "
    "environment) and the network.",
    DAMAGED: "data in {it} is damaged. See what is lost with: chatbot-backup restic --repository {name} check "
    "--read-data; restore from another repository with: -e from=<name>.",
}


# What no second try mends. A missing bucket is one: newer versions of restic would ask for it again and again.
HOPELESS = (READ_ONLY, DISK_FULL, NO_REPOSITORY)


def cause(text: str) -> int:
    """Return our exit code for what restic has said."""
    said = text.lower()
    return next((code for code, words in CAUSES if any(word in said for word in words)), OTHER)


class Repository:
    """One repository of this host. `deadline` (seconds of time.monotonic) ends restic wherever it is."""

    def __init__(self, place: RepositorySettings, settings: Settings, seconds: float | None = None) -> None:
        self.place = place
        self.settings = settings
        self.name = place.name
        self.options: list[str] = []
        self.at_work: set[Running] = set()
        self.stopped = False
        self.deadline = time.monotonic() + (settings.timeout if seconds is None else seconds)

    def environment(self) -> dict[str, str]:
        """Return what restic finds in its environment; the password is in no list of arguments."""
        return (
            os.environ
            | self.place.environment
            | {
                "RESTIC_REPOSITORY": self.place.repository,
                "RESTIC_PASSWORD": self.place.password,
                "RESTIC_CACHE_DIR": str(CACHE),
                "RESTIC_PROGRESS_FPS": "0.1",
            }
        )

    def left(self) -> float:
        """Return the seconds until the deadline, at least one."""
        return max(1.0, self.deadline - time.monotonic())

    def failure(self, text: str, doing: str) -> Failure:
        """Return the failure that restic's words tell."""
        code = cause(text)
        if code == OTHER:
            return Failure(OTHER, f"restic {doing} failed in {self.place.repository}: {first_line([text])}")
        words = REMEDIES[code].format(it=self.place.repository, name=self.name)
        return Failure(code, f"{words} (restic {doing}: {first_line([text])[:200]})")

    def late(self) -> Failure:
        """Return the failure of a repository that takes too long."""
        return Failure(
            UNREACHABLE,
            f"{self.place.repository} did not answer in time. Check {self.name} in backup_repositories and the "
            "network; a large first backup needs a longer backup_timeout.",
        )

    @contextmanager
    def process(
        self, *arguments: str, stdin: Any = subprocess.DEVNULL, stdout: Any = subprocess.PIPE
    ) -> Iterator[Running]:
        """Start restic; it has ended when the block has."""
        with tempfile.TemporaryFile("w+") as errors:
            started = subprocess.Popen(
                ["restic", *self.options, *arguments],
                env=self.environment(),
                stdin=stdin,
                stdout=stdout,
                stderr=errors,
                cwd="/",
                # Ctrl-C is ours to pass on: an interrupted restic must not look like one that has finished.
                start_new_session=True,
            )
            widen(started.stdin, started.stdout)
            running = Running(started, errors)
            threading.Thread(target=running.watch, daemon=True).start()
            self.at_work.add(running)
            try:
                if self.stopped:  # between its start and its entry there
                    running.end()
                yield running
            finally:
                self.at_work.discard(running)
                running.end()

    def stop(self) -> None:
        """End what another thread has started, or is about to start: it fails there. This object is done for."""
        self.stopped = True
        for running in list(self.at_work):
            running.end()

    def run(self, *arguments: str, good: Iterable[int] = (0,), seconds: float | None = None) -> tuple[int, str]:
        """Run restic to its end; return its exit code and output.

        Raises:
            Failure: when it ends with another exit code than `good` ones, or does not end in time.
        """
        left = self.left()
        with self.process(*arguments) as running:
            try:
                output, _ = running.popen.communicate(timeout=min(left, seconds or left))
            except subprocess.TimeoutExpired:
                raise self.late() from None
            text = running.said()
        code = running.popen.returncode
        if code not in good:
            raise self.failure(text, arguments[0])
        if code and text.strip():
            log(text.strip())
        return code, output.decode(errors="replace")

    def open(self) -> None:
        """See that the repository is there and the password opens it. restic itself would try for 15 minutes."""
        self._to_read("cat", "config")

    def open_to_read(self) -> list[dict[str, Any]]:
        """The same before something is read from it; return this host's snapshots, oldest first."""
        return listed(self._to_read("snapshots", "--json", "--host", self.settings.host))

    def _to_read(self, *arguments: str) -> str:
        """Run the first command. Where the repository is read-only, this and all later ones take no lock.

        Nobody can take anything away there.
        """
        try:
            return self.run(*arguments, seconds=self.settings.connect_timeout)[1]
        except Failure as failure:
            if failure.code != READ_ONLY:
                raise
            self.options = ["--no-lock"]
            return self.run(*arguments, seconds=self.settings.connect_timeout)[1]

    def open_to_write(self) -> None:
        """The same before a backup; locks of processes that are gone are removed."""
        self.run("unlock", "--quiet", seconds=self.settings.connect_timeout)

    def snapshots(self) -> list[dict[str, Any]]:
        """Return this host's snapshots, oldest first."""
        return listed(self.run("snapshots", "--json", "--host", self.settings.host)[1])

    def backup(self, tags: list[str], *arguments: str) -> tuple[bool, dict[str, Any]]:
        """Make a snapshot of files; return whether all could be read, and restic's summary."""
        options = [word for tag in tags for word in ("--tag", tag)]
        code, output = self.run("backup", "--json", "--host", self.settings.host, *options, *arguments, good=(0, 3))
        return code == 0, summary(output)

    def backup_text(self, tags: list[str], name: str, text: str) -> dict[str, Any]:
        """Make a snapshot of one small file that exists only here; return restic's summary."""
        with tempfile.TemporaryFile() as file:
            file.write(text.encode())
            file.seek(0)
            options = [word for tag in tags for word in ("--tag", tag)]
            command = ["backup", "--json", "--host", self.settings.host, *options, "--stdin", "--stdin-filename", name]
            with self.process(*command, stdin=file) as running:
                output, _ = running.popen.communicate(timeout=self.left())
                said = running.said()
        if running.popen.returncode:
            raise self.failure(said, "backup")
        return summary(output.decode())

    def read_text(self, snapshot: str, name: str) -> str:
        """Return the content of one small file of a snapshot."""
        return self.run("dump", snapshot, f"/{name}")[1]

    def forget(self, snapshots: list[str]) -> None:
        """Drop snapshots by their identifiers. Their data goes at the next prune."""
        if snapshots and not self.place.append_only:
            self.run("forget", "--quiet", *snapshots)


class Running:
    """A restic that has been started, and what it has said on standard error."""

    def __init__(self, popen: subprocess.Popen[bytes], errors: IO[str]) -> None:
        self.popen = popen
        self.errors = errors

    def said(self) -> str:
        """Return its messages without the noise."""
        # Not by seeking: restic goes on writing where that would lead.
        text = os.pread(self.errors.fileno(), 1 << 20, 0).decode(errors="replace")
        return "\n".join(line for line in text.splitlines() if line and "unable to open cache" not in line)

    def watch(self) -> None:
        """End a restic that goes on trying what cannot get better: newer ones would for 15 minutes."""
        asked = 0.0
        while self.popen.poll() is None:
            with suppress(OSError, ValueError):
                if cause(self.said()) in HOPELESS:
                    # Once politely, so that it takes its lock away.
                    os.killpg(
                        self.popen.pid, signal.SIGKILL if asked and time.monotonic() > asked + 5 else signal.SIGINT
                    )
                    asked = asked or time.monotonic()
            time.sleep(0.5)

    def end(self) -> None:
        """End it without a snapshot, if it still runs: first politely, so that it takes its lock away."""
        for number in (signal.SIGINT, signal.SIGKILL):
            if self.popen.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(self.popen.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    self.popen.wait(timeout=10)
        for stream in (self.popen.stdin, self.popen.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


def listed(output: str) -> list[dict[str, Any]]:
    """Return the snapshots that restic has listed, oldest first."""
    return sorted(json.loads(output) or [], key=lambda each: str(each["time"]))


def summary(output: str) -> dict[str, Any]:
    """Return the summary that `restic backup --json` ends with.

    Raises:
        Failure: when there is none.
    """
    for line in reversed(output.splitlines()):
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict) and found.get("message_type") == "summary":
                return found
    raise Failure(OTHER, "restic's report cannot be read. Is it a version that Debian does not have? restic version")
