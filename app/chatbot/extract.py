"""Reads one uploaded file, as a program of its own: `python -I extract.py <suffix> < file`.

What it reads comes from strangers, and parsers of PDF have a history of endless loops and exhausted memory. So it lives
in a process without environment that may use little memory and time, and cannot open a file, a socket or another
process. It imports nothing of the application, which in turn imports it for its constants only: the parsers are
imported where they are used. Its answer is one JSON object: `type`, `text` and `pages`, or `error`.
"""

import contextlib
import importlib
import io
import json
import os
import pkgutil
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pypdf

MEMORY = 256 * 1024 * 1024
CPU_SECONDS = 20
MAX_PAGES = 500
MAX_CHARACTERS = 500_000
IMAGES = ("image/png", "image/jpeg", "image/webp", "image/gif")
PDF = b"%PDF-"
TEXTS = {".md": "text/markdown", ".markdown": "text/markdown", ".csv": "text/csv"}
# What no text file holds; tab, line feed, form feed and carriage return are fine.
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")


class UnreadableError(Exception):
    """The file cannot be used; the message is one of the words that the application explains."""


def parsers(data: bytes) -> tuple[str, ...]:
    """The packages that read this file. None for text: importing them all takes half a second of processor time."""
    if data.startswith(PDF):
        return ("pypdf", "encodings")
    return ("puremagic", "encodings") if as_text(data) is None else ()


def confine(*packages: str) -> None:
    """Give up what the work below does not need, which is to be done with the help of these packages.

    Whoever runs out of memory first shall be this process.
    """
    for name in packages:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            # Parts are imported late, when no file can be opened any more.
            if not module.name.endswith("__main__"):
                with contextlib.suppress(ImportError):
                    importlib.import_module(module.name)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    os.nice(10)
    for limit, value in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        # No further descriptor: neither file nor socket nor pipe. Those that are open stay usable.
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(limit, (value, value))


def read(data: bytes, suffix: str) -> dict[str, object]:
    """Type, text and number of pages of a file. Raises UnreadableError."""
    if data.startswith(PDF):
        return read_pdf(data)
    if (text := as_text(data)) is not None:
        return {"type": TEXTS.get(suffix, "text/plain"), "text": text[:MAX_CHARACTERS], "pages": None}
    import puremagic

    with contextlib.suppress(puremagic.PureError, ValueError):
        if (kind := puremagic.from_string(data, mime=True)) in IMAGES:
            return {"type": kind, "text": "", "pages": None}
    raise UnreadableError("type")


def as_text(data: bytes) -> str | None:
    """UTF-8 text, without its byte order mark; None where it is something else."""
    try:
        text = data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError:
        return None
    return None if CONTROLS.search(text) else text


def read_pdf(data: bytes) -> dict[str, object]:
    """The text of a PDF's pages. Raises UnreadableError."""
    import pypdf

    reader = pypdf.PdfReader(io.BytesIO(data))
    # Many are encrypted with an empty password: they may be read by everybody, but not changed.
    if reader.is_encrypted and not reader.decrypt(""):
        raise UnreadableError("encrypted")
    pages = len(reader.pages)
    text = "\n\n".join(texts(reader))[:MAX_CHARACTERS]
    if not text.strip():
        raise UnreadableError("empty")
    # NUL cannot be stored, and fonts without a table of characters give lone surrogates.
    text = text.replace("\x00", "").encode("utf-8", "replace").decode()
    return {"type": "application/pdf", "text": text, "pages": pages}


def texts(reader: "pypdf.PdfReader") -> Iterator[str]:
    """The texts of the first pages, until there is enough."""
    length = 0
    for number, page in enumerate(reader.pages):
        if number == MAX_PAGES or length > MAX_CHARACTERS:
            return
        text = page.extract_text()
        length += len(text)
        yield text


def main() -> None:
    data = sys.stdin.buffer.read()
    confine(*parsers(data))
    try:
        found = read(data, sys.argv[1])
    except UnreadableError as error:
        found = {"error": str(error)}
    except (MemoryError, RecursionError):
        found = {"error": "too much"}
    except Exception:  # whatever a parser raises over a broken file
        found = {"error": "broken"}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
