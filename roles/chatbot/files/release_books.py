#!/usr/bin/env python3
"""The books of a host's releases: which colour serves, what is being tried, and what became of every release.

    release_books.py DIRECTORY show
    release_books.py DIRECTORY begin JSON      a run begins: id, release, colour, by, commit, image,
                                               environment, rollback
    release_books.py DIRECTORY phase NAME      … and comes to its next phase
    release_books.py DIRECTORY commit          … and has passed: its colour is the one that serves from now on
    release_books.py DIRECTORY reject REASON   … and has not: everything stays as it was

DIRECTORY/state.json says what is agreed: `colour`, `release` and `since` serve, `previous` is where a rollback leads,
`run` is what an unfinished run had under way (null: nothing), `last_run` the last run that was committed. Each release
has DIRECTORY/releases/<id>/manifest.json with its verdict: trying, active, superseded, rejected or rolled back. A file
is replaced in one step and is on the disk before the next is written, so that a crash at any moment leaves books that a
later run can go on with. Each command prints the state, with `previous`, `kept` and `releases` as they follow from
the manifests. Standard library only; the host's Python reads it from standard input.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

EMPTY = {"colour": "", "release": "", "previous": "", "since": "", "last_run": "", "left": "", "run": None}
# Manifests of older releases are forgotten: the list fits on a screen.
LISTED = 20


def now() -> str:
    """Return the time in UTC, as ISO 8601 with fractions, so that releases can be sorted by it."""
    seconds = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}Z"


def load(file: Path) -> dict[str, Any]:
    """Return a file's object; an empty one when there is none."""
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}


def store(file: Path, content: dict[str, Any]) -> None:
    """Replace a file in one step, and return when that is on the disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    staged = file.with_suffix(".new")
    with staged.open("w") as stream:
        # Settings are in it, which may be nobody's business.
        os.fchmod(stream.fileno(), 0o600)
        stream.write(json.dumps(content, indent=2, sort_keys=True) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    staged.replace(file)
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class Books:
    """State and manifests of one host."""

    def __init__(self, directory: Path) -> None:
        """Read them; a host without any has empty ones."""
        self.directory = directory
        self.state = EMPTY | load(directory / "state.json")

    def manifest(self, release: str) -> Path:
        """Return the path of a release's manifest."""
        return self.directory / "releases" / release / "manifest.json"

    def manifests(self) -> list[dict[str, Any]]:
        """Return every release that there are books of: the one activated or tried last comes first."""
        found = [load(file) for file in self.directory.glob("releases/*/manifest.json")]
        found = [one for one in found if one.get("id")]
        return sorted(found, key=lambda one: str(one.get("activated") or one["when"]), reverse=True)

    def note(self, release: str, **changes: Any) -> None:
        """Change a release's manifest; one that has none gets one, as on a host of before there were any."""
        if release:
            blank = {"id": release, "when": now(), "who": "", "commit": "", "image": "", "activated": "", "reason": ""}
            store(self.manifest(release), blank | load(self.manifest(release)) | changes)

    def save(self, **changes: Any) -> None:
        """Change the state."""
        self.state |= changes
        store(self.directory / "state.json", self.state)

    def good(self) -> list[str]:
        """Return the releases to go back to, the newest first: they have served, and nobody went back from them."""
        served = [one["id"] for one in self.manifests() if one["verdict"] == "superseded"]
        return [release for release in served if release != self.state["release"]]

    def begin(self, run: dict[str, Any]) -> None:
        """Write down what is going to be tried. The serving release keeps its verdict when only settings are new."""
        self.settle()
        if self.state["release"] and not self.manifest(self.state["release"]).exists():
            self.note(self.state["release"], verdict="active", activated=self.state["since"])
        if run["release"] != self.state["release"]:
            origin = {"who": run.get("by", ""), "commit": run.get("commit", ""), "image": run.get("image", "")}
            self.note(run["release"], verdict="trying", reason="", **({} if run.get("rollback") else origin))
        kept = ("id", "release", "colour", "by", "rollback", "environment")
        self.save(run={key: run.get(key) for key in kept} | {"phase": "stage", "since": now()})

    def phase(self, name: str) -> None:
        """Write down that the run has come to a phase."""
        if self.state["run"]:
            self.save(run=self.state["run"] | {"phase": name})

    def commit(self) -> None:
        """Make the run's release the one that serves. The state is written first: it decides after a crash."""
        run = self.state["run"]
        if not run:
            self.settle()
            return
        old, new = self.state["release"], run["release"]
        left = "rolled back" if run.get("rollback") else "superseded"
        self.save(
            colour=run["colour"],
            release=new,
            since=now(),
            last_run=run["id"],
            run=None,
            left=left if old != new else "",
        )
        if old and old != new:
            reason = f"rolled back by {run.get('by')}" if run.get("rollback") else ""
            self.note(old, verdict=left, reason=reason)
        # A rollback starts a release with the settings that it served with.
        self.note(
            new, verdict="active", reason="", activated=self.state["since"], environment=run.get("environment") or {}
        )
        self.save(previous=next(iter(self.good()), ""))

    def settle(self) -> None:
        """Finish a commit that a crash cut after its first step."""
        for one in self.manifests():
            if one["id"] == self.state["release"]:
                if one["verdict"] != "active":
                    self.note(one["id"], verdict="active", reason="", activated=self.state["since"])
            elif one["verdict"] == "active":
                self.note(one["id"], verdict=self.state.get("left") or "superseded")

    def reject(self, reason: str) -> None:
        """Close the run without its release. One that serves, or served well before, keeps its good name."""
        self.settle()
        run = self.state["run"]
        if run:
            if run["release"] != self.state["release"]:
                again = bool(run.get("rollback"))
                self.note(run["release"], verdict="superseded" if again else "rejected", reason=reason)
            self.save(run=None)

    def report(self, keep: int) -> dict[str, Any]:
        """Return the state with what follows from it. `kept` also has the newest rejected one, to be looked at."""
        manifests = self.manifests()
        rejected = [one["id"] for one in manifests if one["verdict"] in ("rejected", "trying")]
        kept = [self.state["release"], *self.good()[: max(0, keep - 1)], *rejected[:1]]
        run = self.state["run"]
        kept += [run["release"]] if run else []
        forgotten = [one["id"] for one in manifests[LISTED:] if one["id"] not in kept]
        return self.state | {
            "previous": next(iter(self.good()), ""),
            "kept": [release for release in dict.fromkeys(kept) if release],
            "releases": manifests[:LISTED],
            "forgotten": forgotten,
        }


def main() -> int:
    """Do what the command line says and print the state."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("command", choices=["show", "begin", "phase", "commit", "reject"])
    parser.add_argument("argument", nargs="?", default="")
    parser.add_argument("--keep", type=int, default=3, help="so many good releases stay, the active one included")
    options = parser.parse_args()
    books = Books(options.directory)
    if options.command == "begin":
        books.begin(json.loads(options.argument))
    elif options.command in ("phase", "reject"):
        getattr(books, options.command)(options.argument)
    elif options.command == "commit":
        books.commit()
    print(json.dumps(books.report(options.keep)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
