"""A PostgreSQL server for a few minutes: its data in a directory of its own, and on a socket that nobody else knows."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from chatbot_backup.common import OTHER, Failure, as_user
from chatbot_backup.database import Server

PROGRAMS = Path("/usr/lib/postgresql")
# What would survive a crash is of no use here: the disk is not waited for. Nobody comes over a network.
OPTIONS = (
    "-c listen_addresses= -c fsync=off -c full_page_writes=off -c synchronous_commit=off -c autovacuum=off -c jit=off"
)


def versions() -> list[int]:
    """Return the major versions of PostgreSQL whose programs are on this host, the newest last."""
    return sorted(int(path.parts[-3]) for path in PROGRAMS.glob("*/bin/initdb"))


@dataclass(frozen=True)
class Scratch:
    """A server below a directory; `version` 0 is the newest whose programs are there."""

    place: Path
    socket: Path
    version: int = 0

    @property
    def data(self) -> Path:
        """Return the directory of its data."""
        return self.place / "pg"

    @property
    def log_file(self) -> Path:
        """Return the file with what it has said."""
        return self.place / "server.log"

    @property
    def server(self) -> Server:
        """Return how to reach it."""
        return Server(str(self.socket))

    def programs(self) -> Path:
        """Return the directory of its programs.

        Raises:
            Failure: when they are not on this host.
        """
        found = [each for each in versions() if self.version in (0, each)]
        if not found:
            name = f"postgresql-{self.version}" if self.version else "postgresql"
            raise Failure(
                OTHER,
                f"there is no PostgreSQL {self.version or ''} on this host to restore into. Install it with: "
                f"apt install {name}",
            )
        return PROGRAMS / str(found[-1]) / "bin"

    def make(self) -> None:
        """Make its directories, for postgres alone."""
        for directory, mode in ((self.data, 0o700), (self.socket, 0o755)):
            directory.mkdir(exist_ok=True)
            shutil.chown(directory, "postgres", "postgres")
            directory.chmod(mode)

    def write(self, name: str, text: str) -> None:
        """Write one of its files, for it to read."""
        file = self.data / name
        file.write_text(text)
        shutil.chown(file, "postgres", "postgres")

    def run(self, *command: str, seconds: float = 300) -> None:
        """Run one of PostgreSQL's programs.

        Raises:
            Failure: when it fails, with its words.
        """
        # Into a file: the server that is started would keep a pipe open.
        with self.log_file.open("a") as output:
            done = subprocess.run(
                [str(self.programs() / command[0]), *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
                timeout=seconds,
                **as_user("postgres"),
            )
        if done.returncode:
            last = self.log_file.read_text().strip().splitlines()[-3:]
            raise Failure(OTHER, f"the PostgreSQL in {self.place} does not work: {' / '.join(last)}")

    def start(self, options: str, seconds: int = 300) -> None:
        """Start it, and wait until it answers.

        Raises:
            Failure: when it does not, with its last words.
        """
        words = f"{OPTIONS} -c unix_socket_directories={self.socket} {options}"
        command = ("pg_ctl", "start", "--pgdata", str(self.data), "-w", "-t", str(seconds), "-o", words)
        self.run(*command, seconds=seconds + 30)

    def stop(self) -> None:
        """End it, if it runs, also when a killed program has left it; nobody needs its data."""
        with suppress(FileNotFoundError, IndexError, ValueError, ProcessLookupError, PermissionError):
            process = int((self.data / "postmaster.pid").read_text().split()[0])
            # The number may be another program's by now.
            if b"postgres" in Path(f"/proc/{process}/cmdline").read_bytes():
                with suppress(Failure, subprocess.TimeoutExpired):
                    self.run("pg_ctl", "stop", "--pgdata", str(self.data), "--mode=immediate", "-w")

    def clean(self) -> None:
        """End it and empty its directories."""
        self.stop()
        for directory in (self.place, self.socket):
            if directory.is_dir():
                for each in directory.iterdir():
                    shutil.rmtree(each) if each.is_dir() else each.unlink()
