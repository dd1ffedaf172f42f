"""Uploaded files on disk: outside the web root, each under its random identifier, and gone with its conversation."""

import contextlib
import fcntl
import json
import logging
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.datastructures import FileStorage

from chatbot import extract
from chatbot.bodies import invalid
from chatbot.database import Attachment, Database
from chatbot.problems import Problem
from chatbot.settings import Settings

log = logging.getLogger(__name__)

# Where there is less free (bytes), uploads are refused: a full disk stops the database and everything else.
KEEP_FREE = 512 * 1024 * 1024
# The reading of a file may take so long (seconds), and wait so long for that of others.
READ_TIMEOUT = 30.0
QUEUE_TIMEOUT = 30.0
# A file that belongs to nothing is removed when it is older (seconds): its row may be about to be written.
SWEEP_AGE = 3600.0
SWEEP_BATCH = 500

UNREADABLE = {
    "encrypted": "The file is protected with a password.",
    "empty": "There is no text in the file; it may hold scanned pages only.",
    "too much": "The file needs too much memory to be read.",
    "broken": "The file is damaged and cannot be read.",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What a file is, and what it says."""

    type: str
    text: str
    pages: int | None


class Uploads:
    """The files of all conversations. Nothing can be uploaded where no data directory is configured."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._directory = settings.data_directory and settings.data_directory / "uploads"

    def types(self) -> list[str]:
        """The media types that are accepted."""
        if self._directory is None:
            return []
        texts = ["application/pdf", "text/plain", *dict.fromkeys(extract.TEXTS.values())]
        return [*texts, *(extract.IMAGES if self._settings.model_vision else ())]

    def path(self, identifier: uuid.UUID) -> Path:
        """Where the file of that attachment is. A Problem (501) where nothing can be uploaded."""
        if self._directory is None:
            raise Problem(501, "Not implemented", "This service is not configured to take files.")
        return self._directory / str(identifier)

    def save(self, upload: FileStorage, identifier: uuid.UUID) -> int:
        """Keep the file; its size in bytes. A Problem where it is too large, empty, or the disk is full."""
        path, limit = self.path(identifier), self._settings.max_upload_bytes
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if shutil.disk_usage(path.parent).free < KEEP_FREE + limit:
            log.error("uploads are refused: the disk is almost full")
            raise Problem(507, "Insufficient storage", "This service has no room for files left.")
        upload.save(path)
        size = path.stat().st_size
        if size > limit:
            raise Problem(413, "File too large", f"A file may have {limit} bytes; this one has more.")
        if size == 0:
            raise invalid("file", "is empty")
        return size

    def examine(self, identifier: uuid.UUID, name: str) -> Finding:
        """What the file is, by its content. A Problem where it cannot be read, or is of a kind that is not accepted."""
        path = self.path(identifier)
        with _one_at_a_time(path.parent / ".reading"), path.open("rb") as file:
            command = [sys.executable, "-I", extract.__file__, Path(name).suffix.lower()]
            try:
                # Without our environment, which holds secrets.
                reader = subprocess.run(
                    command,
                    stdin=file,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env={},
                    timeout=READ_TIMEOUT,
                    check=True,
                )
                found = json.loads(reader.stdout)
            except (subprocess.SubprocessError, ValueError) as error:
                log.warning("an upload could not be read: %s", type(error).__name__)
                found = {"error": "too much"}
        if (trouble := found.get("error")) in UNREADABLE:
            raise Problem(422, "Unreadable file", UNREADABLE[trouble])
        if trouble or found["type"] not in self.types():
            raise Problem(415, "Unsupported media type", self._refusal(found.get("type", "")))
        return Finding(found["type"], found["text"], found["pages"])

    def _refusal(self, kind: str) -> str:
        if kind.startswith("image/"):
            return "The model of this service cannot see images."
        images = ", PNG, JPEG, WebP or GIF images" if self._settings.model_vision else ""
        return f"Only PDF and text files (UTF-8; also Markdown and CSV){images} can be read, whatever a file is called."

    def remove(self, identifiers: Iterable[uuid.UUID]) -> None:
        """Remove files; what is gone already is fine, and what cannot be removed is left to `sweep`."""
        if self._directory is None:
            return
        for identifier in identifiers:
            try:
                self.path(identifier).unlink(missing_ok=True)
            except OSError as error:
                log.warning("a file could not be removed: %s", type(error).__name__)

    def sweep(self) -> None:
        """Remove files without a row: their conversation is gone, or a process died in the middle of an upload."""
        if self._directory is None or not self._directory.is_dir():
            return
        old = time.time() - SWEEP_AGE
        files = [path for path in self._directory.iterdir() if _is_upload(path) and path.stat().st_mtime < old]
        for start in range(0, len(files), SWEEP_BATCH):
            batch = {uuid.UUID(path.name) for path in files[start : start + SWEEP_BATCH]}
            try:
                with self._database.session() as session:
                    known = set(session.scalars(select(Attachment.id).where(Attachment.id.in_(batch))))
            except SQLAlchemyError as failure:
                log.warning("could not look for forgotten files: %s", type(failure).__name__)
                return
            if batch - known:
                log.info("removing forgotten files", extra={"files": len(batch - known)})
                self.remove(batch - known)


def _is_upload(path: Path) -> bool:
    return re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", path.name) is not None


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Wait until no other process of this host reads a file: together they could exhaust the memory."""
    end = time.monotonic() + QUEUE_TIMEOUT
    with path.open("wb") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise Problem(
                        503, "Service unavailable", "Too many files are being read; try again.", retry_after=10
                    ) from None
                time.sleep(0.05)
        yield
