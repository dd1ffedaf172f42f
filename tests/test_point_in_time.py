"""The archive without a host: which base backup a moment needs, what pgBackRest's words mean, what is a gap."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

sys.path.insert(0, str(ROOT / "roles/backup/files"))

from chatbot_backup import archive, books, catalogue, common, database, point_in_time, restore, scratch
from chatbot_backup.common import RepositorySettings, Settings

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


def seconds(text: str) -> int:
    return int(datetime.fromisoformat(f"{text}+00:00").timestamp())


def taken(stop: str, repository: int = 1, database: int = 1, kind: str = "full", **changes: Any) -> dict[str, Any]:
    """A base backup as `pgbackrest info` lists it."""
    return {
        "label": f"{stop}-{repository}",
        "type": kind,
        "error": False,
        "database": {"id": database, "repo-key": repository},
        "timestamp": {"start": seconds(stop) - 60, "stop": seconds(stop)},
        "info": {"size": 30_000_000, "repository": {"delta": 4_000_000}},
    } | changes


def about(*backups: dict[str, Any]) -> dict[str, Any]:
    """What `pgbackrest info` says of an archive in two repositories, first of PostgreSQL 15 and then of 17."""
    clusters = [
        {"id": number, "repo-key": key, "system-id": 7000 + number, "version": version}
        for key in (1, 2)
        for number, version in ((1, "15"), (2, "17"))
    ]
    repositories = [{"key": key, "status": {"code": 0, "message": "ok"}} for key in (1, 2)]
    return {"name": "chatbot", "backup": list(backups), "db": clusters, "repo": repositories}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(catalogue, "now", lambda: NOON)
    monkeypatch.setattr(point_in_time, "versions", lambda: [15, 17])
    monkeypatch.setattr(archive, "DROPPED", tmp_path / "dropped")
    monkeypatch.setattr(books, "BASE", tmp_path / "base.json")
    return Settings(
        host="vps", repositories=[RepositorySettings("local", "/nowhere", "x" * 16)], database="chatbot",
        database_owner="chatbot", uploads=tmp_path / "uploads", paths=[], reference_paths=[], sqlite_databases=[],
        release_state=tmp_path / "state.json", keep_pre_restore=3, check_subset="5%", metrics_directory=tmp_path,
        timeout=60, stanza="chatbot",
    )  # fmt: skip


# --- Which base backup a moment needs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "label", "version"),
    [
        ("2026-11-26 11:59:59+00:00", "2026-11-26 01:19-1", 17),  # alike in both: the nearer repository
        ("2026-11-26 01:19:00+00:00", "2026-11-25 01:19-2", 17),  # at this very second that backup was not over
        ("2026-11-25 01:30:00+00:00", "2026-11-25 01:19-2", 17),  # only the other repository has it
        ("2026-11-25 01:00:00+00:00", "2026-11-24 01:19-1", 15),  # of before the upgrade
    ],
)
def test_moment_begins_with_the_newest_base_backup_before_it(
    host: Settings, monkeypatch: pytest.MonkeyPatch, at: str, label: str, version: int
) -> None:
    known = about(
        taken("2026-11-24 01:19"),
        taken("2026-11-25 01:19", repository=2, database=2),
        taken("2026-11-26 01:19", database=2),
        taken("2026-11-26 01:19", repository=2, database=2),
        taken("2026-11-26 01:20", database=2, error=True),
    )
    monkeypatch.setattr(archive, "info", lambda _: known)
    point, reason = point_in_time.find(host, at)
    assert point is not None and reason == ""
    assert (point.label, point.version) == (label, version)
    # What the plan calls it leads to the same moment again.
    assert catalogue.moment(point.name) == point.moment


@pytest.mark.parametrize(
    ("at", "reason"),
    [
        ("2026-11-24 01:00:00+00:00", "the archive begins at 2026-11-24T01:19:00+00:00, after that moment"),
        ("2026-11-24 12:00:00+00:00", "is PostgreSQL 15's, whose programs are gone"),
        ("latest", ""),
        ("20261124T011900Z", ""),
        ("0123abcd", ""),
    ],
)
def test_backup_has_to_do_where_the_archive_has_not_the_moment(
    host: Settings, monkeypatch: pytest.MonkeyPatch, at: str, reason: str
) -> None:
    monkeypatch.setattr(point_in_time, "versions", lambda: [17])
    known = about(taken("2026-11-24 01:19"), taken("2026-11-25 01:19", database=2))
    monkeypatch.setattr(archive, "info", lambda _: known)
    point, found = point_in_time.find(host, at)
    assert point is None
    assert reason in found and bool(reason) == bool(found)


def test_missing_archive_is_no_reason_for_an_older_state(host: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its disk may not be mounted: whoever has named a moment shall hear that, and not get last night's."""
    empty = about() | {"repo": [{"key": 1, "status": {"code": 1, "message": "missing stanza path"}}]}
    monkeypatch.setattr(archive, "info", lambda _: empty)
    with pytest.raises(common.Failure, match=r"Is a disk not mounted.*-e from=") as raised:
        point_in_time.find(host, "2026-11-26 11:00:00+00:00")
    assert raised.value.code == common.NO_REPOSITORY


def test_moment_to_come_is_none(host: Settings) -> None:
    with pytest.raises(common.Failure, match="is yet to come") as raised:
        point_in_time.find(host, "2026-11-26 12:00:01+00:00")
    assert raised.value.code == common.NO_BACKUP


def test_database_alone_needs_no_repository_of_restic(host: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may all be out of reach: the plan is made, and names the moment."""
    monkeypatch.setattr(archive, "info", lambda _: about(taken("2026-11-26 01:19", database=2)))
    monkeypatch.setattr(restore, "check_version", lambda *_: None)
    monkeypatch.setattr(restore, "check_room", lambda _: None)
    plan = restore.plan(host, "2026-11-26 11:00:00+00:00", "database", "").about()
    assert (plan["backup"], plan["parts"]) == ("2026-11-26 11:00:00+00:00", ["database"])
    assert plan["base"] == "2026-11-26 01:19-1"


# --- What pgBackRest's words mean ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "code"),
    [
        # What a wrong passphrase makes of a file, as pgBackRest 2.55 says it.
        ("P00  ERROR: [029]: unable to load info file '/a/archive.info' or '/a/archive.info.copy':\n"
         " FormatError: key/value found outside of section at line 1: \x1b\ufffd/\u071d\n HINT: has a stanza-create"
         " been performed?", common.WRONG_PASSWORD),
        ("P00  ERROR: [103]: unable to find a valid repository:\n repo1: [FileMissingError] unable to load info file\n"
         " HINT: has a stanza-create been performed?", common.NO_REPOSITORY),
        ("P00  ERROR: [049]: unable to connect to 'objects.example.com:443': [111] Connection refused",
         common.UNREACHABLE),
        ("P00  ERROR: [050]: unable to acquire lock on file '/var/spool/pgbackrest/chatbot-backup.lock'", common.BUSY),
        ("P00  ERROR: [039]: unable to write '/a/b': [28] No space left on device", common.DISK_FULL),
        ("P00  ERROR: [032]: PostgreSQL working directory is not the same as option pg1-path", common.OTHER),
    ],
)  # fmt: skip
def test_words_lead_to_a_remedy(said: str, code: int) -> None:
    found = archive.failure(said, "check")
    assert found.code == code
    assert "ERROR: [" in str(found)
    assert "\n" not in str(found) and str(found).isprintable()


def test_end_of_the_archive_is_named_as_the_operator_types_it(tmp_path: Path) -> None:
    point, place = point_in_time.Point(NOON, "label", 1, 17, 1), scratch.Scratch(tmp_path, tmp_path)
    place.log_file.write_text(
        "LOG:  last completed transaction was at log time 2026-11-26 09:15:03.879513+00\n"
        "FATAL:  recovery ended before configured recovery target was reached\n"
    )
    found = point_in_time.ended(point, place)
    assert found.code == common.NO_BACKUP
    assert "-e 'at=\"2026-11-26 09:15:03+00:00\"'" in str(found)
    place.log_file.write_text(place.log_file.read_text().replace("03.879513+00", "03+00"))
    assert "-e 'at=\"2026-11-26 09:15:02+00:00\"'" in str(point_in_time.ended(point, place))
    place.log_file.write_text(
        "LOG:  redo starts\nFATAL:  could not locate required checkpoint record\n"
        "FATAL:  the database system is not accepting connections\n"
    )
    broken = point_in_time.ended(point, place)
    assert broken.code == common.DAMAGED
    assert "could not locate required checkpoint record" in str(broken)


# --- Making the archive, and following a cluster ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("near", "far", "expected"),
    [
        # Each repository: the state that pgBackRest tells, and the clusters that it knows.
        ((0, [1, 2]), (0, [1, 2]), []),
        ((1, []), (3, []), [(1, "stanza-create"), (2, "stanza-create")]),
        ((0, [1]), (0, [1]), [(1, "stanza-upgrade"), (2, "stanza-upgrade")]),
        ((1, []), (0, [1]), [(1, "stanza-create"), (2, "stanza-upgrade")]),  # a rebuilt host
    ],
)
def test_each_repository_gets_what_it_lacks(
    host: Settings, monkeypatch: pytest.MonkeyPatch, near: Any, far: Any, expected: list[tuple[int, str]]
) -> None:
    known = about(taken("2026-11-26 01:19", database=2), taken("2026-11-26 01:19", repository=2, database=2))
    has = {1: near[1], 2: far[1]}
    known["db"] = [one for one in known["db"] if one["id"] in has[one["repo-key"]]]
    known["repo"] = [{"key": key, "status": {"code": place[0]}} for key, place in ((1, near), (2, far))]
    asked: list[tuple[int, str]] = []
    bases: list[Settings] = []
    monkeypatch.setattr(archive, "info", lambda _: known)
    monkeypatch.setattr(archive, "cluster_in_use", lambda: ("17", "7002"))
    monkeypatch.setattr(archive, "alone", lambda _, key, command: asked.append((key, command)))
    monkeypatch.setattr(archive, "pgbackrest", lambda *_, **__: "")
    monkeypatch.setattr(archive, "base", bases.append)
    books.publish_base(host, {"code": 0, "success": {
        "timestamp": 2.0, "duration_seconds": 1.0, "size_bytes": 5, "added_bytes": 3}})  # fmt: skip
    done = archive.init(host)
    assert asked == expected
    # A base backup of the present cluster is missing wherever something was made or continued.
    assert len(bases) == bool(expected)
    assert len(done) == len(expected) + len(bases)
    # Switched off and on again, nothing is known of a base backup: one is made.
    books.BASE.unlink()
    archive.init(host)
    assert len(bases) == bool(expected) + 1


def test_command_for_one_repository_sees_no_other(
    host: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configuration = tmp_path / "pgbackrest.conf"
    configuration.write_text(
        "[global]\nrepo1-path=/near\nrepo1-cipher-pass=a\nrepo2-path=/far\nrepo2-cipher-pass=b\nprocess-max=1\n"
        "\n[chatbot]\npg1-path=/var/lib/postgresql/17/main\n"
    )
    monkeypatch.setattr(archive, "CONFIGURATION", configuration)
    monkeypatch.setattr(archive, "RUN", tmp_path)
    monkeypatch.setattr(shutil, "chown", lambda *_: None)
    seen: list[list[str]] = []

    def pgbackrest(_: Settings, command: str, configuration: Path, **__: float) -> str:
        seen.append([command, *configuration.read_text().split()])
        return ""

    monkeypatch.setattr(archive, "pgbackrest", pgbackrest)
    archive.alone(host, 2, "stanza-upgrade")
    rest = ["process-max=1", "[chatbot]", "pg1-path=/var/lib/postgresql/17/main"]
    assert seen == [["stanza-upgrade", "[global]", "repo1-path=/far", "repo1-cipher-pass=b", *rest]]
    assert list(tmp_path.glob("*archive*")) == []


def test_new_configuration_with_one_wrong_password_is_refused(
    host: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Although the other repository can be read, and one that is out of reach is no fault of the configuration."""
    monkeypatch.setattr(archive, "TRIED", tmp_path / "pgbackrest.conf")
    monkeypatch.setattr(archive, "RUN", tmp_path)
    monkeypatch.setattr(shutil, "chown", lambda *_: None)
    archive.TRIED.write_text("[global]\n")
    known = about()
    known["repo"][1]["status"] = {"code": 99, "message": "[HostConnectError] unable to connect to 'objects:443'"}
    monkeypatch.setattr(archive, "info", lambda *_: known)
    archive.try_configuration(host)
    known["repo"][1]["status"] = {"code": 99, "message": "[CryptoError] cipher header invalid"}
    with pytest.raises(common.Failure, match="the password does not open the archive") as raised:
        archive.try_configuration(host)
    assert raised.value.code == common.WRONG_PASSWORD


# --- Base backups and gaps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ([], "--type=full"),
        ([taken("2026-11-19 01:19", database=2)], "--type=full"),  # a week ago, to the minute
        ([taken("2026-11-20 01:19", database=2), taken("2026-11-25 01:19", database=2, kind="diff")], "--type=diff"),
        ([taken("2026-11-25 01:19", database=1)], "--type=full"),  # of another cluster
        ([taken("2026-11-25 01:19", repository=2, database=2)], "--type=full"),  # in another repository
    ],
)
def test_base_backup_is_a_full_one_every_week(
    host: Settings, monkeypatch: pytest.MonkeyPatch, known: list[dict[str, Any]], expected: str
) -> None:
    asked: list[str] = []

    def pgbackrest(_: Settings, *words: str) -> str:
        asked.extend(words)
        known.append(taken("2026-11-26 01:19", database=2))
        return ""

    monkeypatch.setattr(archive, "info", lambda _: about(*known))
    monkeypatch.setattr(archive, "pgbackrest", pgbackrest)
    monkeypatch.setattr(archive, "cluster_in_use", lambda: ("17", "7002"))
    made = archive.base_in(host, 1, seconds("2026-11-26 01:18"))
    assert asked == [expected, "--repo=1", "backup"]
    assert not isinstance(made, common.Failure) and made["label"] == "2026-11-26 01:19-1"


def test_failed_base_backup_keeps_what_is_known_of_the_good_one(
    host: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    books.publish_base(host, {"begin": 1.0, "end": 2.0, "code": 0, "success": {
        "timestamp": 2.0, "duration_seconds": 1.0, "size_bytes": 5, "added_bytes": 3}})  # fmt: skip
    monkeypatch.setattr(archive, "info", lambda _: about(taken("2026-11-26 01:19", database=2)))
    monkeypatch.setattr(archive, "cluster_in_use", lambda: ("17", "7002"))
    asked: list[str] = []

    def pgbackrest(_: Settings, *words: str) -> str:
        asked.append(words[1])
        raise common.Failure(common.UNREACHABLE, "the archive cannot be reached")

    monkeypatch.setattr(archive, "pgbackrest", pgbackrest)
    with pytest.raises(common.Failure, match="cannot be reached"):
        archive.base(host)
    assert asked == ["--repo=1", "--repo=2"], "one that fails keeps no other one from getting its own"
    text = (host.metrics_directory / "chatbot_backup_base.prom").read_text()
    assert 'backup_base_last_run_success{repository="archive"} 0' in text
    assert 'backup_base_last_success_timestamp_seconds{repository="archive"} 2' in text


def test_gap_is_what_was_dropped_since_the_last_base_backup_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "DROPPED", tmp_path / "dropped")
    assert archive.dropped(0) == []
    archive.DROPPED.write_text("1000 00000001000000000000000A\n2000 00000001000000000000000B\n")
    assert archive.dropped(0) == [1000, 2000]
    assert archive.dropped(1500) == [2000]
    assert archive.dropped(2000) == []


@pytest.mark.parametrize(
    ("answer", "dropped", "expected"),
    [
        ("10000.5||0|60|on", "", {"point": 9940.5, "waiting": 0, "gap": 0}),
        ("10000.5|9000|3|60|on", "", {"point": 8940, "waiting": 3 << 24, "gap": 0}),
        ("10000.5||0|60|on", "5000 A\n6000 B\n", {"point": 4940, "waiting": 0, "gap": 1}),
    ],
)
def test_recovery_point_is_never_later_than_what_is_missing(
    host: Settings, monkeypatch: pytest.MonkeyPatch, answer: str, dropped: str, expected: dict[str, float]
) -> None:
    archive.DROPPED.write_text(dropped)
    monkeypatch.setattr(database.Server, "sql", lambda *_: answer)
    assert archive.watch(host) == expected
    text = (host.metrics_directory / "chatbot_backup_archive.prom").read_text()
    assert f'recovery_point_timestamp_seconds{{repository="archive"}} {expected["point"]:.15g}\n' in text


def test_server_that_does_not_archive_is_told(host: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database.Server, "sql", lambda *_: "10000||0|60|off")
    with pytest.raises(common.Failure, match="does not archive"):
        archive.watch(host)
    assert not (host.metrics_directory / "chatbot_backup_archive.prom").exists()


def test_host_without_an_archive_says_how_to_get_one(host: Settings) -> None:
    with pytest.raises(common.Failure, match="backup_point_in_time: true"):
        archive.info(dataclasses.replace(host, stanza=""))
