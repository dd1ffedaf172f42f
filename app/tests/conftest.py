"""Fixtures: a fake model, an SQLite and a real PostgreSQL database, the application on them."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from chatbot.factory import create_app
from chatbot.migrate import migrate
from chatbot.settings import Settings
from fake_openai import FakeOpenAI
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError
from support import close, empty_database, eventually, find_program, make_settings, process


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own settings must not decide a test."""
    for name in list(os.environ):
        if name.startswith(("CHATBOT_", "PROMETHEUS_")):
            monkeypatch.delenv(name)


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    """The fake model."""
    with FakeOpenAI() as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL of a PostgreSQL server made for this run, which listens on a Unix socket only."""
    initdb, postgres = find_program("initdb"), find_program("postgres")
    if not initdb or not postgres:
        pytest.skip("PostgreSQL's server programs are not installed (Debian: apt-get install postgresql)")
    directory = tempfile.mkdtemp(prefix="pg-")  # short: a socket's path may have 107 characters
    user: dict[str, object] = {}
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.chown(directory, "nobody", "nogroup")
    data = f"{directory}/data"
    subprocess.run(
        [initdb, "--auth=trust", "--username=chatbot", "--no-sync", "--encoding=UTF8", "--locale=C", "-D", data],
        check=True, capture_output=True, cwd=directory, **user,  # type: ignore[call-overload]
    )  # fmt: skip
    options = {"listen_addresses": "", "unix_socket_directories": directory, "fsync": "off"}
    arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": directory}
    with process(postgres, "-D", data, *arguments, **quiet, **user):
        url = f"postgresql+psycopg://chatbot@/postgres?host={directory}"
        eventually(lambda: accepts(url), 30)
        yield url
    shutil.rmtree(directory)


def accepts(url: str) -> bool:
    """Whether the database server takes connections."""
    engine = create_engine(url)
    try:
        engine.connect().close()
    except OperationalError:
        return False
    finally:
        engine.dispose()
    return True


@pytest.fixture
def postgresql_url(postgresql_server: str) -> str:
    """The URL of an empty PostgreSQL database."""
    empty_database(postgresql_server)
    return postgresql_server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of both kinds in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/test.db"
    return str(request.getfixturevalue("postgresql_url"))


@pytest.fixture
def settings(fake: FakeOpenAI, tmp_path: Path) -> Settings:
    """Settings with the fake model and an empty SQLite database."""
    return make_settings(fake.url, f"sqlite:///{tmp_path}/test.db")


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    """The application on a migrated SQLite database."""
    migrate(settings)
    app = create_app(settings)
    yield app
    close(app.extensions["database"])


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A client that keeps cookies."""
    return app.test_client()
