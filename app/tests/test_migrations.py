"""Migrations that only add, one at a time, never in the way of the chat; and what `migrate` says when it cannot."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from chatbot.__main__ import main
from chatbot.database import REVISIONS, Database, SchemaBehindError
from chatbot.factory import create_app
from chatbot.migrate import ALEMBIC_INI, LOCK, MigrationError, migrate, pending
from expand_only import breaks, schema_of
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError
from support import close, create_schema, environment, make_settings, parse_events, signed_in

# What the check finds and is fine all the same, with the reason.
JUSTIFIED = {
    (
        "b7d02f6a93c5",
        "messages: check ck_messages_status has changed",
    ): "it allows one value more; what the release before writes is allowed as it was",
}


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    engine = create_engine(url)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def test_every_migration_leaves_the_release_before_it_what_it_uses(postgresql_url: str) -> None:
    config = Config(ALEMBIC_INI)
    found: set[tuple[str, str]] = set()
    with connected(postgresql_url) as connection:
        config.attributes["connection"] = connection
        before = schema_of(connection)
        connection.rollback()
        for revision in REVISIONS:
            command.upgrade(config, revision)
            connection.commit()
            after = schema_of(connection)
            connection.rollback()
            found |= {(revision, what) for what in breaks(before, after)}
            before = after
    assert found == JUSTIFIED.keys()


AT = "rows: column at was TIMESTAMP WITH TIME ZONE and is TIMESTAMP WITHOUT TIME ZONE"
BASE = """
    CREATE TABLE parents (id integer PRIMARY KEY, name varchar(20) NOT NULL UNIQUE);
    CREATE TABLE rows (
        id integer PRIMARY KEY, parent integer, word varchar(20), flag boolean NOT NULL DEFAULT false, n integer,
        at timestamptz, CONSTRAINT short CHECK (n < 10)
    )
"""


@pytest.fixture
def scratch(postgresql_server: str) -> Iterator[Connection]:
    """A connection whose transaction is never committed, with two tables."""
    with connected(postgresql_server) as connection:
        connection.execute(text("CREATE SCHEMA scratch"))
        connection.execute(text("SET search_path TO scratch"))
        connection.execute(text(BASE))
        yield connection
        connection.rollback()


def judged(connection: Connection, statements: str) -> list[str]:
    """What the check says of these statements, which are undone."""
    before = schema_of(connection)
    with connection.begin_nested() as attempt:
        connection.execute(text(statements))
        after = schema_of(connection)
        attempt.rollback()
    return breaks(before, after)


@pytest.mark.parametrize(
    ("statements", "verdict"),
    [
        ("DROP TABLE rows", ["table rows is gone"]),
        ("ALTER TABLE rows RENAME TO lines", ["table rows is gone"]),
        ("ALTER TABLE rows DROP COLUMN word", ["rows: column word is gone"]),
        ("ALTER TABLE rows RENAME word TO term", ["rows: column word is gone"]),
        ("ALTER TABLE rows ALTER word TYPE varchar(10)", ["rows: column word was VARCHAR(20) and is VARCHAR(10)"]),
        ("ALTER TABLE rows ALTER n TYPE bigint", ["rows: column n was INTEGER and is BIGINT"]),
        ("ALTER TABLE rows ALTER at TYPE timestamp", [AT]),
        ("ALTER TABLE rows ADD more text NOT NULL", ["rows: new column more is NOT NULL without a server default"]),
        ("ALTER TABLE rows ALTER word SET NOT NULL", ["rows: column word has become NOT NULL"]),
        ("ALTER TABLE rows ALTER flag DROP DEFAULT", ["rows: column flag has lost its server default"]),
        ("ALTER TABLE rows ADD CONSTRAINT large CHECK (n > 1)", ["rows: check large is new, on n"]),
        (
            "ALTER TABLE rows DROP CONSTRAINT short, ADD CONSTRAINT short CHECK (n < 5)",
            ["rows: check short has changed"],
        ),
        ("ALTER TABLE rows ADD CONSTRAINT one UNIQUE (word)", ["rows: unique one is new, on word"]),
        ("CREATE UNIQUE INDEX one ON rows (word) WHERE n > 1", ["rows: unique one is new, on word"]),
        (
            "ALTER TABLE rows ADD CONSTRAINT child FOREIGN KEY (parent) REFERENCES parents",
            ["rows: foreign key child is new, on parent"],
        ),
        ("ALTER TABLE parents DROP CONSTRAINT parents_name_key", ["parents: (name) is not unique any more"]),
        (
            "ALTER TABLE rows DROP CONSTRAINT rows_pkey, ADD PRIMARY KEY (id, flag)",
            ["rows: primary key has changed", "rows: (id) is not unique any more"],
        ),
    ],
)
def test_a_migration_that_takes_away_or_tightens_is_refused(
    scratch: Connection, statements: str, verdict: list[str]
) -> None:
    assert judged(scratch, statements) == verdict


@pytest.mark.parametrize(
    "statements",
    [
        "CREATE TABLE more (id integer PRIMARY KEY, must text NOT NULL UNIQUE)",
        "ALTER TABLE rows ADD more text",
        "ALTER TABLE rows ADD more text NOT NULL DEFAULT 'x'",
        "ALTER TABLE rows ADD number integer GENERATED ALWAYS AS IDENTITY",
        "ALTER TABLE rows ADD mother integer REFERENCES parents ON DELETE CASCADE",
        "ALTER TABLE rows ADD more text UNIQUE CHECK (more <> '')",
        "ALTER TABLE rows ALTER word TYPE varchar(30)",
        "ALTER TABLE rows ALTER word TYPE text",
        "ALTER TABLE rows ALTER flag DROP NOT NULL",
        "ALTER TABLE rows DROP CONSTRAINT short",
        "CREATE INDEX ON rows (word)",
    ],
)
def test_a_migration_that_only_adds_or_loosens_is_fine(scratch: Connection, statements: str) -> None:
    assert judged(scratch, statements) == []


def with_next_release(directory: Path, *bodies: str) -> Config:
    """Alembic's configuration with one more migration for each body, behind those of this release."""
    down = REVISIONS[-1]
    for number, body in enumerate(bodies):
        (directory / f"next{number}.py").write_text(
            f"from alembic import op\nrevision = 'next{number}'\ndown_revision = '{down}'\n"
            f"def upgrade() -> None:\n    op.execute({body!r})\n"
        )
        down = f"next{number}"
    config = Config(ALEMBIC_INI)
    config.set_main_option("version_locations", f"{ALEMBIC_INI.parent}/migrations/versions:{directory}")
    return config


def test_this_release_serves_on_the_schema_of_the_next_one(postgresql_url: str, fake: object, tmp_path: Path) -> None:
    settings = make_settings(fake.url, postgresql_url)  # type: ignore[attr-defined]
    config = with_next_release(
        tmp_path, "ALTER TABLE messages ADD mood text NOT NULL DEFAULT 'calm'", "CREATE TABLE plans (id integer)"
    )
    assert migrate(settings, config).endswith("to next1")
    app = create_app(settings)
    assert app.test_client().get("/api/v1/ready").status_code == 200
    client = signed_in(app)
    conversation = client.post("/api/v1/conversations").get_json()["id"]
    said = client.post(f"/api/v1/conversations/{conversation}/messages", json={"content": "Hi"}).data
    assert parse_events(said)[-1][1]["status"] == "complete"
    assert pending(settings) == []
    assert "left alone" in migrate(settings)
    close(app.extensions["database"])


def test_each_revision_that_is_missing_is_pending(database_url: str) -> None:
    settings = make_settings(database_url=database_url)
    assert pending(settings) == list(REVISIONS)
    config = Config(ALEMBIC_INI)
    with connected(settings.sqlalchemy_url().render_as_string(hide_password=False)) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, REVISIONS[1])
        connection.commit()
    assert pending(settings) == list(REVISIONS[2:])
    with pytest.raises(SchemaBehindError):
        database = Database(settings)
        try:
            database.check_schema()
        finally:
            close(database)
    migrate(settings)
    assert pending(settings) == []


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str, *arguments: str
) -> tuple[int, str, str]:
    """A command as an operator runs it: its status, output and errors."""
    for key, value in environment("http://m/v1", url).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("sys.argv", ["chatbot", *arguments])
    monkeypatch.setattr("logging.config.dictConfig", lambda _: None)
    return main(), *capsys.readouterr()


def test_the_command_prints_what_is_pending(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, capsys, database_url, "migrate", "--pending") == (0, "\n".join(REVISIONS) + "\n", "")
    migrate(make_settings(database_url=database_url))
    assert run(monkeypatch, capsys, database_url, "migrate", "--pending") == (0, "", "")


def test_a_lock_that_somebody_holds_is_waited_for_and_named(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("chatbot.migrate.LOCK_TIMEOUT_SECONDS", 0.2)
    with connected(postgresql_url + "&application_name=chatbot-blue") as holder:
        pid = holder.scalar(text("SELECT pg_backend_pid()"))
        holder.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
        status, out, err = run(monkeypatch, capsys, postgresql_url, "migrate")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert f"(pid {pid}, chatbot-blue, connected since 2" in err
    assert migrate(make_settings(database_url=postgresql_url)).startswith("upgraded from nothing")


def test_a_table_that_is_in_use_stops_the_migration_and_not_the_chat(
    postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came before it stays, and it runs when the table is free."""
    monkeypatch.setattr("chatbot.migrate.TABLE_LOCK_SECONDS", 1)
    settings = make_settings(database_url=postgresql_url)
    create_schema(settings)
    config = with_next_release(tmp_path, "CREATE TABLE plans (id integer)", "ALTER TABLE messages ADD mood text")
    with connected(postgresql_url) as dump, connected(postgresql_url) as chat:
        dump.execute(text("LOCK TABLE messages IN ACCESS SHARE MODE"))
        errors: list[Exception] = []

        def attempt() -> None:
            try:
                migrate(settings, config)
            except MigrationError as error:
                errors.append(error)

        thread = threading.Thread(target=attempt)
        thread.start()
        while thread.is_alive():  # each of the chat's statements comes through, behind the one that waits
            assert chat.scalar(text("SELECT count(*) FROM messages")) == 0
            chat.rollback()
            time.sleep(0.05)
        thread.join()
    assert "waited more than 1 s for a table" in str(errors[0])
    assert "the schema stays at next0" in str(errors[0])
    assert migrate(settings, config) == "upgraded from next0 to next1"


def test_a_statement_that_needs_too_long_is_given_up(
    postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.migrate.STATEMENT_SECONDS", 0.2)
    settings = make_settings(database_url=postgresql_url)
    create_schema(settings)
    with pytest.raises(MigrationError, match=r"more than 0\.2 s for one statement .* stays at " + REVISIONS[-1]):
        migrate(settings, with_next_release(tmp_path, "SELECT pg_sleep(30)"))


def test_a_migration_that_fails_leaves_nothing_of_itself(postgresql_url: str, tmp_path: Path) -> None:
    settings = make_settings(database_url=postgresql_url)
    create_schema(settings)
    both = "CREATE TABLE plans (id integer); SELECT 1 / 0"
    with pytest.raises(DBAPIError, match="division by zero"):
        migrate(settings, with_next_release(tmp_path, both))
    with connected(postgresql_url) as connection:
        assert "plans" not in schema_of(connection)
