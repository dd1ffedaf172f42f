"""The upgrade of PostgreSQL without a host: what is empty, what differs, what happens when the swap goes wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from repository import ROOT

sys.path.insert(0, str(ROOT / "roles/backup/files"))

from chatbot_backup import common, upgrade
from chatbot_backup.common import Failure
from chatbot_backup.database import TABLES
from chatbot_backup.upgrade import Cluster


def cluster(version: int, port: int, running: bool = True, directory: Path = Path("/nowhere")) -> Cluster:
    return Cluster(version, "main", port, running, str(directory), str(directory))


OLD, NEW = cluster(15, 5432), cluster(17, 5433, running=False)


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(upgrade, "RECORDS", tmp_path / "upgrades")
    return tmp_path


class Served:
    """Notes which cluster was told to serve; some do not come up."""

    def __init__(self, broken: list[int]) -> None:
        self.broken = broken
        self.told: list[int] = []

    def __call__(self, cluster: Cluster, _: Cluster, __: int) -> None:
        self.told.append(cluster.version)
        if cluster.version in self.broken:
            raise Failure(common.OTHER, "it does not start")


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Served]:
    def install(*broken: int) -> Served:
        served = Served(list(broken))
        monkeypatch.setattr(upgrade, "serve", served)
        return served

    return install


# --- What is in the new cluster's place ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "empty"),
    [
        (["base/1/1255", "base/1/1255_fsm", "base/5/PG_VERSION", "base/4/pg_filenode.map"], True),
        (["base/1/1255", "base/16384/1255"], False),  # somebody's database
        (["base/5/16385_vm"], False),  # somebody's table in postgres
        (["base/5/2619.1", "base/pgsql_tmp/x"], True),
    ],
)
def test_cluster_is_empty_when_nobody_has_made_anything_in_it(tmp_path: Path, names: list[str], empty: bool) -> None:
    for name in names:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert upgrade.is_empty(cluster(17, 5433, directory=tmp_path)) is empty


# --- Comparing -------------------------------------------------------------------------------------------------------


class Fake:
    """A server with tables (rows and a checksum for each) and one sequence."""

    def __init__(self, tables: dict[str, tuple[int, str]], sequence: int = 7, later: str = "") -> None:
        self.tables, self.sequence, self.later = tables, sequence, later

    def sql(self, statement: str, _: str = "") -> str:
        if statement == TABLES:
            return "\n".join([*self.tables, *([self.later] if self.later else [])])
        if statement == upgrade.SEQUENCES:
            return f"public.messages_id_seq|{self.sequence}"
        return "\n".join(digest for table, (_, digest) in self.tables.items() if f"FROM ONLY {table} " in statement)

    def rows(self, _: str) -> dict[str, int]:
        return {table: rows for table, (rows, _) in self.tables.items()}


WRITTEN = {"public.messages": (10, "123"), "public.users": (2, "456")}


def compared(old: Fake, new: Fake) -> None:
    moment: Any = SimpleNamespace(server=old, database="chatbot", rows=old.rows("chatbot"))
    upgrade.compare(moment, new, {"public.messages_id_seq": 7})  # type: ignore[arg-type]


def test_same_databases_are_the_same() -> None:
    compared(Fake(WRITTEN), Fake(WRITTEN))
    # A writer who waits for the end of the locks has taken his number already.
    compared(Fake(WRITTEN), Fake(WRITTEN, sequence=8))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (Fake(WRITTEN), Fake({"public.messages": (10, "123")}), "table public.users is missing"),
        (
            Fake(WRITTEN),
            Fake(WRITTEN | {"public.messages": (9, "123")}),
            "table public.messages has 9 rows instead of 10",
        ),
        (
            Fake(WRITTEN),
            Fake(WRITTEN | {"public.users": (2, "457")}),
            "table public.users has another content",
        ),
        (Fake(WRITTEN), Fake(WRITTEN, sequence=6), "sequence public.messages_id_seq is at 6 instead of 7"),
        (Fake(WRITTEN, later="public.new"), Fake(WRITTEN), "somebody has made or dropped tables"),
    ],
)
def test_differences_are_found(old: Fake, new: Fake, words: str) -> None:
    with pytest.raises(Failure) as failure:
        compared(old, new)
    assert failure.value.code == common.NOT_AS_RECORDED
    assert words in str(failure.value)


# --- The swap --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("records")
def test_new_cluster_that_does_not_come_up_is_swapped_back(serving: Callable[..., Served]) -> None:
    served = serving(17)
    with pytest.raises(Failure, match="did not come up at port 5432: it does not start"):
        upgrade.swap(OLD, NEW, "20261126t120000", {})
    assert served.told == [17, 15]
    assert upgrade.last_record() == {}


def test_swap_that_was_cut_is_known(records: Path, serving: Callable[..., Served], monkeypatch: Any) -> None:
    """The host goes down while the clusters exchange their ports: nothing after that runs any more."""
    serving()
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(upgrade, "write_record", written.append)
    (records / upgrade.MARK).touch()
    upgrade.swap(OLD, cluster(17, 5433, directory=records), "20261126t120000", {})
    monkeypatch.undo()
    monkeypatch.setattr(upgrade, "RECORDS", records / "upgrades")
    upgrade.write_record(written[0])
    with pytest.raises(Failure, match=r"postgresql_upgrade_undo\.yml"):
        upgrade.plan(17)


@pytest.mark.usefixtures("records")
def test_old_cluster_that_does_not_come_up_leaves_the_new_one(
    serving: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serving(15)
    monkeypatch.setattr(upgrade, "recorded", lambda: ({"new": {"port": 5433}}, OLD, NEW))
    with pytest.raises(Failure, match="PostgreSQL 17 serves on"):
        upgrade.undo()
    assert served.told == [15, 17]


@pytest.mark.usefixtures("records")
def test_newest_upgrade_in_effect_is_the_one_to_undo() -> None:
    for stamp, state in (("20261126t1", "done"), ("20261126t2", "done"), ("20261126t3", "undone")):
        upgrade.write_record({"stamp": stamp, "state": state})
    assert upgrade.last_record()["stamp"] == "20261126t2"


@pytest.mark.parametrize(("before", "word"), [("auto", "disabled"), ("manual", "auto"), ("disabled", "auto")])
def test_start_at_boot_is_set_and_the_comments_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, word: str
) -> None:
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(upgrade, "tool", lambda *words: commands.append(words))
    file = tmp_path / "start.conf"
    file.write_text(f"# auto: starts at boot\n# disabled: never\n\n{before}\n")
    upgrade.set_start(cluster(17, 5433, directory=tmp_path), word)
    assert file.read_text() == f"# auto: starts at boot\n# disabled: never\n\n{word}\n"
    assert commands[0][1] == ("disable" if word == "disabled" else "enable")
