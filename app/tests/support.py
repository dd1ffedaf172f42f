"""What several test modules need: reading event streams, waiting, real server processes."""

import contextlib
import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from chatbot import accounts
from chatbot.database import REVISIONS, AccountRole, Base, Database
from chatbot.migrate import migrate
from chatbot.model import Turn
from chatbot.passwords import hash_password
from chatbot.settings import Settings, load_settings
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, QueuePool, create_engine, make_url, text
from werkzeug.test import TestResponse

APP = Path(__file__).resolve().parent.parent
SECRET = "0123456789abcdef" * 2
EMAIL = "user@example.org"
PASSWORD = "correct horse battery"
# The API token that servers started by `gunicorn` know, and that `get` sends.
TOKEN = "cbt_" + "t" * 40


def environment(model_url: str, database_url: str, **more: str) -> dict[str, str]:
    """The application's environment for a test."""
    return {
        "CHATBOT_DATABASE_URL": database_url,
        "CHATBOT_SECRET_KEY": SECRET,
        "CHATBOT_MODEL_BASE_URL": model_url,
        "CHATBOT_MODEL_NAME": "test-model",
    } | {f"CHATBOT_{name.upper()}": value for name, value in more.items()}


def make_settings(model_url: str = "http://127.0.0.1:9/v1", database_url: str = "sqlite://", **more: str) -> Settings:
    """The application's settings for a test. Port 9 answers nobody."""
    return load_settings(environment(model_url, database_url, **more))


def make_account(app: Flask, email: str = EMAIL, role: str = "user", password: str | None = PASSWORD) -> uuid.UUID:
    """An account in the application's database, unless it is there already."""
    with app.extensions["database"].session() as session:
        account = accounts.find(session, email)
        if account is None:
            password_hash = hash_password(password) if password else None
            account = accounts.create(session, email, password_hash=password_hash, role=AccountRole(role))
    return account.id


def sign_in(client: FlaskClient, email: str = EMAIL, password: str = PASSWORD, **headers: str) -> TestResponse:
    """Sign a client in as a browser does: it keeps the cookie, and sends the CSRF token from now on."""
    use_csrf_token(client, client.get("/api/v1/session"))
    response = client.post("/api/v1/session", json={"email": email, "password": password}, headers=headers)
    if response.status_code == 200:
        use_csrf_token(client, response)
    return response


def use_csrf_token(client: FlaskClient, response: TestResponse) -> None:
    """Let the client send the CSRF token that this response brought."""
    client.environ_base["HTTP_X_CSRFTOKEN"] = response.get_json()["csrf_token"]


def signed_in(app: Flask, email: str = EMAIL, role: str = "user") -> FlaskClient:
    """A client that is signed in to an account, which is made where it is missing."""
    make_account(app, email, role)
    client = app.test_client()
    assert sign_in(client, email).status_code == 200
    return client


def make_token(settings: Settings) -> None:
    """Let the database know an account to which PASSWORD and TOKEN are keys."""
    database = Database(settings)
    with database.session() as session:
        if accounts.find(session, EMAIL) is None:
            account = accounts.create(session, EMAIL, password_hash=hash_password(PASSWORD))
            accounts.issue_token(session, account.id, "tests", ["chat"], secret=TOKEN)
    database.engine.dispose()


def parse_events(body: bytes) -> list[tuple[str, dict[str, Any]]]:
    """All Server-Sent Events of a finished body as (name, data)."""
    events = []
    for block in body.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            events.append((fields["event"], json.loads(fields["data"])))
    return events


def eventually[T](question: Callable[[], T], seconds: float = 10) -> T:
    """The first truthy answer; AssertionError when there is none in time."""
    end = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < end, f"not within {seconds} s; last answer: {answer!r}"
        time.sleep(0.05)
    return answer


class Turns(list[Turn]):
    """Turns that a weak reference may watch."""


@contextlib.contextmanager
def watched_turns() -> Iterator[tuple[list[Turns], weakref.ref[Turns]]]:
    """A question, to be popped, and a reference that is dead as soon as nobody has it; no garbage is collected then."""
    holder = [Turns([{"role": "user", "content": "private words"}])]
    kept = weakref.ref(holder[0])
    gc.disable()
    try:
        yield holder, kept
    finally:
        gc.enable()


def close(database: Database) -> None:
    """Wait for running generations, then close the connections.

    A connection that comes back to a pool after its end is never closed, and psycopg complains of it in a later test.
    """
    for thread in threading.enumerate():
        if thread.name.startswith("generation-"):
            thread.join(10)
    pool = database.engine.pool
    if isinstance(pool, QueuePool):  # a check of readiness that has given up waiting may still have one
        eventually(lambda: pool.checkedout() == 0)
    database.engine.dispose()


def free_port() -> int:
    """A TCP port on loopback that nobody listens on right now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def process(*command: str, **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """A child process that is gone at the end, whatever happens."""
    child = subprocess.Popen(command, **options)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextlib.contextmanager
def gunicorn(variables: dict[str, str], directory: Path, pipe: int | None = None) -> Iterator[str]:
    """The application under its real server, migrated and ready to serve; gives its base URL.

    It logs to a file of the directory, or to a pipe.
    """
    url = f"http://127.0.0.1:{(port := free_port())}"
    variables = (
        os.environ
        | {"PROMETHEUS_MULTIPROC_DIR": str(directory / "metrics"), "CHATBOT_BIND": f"127.0.0.1:{port}"}
        | variables
    )
    settings = load_settings(variables)
    create_schema(settings)
    make_token(settings)
    with (
        (directory / "gunicorn.log").open("w") as log,
        process(sys.executable, "-m", "gunicorn", cwd=APP, env=variables, stdout=pipe or log, stderr=log, text=True),
    ):
        with contextlib.suppress(AssertionError):
            eventually(lambda: answers(url), 120)  # a busy machine takes its time
            yield url
            return
        raise AssertionError((directory / "gunicorn.log").read_text())


# The mark on a schema of PostgreSQL that `create_schema` has made, and the name under which it waits for its next use.
MADE_HERE = "made by create_schema"
ASIDE = "aside"


def empty_database(url: str) -> None:
    """Leave nothing in a PostgreSQL database, also not what a forgotten connection holds.

    A schema that `create_schema` has made is emptied and put aside for its next call, which saves making its tables and
    indexes anew.
    """
    engine = create_engine(url)
    others_here = "pid <> pg_backend_pid() AND datname = current_database()"
    others = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others_here}"  # noqa: S608 - a constant
    with engine.begin() as connection:
        connection.execute(text(others))
        if _as_made(connection):
            for table in reversed(Base.metadata.sorted_tables):
                connection.execute(table.delete())
            connection.execute(text(f"ALTER SCHEMA public RENAME TO {ASIDE}"))
        else:
            connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()


def _as_made(connection: Connection) -> bool:
    """Whether the schema is one that `create_schema` has made and that nobody has migrated further or changed since."""
    if connection.scalar(text("SELECT obj_description('public'::regnamespace)")) != MADE_HERE:
        return False
    tables = set(connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")))
    if tables != {*Base.metadata.tables, "alembic_version"}:
        return False
    return connection.scalars(text("SELECT version_num FROM alembic_version")).all() == [REVISIONS[-1]]


# The file that a migration from nothing to this release makes of SQLite, once there is one.
_migrated: list[bytes] = []


def create_schema(settings: Settings) -> None:
    """Give an empty database the schema that `migrate` gives it, without running every migration for every test."""
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite":
        file = Path(str(url.database))
        if file.exists():
            migrate(settings)
        elif _migrated:
            file.write_bytes(_migrated[0])
        else:
            migrate(settings)
            _migrated.append(file.read_bytes())
        return
    engine = create_engine(url)
    with engine.begin() as connection:
        if connection.scalar(text(f"SELECT to_regnamespace('{ASIDE}')")):
            connection.execute(text("DROP SCHEMA public"))
            connection.execute(text(f"ALTER SCHEMA {ASIDE} RENAME TO public"))
        else:
            migrate(settings)
            connection.execute(text(f"COMMENT ON SCHEMA public IS '{MADE_HERE}'"))
    engine.dispose()


def answers(url: str) -> bool:
    """Whether the server is alive."""
    try:
        return bool(get(f"{url}/api/v1/health"))
    except OSError:
        return False


def get(url: str, data: object = None) -> str:
    """What the URL answers; POST where there is data. OSError when it answers with an error or not at all."""
    body = None if data is None else json.dumps(data).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
    request = urllib.request.Request(url, body, headers)  # noqa: S310 - a test server
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        return str(response.read().decode())


def fetch(url: str, data: object = None) -> Any:
    """The same as JSON."""
    return json.loads(get(url, data))


def find_program(*names: str) -> str | None:
    """The first of these programs that is installed, also in Debian's directories for PostgreSQL."""
    places = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    search = os.pathsep.join([os.environ.get("PATH", ""), *places])
    return next((found for name in names if (found := shutil.which(name, path=search))), None)
