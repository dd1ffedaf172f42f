"""What a backup says of itself, and whether what was restored is that."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

VERSION = 1
# Differences that a message names; their number is always told.
NAMED = 5


def checksum(file: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def files_below(directory: Path) -> list[Path]:
    """Return the regular files below a directory, sorted; none where there is no directory."""
    found = []
    for folder, _, names in os.walk(directory):
        found += [Path(folder, name) for name in names if stat.S_ISREG(Path(folder, name).lstat().st_mode)]
    return sorted(found)


class Checksums:
    """Checksums of files in use. What changes during a backup is known afterwards; no promise is made of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.known: dict[str, tuple[tuple[int, int, int], str]] = {}

    def read(self) -> None:
        """Take the checksum of every file that is new or has changed."""
        present = {}
        for name, seen in self._look().items():
            known = self.known.get(name)
            try:
                present[name] = known if known and known[0] == seen else (seen, checksum(self.directory / name))
            except FileNotFoundError:
                continue  # deleted by the application meanwhile
        self.known = present

    def settled(self) -> dict[str, Any]:
        """Return what the manifest says: checksums of files that are as they were when they were read, the names of the
        others, and the size of all in bytes."""
        now = self._look()
        good = {name: value for name, (seen, value) in self.known.items() if now.get(name) == seen}
        return {
            "sha256": good,
            "unsettled": sorted((set(now) | set(self.known)) - set(good)),
            "bytes": sum(size for _, size, _ in now.values()),
        }

    def _look(self) -> dict[str, tuple[int, int, int]]:
        seen = {}
        for file in files_below(self.directory):
            try:
                status = file.lstat()
            except FileNotFoundError:
                continue
            seen[str(file.relative_to(self.directory))] = (status.st_ino, status.st_size, status.st_mtime_ns)
        return seen


def named(differences: list[str]) -> str:
    """Return some of the differences in words."""
    more = len(differences) - NAMED
    return "; ".join(differences[:NAMED]) + (f"; and {more} more" if more > 0 else "")


def compare_tables(expected: dict[str, int], found: dict[str, int]) -> list[str]:
    """Return how the restored tables differ from those of the manifest, by their numbers of rows."""
    differences = [
        f"table {name} is missing" if name not in found else f"table {name} has {found[name]} rows instead of {rows}"
        for name, rows in expected.items()
        if found.get(name) != rows
    ]
    return differences + [f"table {name} is not in the manifest" for name in sorted(set(found) - set(expected))]


def compare_files(manifest: dict[str, Any], directory: Path) -> list[str]:
    """Return how restored files differ from the manifest's: missing, changed or unknown ones."""
    expected: dict[str, str] = manifest["sha256"]
    unsettled = set(manifest["unsettled"])
    found = {str(file.relative_to(directory)) for file in files_below(directory)}
    differences = [f"{name} is missing" for name in sorted(set(expected) - found)]
    differences += [f"{name} is not in the manifest" for name in sorted(found - set(expected) - unsettled)]
    return differences + [
        f"{name} has another content"
        for name in sorted(found & set(expected))
        if checksum(directory / name) != expected[name]
    ]
