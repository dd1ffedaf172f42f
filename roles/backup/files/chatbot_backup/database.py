"""PostgreSQL: a dump and the numbers of rows from one and the same moment, and databases made from a dump."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from chatbot_backup.common import DUMP_FAILED, NOT_AS_RECORDED, Failure, as_user, first_line, widen

CHUNK = 1 << 20
# What pg_dump keeps, too: the tables of the application, not those of the server.
TABLES = """
    SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_%'
    ORDER BY 1
"""


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server, by the directory of its socket and its port; empty and 0 for the host's own."""

    socket: str = ""
    port: int = 0

    def options(self) -> list[str]:
        """Return the options by which PostgreSQL's programs find it."""
        host = ["--host", self.socket] if self.socket else []
        return host + (["--port", str(self.port)] if self.port else [])

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run statements as the server's owner; return what they print.

        Raises:
            Failure: when one of them fails; the others after it are not run.
        """
        done = subprocess.run(
            ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", *self.options(), "-d", database],
            input=statement,
            capture_output=True,
            text=True,
            check=False,
            **as_user("postgres"),
        )
        if done.returncode:
            raise Failure(
                DUMP_FAILED,
                f"PostgreSQL refuses, for database {database}: {first_line([done.stderr])}. Does it run? systemctl "
                "status 'postgresql@*'",
            )
        return str(done.stdout).strip()

    def version(self) -> int:
        """Return the major version."""
        return int(self.sql("SHOW server_version_num")) // 10000

    def databases(self, prefix: str) -> list[str]:
        """Return the names of the databases that begin so."""
        names = self.sql("SELECT datname FROM pg_database ORDER BY 1").splitlines()
        return [name for name in names if name.startswith(prefix)]

    def rows(self, database: str) -> dict[str, int]:
        """Count the rows of every table."""
        with Moment(self, database) as moment:
            return moment.rows

    def create(self, database: str, owner: str) -> None:
        """Make an empty database, closed to everybody but its owner."""
        self.sql(
            f"CREATE DATABASE {quoted(database)} OWNER {quoted(owner)} TEMPLATE template0 ENCODING 'UTF8' "
            f"LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8'; REVOKE ALL ON DATABASE {quoted(database)} FROM PUBLIC;"
        )

    def drop(self, database: str) -> None:
        """Drop a database, if it exists."""
        self.sql(f"DROP DATABASE IF EXISTS {quoted(database)} WITH (FORCE)")

    def exchange(self, database: str, new: str, old: str) -> None:
        """Let `new` take the database's place and name it `old`: one transaction, so there is always one of the name.

        Raises:
            Failure: when that is not possible; everything is as before then.
        """
        try:
            self.sql(
                f"ALTER DATABASE {quoted(database)} ALLOW_CONNECTIONS false;\n"
                f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = {literal(database)};\n"
                # The ended sessions take a moment; a rename waits for none of them, it fails.
                f"DO $$BEGIN FOR i IN 1..100 LOOP PERFORM pg_stat_clear_snapshot(); EXIT WHEN NOT EXISTS (SELECT FROM "
                f"pg_stat_activity WHERE datname = {literal(database)}); PERFORM pg_sleep(0.1); END LOOP; END$$;\n"
                f"ALTER DATABASE {quoted(new)} ALLOW_CONNECTIONS true;\n"
                "BEGIN;\n"
                f"ALTER DATABASE {quoted(database)} RENAME TO {quoted(old)};\n"
                f"ALTER DATABASE {quoted(new)} RENAME TO {quoted(database)};\n"
                "COMMIT;\n"
            )
        except Failure:
            self.sql(f"ALTER DATABASE {quoted(database)} ALLOW_CONNECTIONS true")
            raise


def quoted(name: str) -> str:
    """Return a name as SQL takes it."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as SQL takes it."""
    return "'" + text.replace("'", "''") + "'"


class Moment:
    """One moment of a database, held by a transaction: rows counted and a dump made in it are of the same state.

    Args:
        server: where the database is.
        database: its name.
        locked: whether writers shall wait until this transaction ends: the moment stays the newest one then.

    Raises:
        Failure: when PostgreSQL does not answer, or a table cannot be read.
    """

    def __init__(self, server: Server, database: str, locked: bool = False) -> None:
        self.server = server
        self.database = database
        self.locked = locked
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the session
        self.psql: subprocess.Popen[str] = subprocess.Popen(
            ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", *server.options(), "-d", database],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            **as_user("postgres"),
        )

    def __enter__(self) -> Self:
        try:
            if self.locked:
                self.lock()
            else:
                self.ask("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = 0")
            self.snapshot = self.ask("SELECT pg_export_snapshot()")[0]
            self.version = self.ask("SHOW server_version")[0]
            self.bytes = int(self.ask("SELECT pg_database_size(current_database())")[0])
            tables = self.ask(TABLES)
            counting = "SELECT count(*) FROM ONLY "
            self.rows = {table: int(self.ask(counting + table)[0]) for table in tables}
            migrations = [table for table in tables if table == "public.alembic_version"]
            self.schema = " ".join(self.ask("SELECT version_num FROM public.alembic_version")) if migrations else ""
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def lock(self) -> None:
        """Begin the transaction with locks that let others read. The first statement that reads comes after them."""
        tables = ", ".join(self.server.sql(TABLES, self.database).splitlines())
        self.ask(
            "BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '60s'"
        )
        self.ask("SET LOCAL idle_in_transaction_session_timeout = 0")
        if tables:
            self.ask(f"LOCK TABLE {tables} IN SHARE MODE")

    def ask(self, statement: str) -> list[str]:
        """Run one statement in the transaction; return the lines that it prints."""
        assert self.psql.stdin is not None and self.psql.stdout is not None  # noqa: S101 - made with pipes
        try:
            self.psql.stdin.write(f"{statement};\n\\echo --end--\n")
            self.psql.stdin.flush()
        except BrokenPipeError:
            raise self.failure() from None
        lines: list[str] = []
        for line in self.psql.stdout:
            if line == "--end--\n":
                return lines
            lines.append(line.rstrip("\n"))
        raise self.failure()

    def failure(self) -> Failure:
        """Return what psql has complained about."""
        self.psql.wait()
        self.errors.seek(0)
        return Failure(
            DUMP_FAILED,
            f"PostgreSQL does not answer, has no database {self.database}, or cannot read it: "
            f"{first_line([self.errors.read()])}. "
            "See: systemctl status 'postgresql@*' and journalctl -u 'postgresql@*'",
        )

    def close(self) -> None:
        """End the transaction."""
        with suppress(OSError):
            if self.psql.stdin is not None:
                self.psql.stdin.close()
        try:
            self.psql.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.psql.kill()
            self.psql.wait()
        if self.psql.stdout is not None:
            self.psql.stdout.close()
        self.errors.close()


@dataclass
class Dump:
    """What went through: its size in bytes and its SHA-256."""

    bytes: int = 0
    sha256: str = ""


class StoppedError(Exception):
    """A program takes no more of the data that it is given; `target` is its place in the list of targets."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self.target = target


class Stream:
    """Data on its way through this program: counted, and its checksum taken."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.bytes = 0

    def pass_on(self, source: IO[bytes], targets: list[IO[bytes]]) -> None:
        """Read the source to its end and write it to every target. Raises StoppedError when one takes no more."""
        while chunk := source.read(CHUNK):
            self.digest.update(chunk)
            self.bytes += len(chunk)
            for number, target in enumerate(targets):
                try:
                    target.write(chunk)
                    target.flush()
                except BrokenPipeError:
                    raise StoppedError(number) from None

    def result(self) -> Dump:
        """Return what has gone through so far."""
        return Dump(self.bytes, self.digest.hexdigest())


@contextmanager
def program(command: list[str], **options: Any) -> Iterator[tuple[subprocess.Popen[bytes], IO[str]]]:
    """Start a program as postgres; it has ended when the block has. Yields it and the file with its messages."""
    with tempfile.TemporaryFile("w+") as errors:
        started = subprocess.Popen(command, stderr=errors, **as_user("postgres"), **options)
        widen(started.stdin, started.stdout)
        try:
            yield started, errors
        finally:
            if started.poll() is None:
                started.kill()
            started.wait()
            for stream in (started.stdin, started.stdout):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()


def said(errors: IO[str]) -> str:
    """Return the first line of a program's messages."""
    errors.seek(0)
    return first_line([errors.read()])


def dump(moment: Moment, target: subprocess.Popen[bytes]) -> Dump:
    """Stream a dump of the moment into another program's input, and read it on the way as a restore would.

    The input is closed only after pg_dump and the reader have both said that all is well: until then the other program
    cannot take what it has for the whole. It is not compressed: restic does that, and stores only what has changed.

    Raises:
        Failure: when the dump fails or cannot be read. The caller ends the other program.
        StoppedError: when the other program has ended.
    """
    command = ["pg_dump", "--format=custom", "--compress=0", "--lock-wait-timeout=60s", f"--snapshot={moment.snapshot}"]
    command += [*moment.server.options(), "--dbname", moment.database]
    assert target.stdin is not None  # noqa: S101 - made with a pipe
    stream = Stream()
    reading = ["pg_restore", "--file=/dev/null"]
    with (
        program(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as (dumping, dump_errors),
        program(reading, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as (reader, reader_errors),
    ):
        assert dumping.stdout is not None and reader.stdin is not None  # noqa: S101 - made with pipes
        try:
            stream.pass_on(dumping.stdout, [target.stdin, reader.stdin])
        except StoppedError as stopped:
            if stopped.target == 0:
                raise
            # The reader has given up; its message is told below. pg_dump fails for want of somebody to write to.
            dumping.kill()
            reader.wait()
        if reader.poll() is None and dumping.wait() != 0:
            raise Failure(DUMP_FAILED, f"pg_dump of {moment.database} failed; no backup was made: {said(dump_errors)}")
        with suppress(BrokenPipeError):
            reader.stdin.close()
        if reader.wait() != 0:
            raise Failure(
                DUMP_FAILED,
                f"the dump of {moment.database} cannot be read back; no backup was made: {said(reader_errors)}",
            )
    target.stdin.close()
    return stream.result()


def restore(server: Server, database: str, source: subprocess.Popen[bytes], create: bool = False) -> Dump:
    """Fill a new database from a dump that another program writes. `create` makes it first, as the dump says it was.

    Raises:
        Failure: when PostgreSQL does not take it. Whether the dump was whole, the manifest decides.
    """
    place = ["--create", "--dbname=postgres"] if create else [f"--dbname={database}"]
    command = ["pg_restore", "--exit-on-error", *server.options(), *place]
    assert source.stdout is not None  # noqa: S101 - made with a pipe
    stream = Stream()
    with program(command, stdin=subprocess.PIPE) as (restoring, errors):
        assert restoring.stdin is not None  # noqa: S101 - made with a pipe
        try:
            stream.pass_on(source.stdout, [restoring.stdin])
            restoring.stdin.close()
        except (StoppedError, BrokenPipeError):
            source.kill()  # pg_restore's exit code and message say more
        if restoring.wait() != 0:
            raise Failure(NOT_AS_RECORDED, f"the dump could not be restored: {said(errors)}")
    server.sql("ANALYZE", database)
    return stream.result()


def copy(moment: Moment, target: Server, name: str, programs: Path | None = None, create: bool = False) -> None:
    """Stream a database into another server; there is no file of it in between.

    Args:
        moment: the database as it is to be copied.
        target: where to.
        name: of the database there, which is empty.
        programs: the directory of the pg_dump to use; by default the newest one is taken.
        create: make the database there, as it is here, instead of filling one.

    Raises:
        Failure: when PostgreSQL refuses either half.
    """
    command = [str(programs / "pg_dump") if programs else "pg_dump", "--format=custom", "--compress=0"]
    command += ["--lock-wait-timeout=60s", f"--snapshot={moment.snapshot}"]
    command += [*moment.server.options(), "--dbname", moment.database]
    with program(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as (dumping, errors):
        try:
            restore(target, name, dumping, create=create)
        except Failure as failure:
            words = said(errors)
            raise Failure(failure.code, f"{moment.database}: {words if dumping.wait() > 0 else failure}") from None
        if dumping.wait() != 0:
            raise Failure(DUMP_FAILED, f"pg_dump of {moment.database} failed: {said(errors)}")


def read(moment: Moment) -> int:
    """Read a whole database as a dump does, for nobody; return the number of bytes.

    Raises:
        Failure: when it cannot be read.
    """
    command = ["pg_dump", "--format=custom", "--compress=0", f"--snapshot={moment.snapshot}"]
    command += [*moment.server.options(), "--dbname", moment.database]
    stream = Stream()
    with program(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as (dumping, errors):
        assert dumping.stdout is not None  # noqa: S101 - made with a pipe
        stream.pass_on(dumping.stdout, [])
        if dumping.wait() != 0:
            raise Failure(DUMP_FAILED, f"pg_dump of {moment.database} failed: {said(errors)}")
    return stream.bytes
