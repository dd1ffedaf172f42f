import threading
import uuid
from collections.abc import Iterator

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from chatbot import accounts
from chatbot.database import REVISIONS, Base, Conversation, Database, Message, SchemaBehindError, now
from chatbot.migrate import ALEMBIC_INI, migrate
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError
from support import close, make_settings


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(make_settings(database_url=database_url))
    yield database
    close(database)


@pytest.fixture
def migrated(database: Database, database_url: str) -> Database:
    migrate(make_settings(database_url=database_url))
    return database


def message(conversation: Conversation, **values: object) -> Message:
    return Message(
        **{"id": uuid.uuid4(), "conversation_id": conversation.id, "role": "user", "status": "complete"} | values
    )


def test_migrations_lead_to_the_models(migrated: Database) -> None:
    with migrated.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_a_stale_schema_is_noticed_and_a_migration_as_well(database: Database, database_url: str) -> None:
    with pytest.raises(SchemaBehindError, match="at nothing, this release needs"):
        database.check_schema()
    migrate(make_settings(database_url=database_url))
    database.check_schema()


def test_the_release_knows_its_migrations() -> None:
    scripts = ScriptDirectory.from_config(Config(ALEMBIC_INI))
    assert [script.revision for script in scripts.walk_revisions()] == list(reversed(REVISIONS))


def test_a_newer_schema_is_fine(migrated: Database, database_url: str) -> None:
    with migrated.session() as session:
        session.execute(text("UPDATE alembic_version SET version_num = 'of-the-next-release'"))
    migrated.check_schema()
    assert "newer than this release" in migrate(make_settings(database_url=database_url))
    migrated.check_schema()


@pytest.mark.usefixtures("migrated")
def test_migrating_again_changes_nothing(database_url: str) -> None:
    assert migrate(make_settings(database_url=database_url)).startswith("already at")


def test_the_release_before_accounts_and_this_one_share_a_schema(database: Database, database_url: str) -> None:
    """Its conversations survive the upgrade, and afterwards it still writes and finds its own, and only those."""
    config = Config(ALEMBIC_INI)
    write = "INSERT INTO conversations (id, owner, title, created_at, updated_at) VALUES (:id, :owner, '', :at, :at)"
    find = "SELECT id FROM conversations WHERE owner = :owner OR owner IS NULL"

    def row(owner: str) -> dict[str, object]:
        return {"id": uuid.uuid4().hex, "owner": owner, "at": "2026-11-22 00:00:00"}

    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "b7d02f6a93c5")
        connection.execute(text(write), row("browser"))
    migrate(make_settings(database_url=database_url))
    with database.session() as session:
        account = accounts.create(session, "user@example.org")
        session.add(Conversation(account_id=account.id, owner=accounts.owner_name(account.id)))
        session.flush()
        session.execute(text(write), row("browser"))
        assert len(session.execute(text(find), {"owner": "browser"}).all()) == 2
        assert session.scalar(select(func.count(Conversation.id)).where(Conversation.account_id.is_(None))) == 2
        assert accounts.adopt(session, account.id, "browser") == 2
        assert session.execute(text(find), {"owner": "browser"}).all() == []


def test_parallel_migrations_wait_for_each_other(postgresql_url: str) -> None:
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda: results.append(migrate(make_settings(database_url=postgresql_url))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.split()[0] for result in results) == ["already", "already", "already", "upgraded"]


def test_times_come_back_aware_and_in_utc(migrated: Database) -> None:
    clock = now()
    with migrated.session() as session:
        session.add(Conversation(created_at=clock))
    with migrated.session() as session:
        assert session.scalars(select(Conversation.created_at)).one() == clock


def test_a_conversation_takes_its_tree_with_it(migrated: Database) -> None:
    with migrated.session() as session:
        conversation = Conversation()
        session.add(conversation)
        session.flush()
        root = message(conversation)
        session.add(root)
        session.flush()
        session.add(message(conversation, parent_id=root.id))
    with migrated.session() as session:
        session.delete(session.get(Conversation, conversation.id))
    with migrated.session() as session:
        assert session.scalar(select(func.count(Message.id))) == 0


@pytest.mark.parametrize(
    "values", [{"role": "emperor"}, {"status": "lost"}, {"parent_id": uuid.uuid4()}, {"conversation_id": uuid.uuid4()}]
)
def test_the_database_refuses_nonsense(migrated: Database, values: dict[str, object]) -> None:
    with pytest.raises(IntegrityError) as error, migrated.session() as session:
        conversation = Conversation()
        session.add(conversation)
        session.flush()
        session.add(message(conversation, content="private words", **values))
    assert "[SQL parameters hidden" in str(error.value)
    with migrated.session() as session:
        assert session.scalar(select(func.count(Conversation.id))) == 0  # rolled back as a whole
