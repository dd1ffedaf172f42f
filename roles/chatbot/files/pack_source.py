#!/usr/bin/env python3
"""Pack the application's source into a tar archive and print the name of the release that it makes.

The archive depends on nothing but names, contents and executable bits: no times, owners or order of the file system.
So the same source gives the same archive, and its digest names the release, on every machine, with or without git.
What .dockerignore keeps out of the image is no part of the release either: a changed test or README releases nothing.

Runs on the control node; standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

NAME_LENGTH = 12


# Docker reads these two itself, whatever .dockerignore says of them.
ALWAYS = ("Dockerfile", ".dockerignore")


def pattern(line: str) -> re.Pattern[str]:
    """Translate one line of .dockerignore (without its `!`). It matches a path and everything below that path."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.split(r"(\*\*/|\*\*|\*|\?)", line.strip("/"))
    return re.compile("".join(parts.get(token, re.escape(token)) for token in tokens) + "(?:/.*)?")


def ignore_lines(root: Path) -> list[str]:
    """Return what .dockerignore says, without its comments."""
    file = root / ".dockerignore"
    lines = [line.strip() for line in file.read_text().splitlines()] if file.is_file() else []
    return [line for line in lines if line and not line.startswith("#")]


def ignore_rules(lines: list[str]) -> list[tuple[re.Pattern[str], bool]]:
    """Return .dockerignore as (pattern, whether it leaves out), in the file's order: the last match decides."""
    return [(pattern(line.lstrip("!")), not line.startswith("!")) for line in lines]


def included_paths(lines: list[str]) -> list[str]:
    """Return what the lines of .dockerignore with a `!` begin with, as far as it is no pattern."""
    return [re.split(r"[*?]", line[1:].strip("/"))[0] for line in lines if line.startswith("!")]


def source_files(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name in the archive, path) of every file that Docker would be sent.

    A directory that is left out is not looked into where no line brings back anything below: node_modules alone has
    18,000 files.
    """
    lines = ignore_lines(root)
    rules, included = ignore_rules(lines), included_paths(lines)

    def left_out(name: str) -> bool:
        verdicts = [leaves_out for rule, leaves_out in rules if rule.fullmatch(name)]
        return bool(verdicts and verdicts[-1])

    def closed(name: str) -> bool:
        inside = f"{name}/"
        return left_out(name) and not any(path.startswith(inside) or inside.startswith(path) for path in included)

    for directory, directories, files in os.walk(root):
        above = "" if Path(directory) == root else f"{Path(directory).relative_to(root).as_posix()}/"
        directories[:] = [name for name in directories if not closed(above + name)]
        for name in (above + file for file in files):
            if name in ALWAYS or not left_out(name):
                yield name, root / name


def archive(entries: dict[str, Path]) -> bytes:
    """Return the tar archive of the entries. A symbolic link goes in as the file it leads to."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, path in sorted(entries.items()):
            content = path.read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def main() -> int:
    """Read the command line, write the archive, print the release's name; 1 and one line when that is not possible."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="directory with the Dockerfile")
    parser.add_argument("directory", type=Path, help="where to write the archive, as <name of the release>.tar")
    parser.add_argument("--authority", action="append", default=[], type=Path, help="certificate that goes into ca/")
    parser.add_argument("--also", default="", help="further text that the release's name depends on")
    options = parser.parse_args()

    if not (options.source / "Dockerfile").is_file():
        print(f"{options.source} has no Dockerfile: chatbot_source must be the application's", file=sys.stderr)
        return 1
    entries = dict(source_files(options.source))
    for authority in options.authority:
        # Debian's update-ca-certificates reads files named *.crt only.
        entries[f"ca/{authority.stem}.crt"] = authority
    try:
        content = archive(entries)
        release = hashlib.sha256(content + options.also.encode()).hexdigest()[:NAME_LENGTH]
        options.directory.mkdir(parents=True, exist_ok=True)
        # Several hosts may be served at once: whoever reads the archive finds it complete.
        with tempfile.NamedTemporaryFile(dir=options.directory, delete=False) as file:
            file.write(content)
        Path(file.name).replace(options.directory / f"{release}.tar")
    except OSError as error:
        print(f"cannot pack the application: {error}", file=sys.stderr)
        return 1
    print(release)
    return 0


if __name__ == "__main__":
    sys.exit(main())
