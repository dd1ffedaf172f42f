"""Fixtures: a fake model, an SQLite and a real PostgreSQL database, the application on them."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from chatbot.factory import create_app
from chatbot.settings import Settings
from fake_openai import FakeOpenAI
from flask import Flask
from flask.testing import FlaskClient
from postgresql_server import start_postgresql
from support import close, create_schema, empty_database, make_settings, signed_in
from werkzeug.routing import Rule


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs PostgreSQL's or Valkey's real server like what needs gunicorn."""
    for item in items:
        chosen = getattr(item, "callspec", None)
        parameters = {str(value) for value in (chosen.params.values() if chosen else ())}
        if parameters & {"postgresql", "valkey"} or "postgresql_server" in getattr(item, "fixturenames", ()):
            item.add_marker("server")


def pytest_collection_finish() -> None:
    """Look for garbage in cycles less often, and never among what the tests are made of: a tenth of their time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own settings must not decide a test."""
    for name in list(os.environ):
        if name.startswith(("CHATBOT_", "PROMETHEUS_")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes that cost next to nothing."""
    monkeypatch.setattr("chatbot.passwords.HASHER", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    monkeypatch.setattr("chatbot.passwords._nobodys_hash", [])


@pytest.fixture(scope="session", autouse=True)
def _routes_compiled_once() -> Iterator[None]:
    """Make applications in a quarter of the time.

    Werkzeug compiles two functions for every route of every application. They depend on the route's text only, and
    most tests make an application of their own, with the same routes each time.
    """
    compile_builder = Rule._compile_builder
    known: dict[tuple[str, str, bool], Callable[..., tuple[str, str]]] = {}

    def compile_once(rule: Rule, append_unknown: bool = True) -> Callable[..., tuple[str, str]]:
        key = (rule.rule, repr(rule.defaults), append_unknown)
        if key not in known:
            known[key] = compile_builder(rule, append_unknown)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rule, "_compile_builder", compile_once)
        yield


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    """The fake model."""
    with FakeOpenAI() as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL of a PostgreSQL server made for this run."""
    with start_postgresql() as url:
        if url is None:
            pytest.skip("PostgreSQL's server programs are not installed (Debian: apt-get install postgresql)")
        yield url


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
def settings_with_room(fake: FakeOpenAI, database_url: str) -> Settings:
    """The same on both kinds of database, without rate limits that a test could reach. Long messages are short."""
    limits = {
        "answers_per_account": "100",
        "rate_limit": "1000 per minute",
        "rate_limit_address": "1000 per minute",
        "max_message_chars": "100",
    }
    return make_settings(fake.url, database_url, **limits)


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    """The application on its migrated database. A module that wants another one overrides `settings`."""
    create_schema(settings)
    app = create_app(settings)
    yield app
    close(app.extensions["database"])


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A browser that is signed in."""
    return signed_in(app)
