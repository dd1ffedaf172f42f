"""The backup program without a host: what belongs together, what somebody means, what differs, what is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from repository import ROOT

sys.path.insert(0, str(ROOT / "roles/backup/files"))

from chatbot_backup import backup, books, catalogue, cli, common, database, manifest, restic, restore
from chatbot_backup.catalogue import Backup


def snapshot(name: str, kind: str, purpose: str = "chatbot", identifier: str = "") -> dict[str, Any]:
    identifier = identifier or f"{kind}-{name}".encode().hex().ljust(64, "0")
    return {"id": identifier, "tags": [purpose, f"run-{name}", kind], "time": name}


def whole(name: str, purpose: str = "chatbot") -> list[dict[str, Any]]:
    return [snapshot(name, kind, purpose) for kind in ("part-database", "part-files", "manifest")]


def whole_backup() -> Backup:
    return Backup(MONDAY, catalogue.REGULAR, "m" * 64, {"database": "d" * 64, "files": "f" * 64})


MONDAY, TUESDAY, WEDNESDAY = "20261123T031700Z", "20261124T031700Z", "20261125T031700Z"


# --- Which backups there are -----------------------------------------------------------------------------------------


def test_backup_without_manifest_is_none() -> None:
    killed = whole(TUESDAY)[:2]
    found = catalogue.backups([*whole(MONDAY), *killed])
    assert [each.name for each in found] == [MONDAY]
    assert set(found[0].parts) == {"database", "files"}
    assert catalogue.left_over([*whole(MONDAY), *killed]) == [each["id"] for each in killed]


def test_snapshots_of_others_are_left_alone() -> None:
    foreign: list[dict[str, Any]] = [
        {"id": "a" * 64, "tags": ["part-files"]},
        {"id": "b" * 64, "tags": None},
        {"id": "c" * 64},
    ]
    old: list[dict[str, Any]] = [{"id": "d" * 64, "tags": ["chatbot"], "time": "2026"}]
    assert catalogue.backups(foreign + old) == []
    assert catalogue.left_over(foreign + old) == []


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> list[Backup]:
    monkeypatch.setattr(catalogue, "now", lambda: datetime(2026, 11, 25, 12, tzinfo=UTC))
    return catalogue.backups([*whole(MONDAY), *whole(TUESDAY), *whole(WEDNESDAY, "pre-restore")])


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("latest", TUESDAY),  # never the state before a restore, unless it is named
        (MONDAY, MONDAY),
        (WEDNESDAY, WEDNESDAY),
        ("2026-11-24 03:17:00+00:00", TUESDAY),
        ("2026-11-24T03:16:59Z", MONDAY),
        ("2027-01-01", TUESDAY),
        (snapshot(MONDAY, "part-files")["id"][:50], MONDAY),
        (snapshot(MONDAY, "manifest")["id"], MONDAY),
    ],
)
def test_backup_is_the_one_that_is_meant(known: list[Backup], at: str, expected: str) -> None:
    assert catalogue.choose(at, known, "here").name == expected


@pytest.mark.parametrize(
    ("at", "code", "words"),
    [
        ("2026-11-22", common.NO_BACKUP, "no backup from 2026-11-22 or before"),
        ("00000000", common.NO_BACKUP, "no snapshot 00000000"),
        ("20261126T031700Z", common.NO_BACKUP, "no backup 20261126T031700Z"),
        ("yesterday", common.USAGE, "is not understood"),
    ],
)
def test_unknown_backup_is_refused_with_the_list(known: list[Backup], at: str, code: int, words: str) -> None:
    with pytest.raises(common.Failure, match=words) as raised:
        catalogue.choose(at, known, "repository local")
    assert raised.value.code == code
    assert MONDAY in str(raised.value) or code == common.USAGE


FUTURE = "20270101T031700Z"


def test_backup_of_the_future_is_not_the_latest(known: list[Backup]) -> None:
    """Its time comes from a clock that was wrong; by its name it can be had."""
    known += catalogue.backups(whole(FUTURE))
    assert catalogue.choose("latest", known, "here").name == TUESDAY
    assert catalogue.of_the_future(known) == [FUTURE]
    assert catalogue.choose(FUTURE, known, "here").name == FUTURE
    with pytest.raises(common.Failure, match=rf"of the future: {FUTURE}.*timedatectl") as raised:
        catalogue.choose("latest", known[-1:], "here")
    assert raised.value.code == common.NO_BACKUP


def test_day_means_its_end_in_the_zone_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert catalogue.moment("2026-11-24") == datetime(2026, 11, 24, 22, 59, 59, tzinfo=UTC)
        assert catalogue.moment("2026-11-24 12:00") == datetime(2026, 11, 24, 11, 0, tzinfo=UTC)
        assert catalogue.moment("noon") is None
    finally:
        monkeypatch.undo()
        time.tzset()


# --- What a backup says of itself ------------------------------------------------------------------------------------


def test_missing_rows_and_tables_are_named() -> None:
    expected = {"public.messages": 1000, "public.accounts": 3, "public.usage": 0}
    assert manifest.compare_tables(expected, dict(expected)) == []
    found = manifest.compare_tables(expected, {"public.messages": 999, "public.usage": 0, "public.ransom": 1})
    assert found == [
        "table public.messages has 999 rows instead of 1000",
        "table public.accounts is missing",
        "table public.ransom is not in the manifest",
    ]


def test_changed_missing_and_unknown_files_are_named(tmp_path: Path) -> None:
    for name in ("same", "changed", "lost"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        (tmp_path / "sub" / name).write_text(name)
    checksums = manifest.Checksums(tmp_path)
    checksums.read()
    kept = checksums.settled()
    assert kept["unsettled"] == []
    assert kept["bytes"] == len("same" + "changed" + "lost")
    assert manifest.compare_files(kept, tmp_path) == []
    (tmp_path / "sub/changed").write_text("CHANGED")
    (tmp_path / "sub/lost").unlink()
    (tmp_path / "new").touch()
    assert manifest.compare_files(kept, tmp_path) == [
        "sub/lost is missing",
        "new is not in the manifest",
        "sub/changed has another content",
    ]


def test_files_that_change_during_the_backup_are_promised_nothing(tmp_path: Path) -> None:
    for name in ("still", "written", "deleted"):
        (tmp_path / name).write_text(name)
    checksums = manifest.Checksums(tmp_path)
    checksums.read()
    (tmp_path / "written").write_text("more of it")
    (tmp_path / "deleted").unlink()
    (tmp_path / "late").write_text("uploaded meanwhile")
    kept = checksums.settled()
    assert list(kept["sha256"]) == ["still"]
    assert kept["unsettled"] == ["deleted", "late", "written"]
    assert manifest.compare_files(kept, tmp_path) == []
    # The next repository gets them as they are now.
    checksums.read()
    assert sorted(checksums.settled()["sha256"]) == ["late", "still", "written"]


def test_long_lists_are_cut_with_their_number() -> None:
    assert manifest.named([f"d{n}" for n in range(8)]) == "d0; d1; d2; d3; d4; and 3 more"
    assert manifest.named(["d0"]) == "d0"


# --- What restic says, and what we say -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("Fatal: wrong password or no key found", common.WRONG_PASSWORD),
        ("Fatal: unable to open config file: stat /x/config: no such file or directory\nIs there a repository at the "
         "following location?\n/x", common.NO_REPOSITORY),
        ("Stat(<config/>) returned error, retrying after 1.1s: Stat: The specified bucket does not exist",
         common.NO_REPOSITORY),
        ("unable to create lock in backend: repository is already locked by PID 12 on vps", common.LOCKED),
        ("Save(<data/0123>) returned error: write /x/tmp: no space left on device", common.DISK_FULL),
        ("Fatal: unable to create lock in backend: open /x/locks/1: read-only file system", common.READ_ONLY),
        ('Fatal: unable to open config file: Head "http://127.0.0.1:9/": dial tcp 127.0.0.1:9: connect: refused',
         common.UNREACHABLE),
        ("Fatal: unable to open repository at s3:…: Access Denied.", common.UNREACHABLE),
        ("pack 12345678 contains 1 errors: [blob 1: ciphertext verification failed]", common.DAMAGED),
        ("Fatal: something that nobody has seen yet", common.OTHER),
    ],
)  # fmt: skip
def test_cause_is_recognised(words: str, code: int) -> None:
    assert restic.cause(words) == code


def test_restic_that_asks_for_a_missing_bucket_again_and_again_is_ended(
    host: common.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = "echo 'retrying after 1s: Stat: The specified bucket does not exist' >&2; exec sleep 60"
    programs(tmp_path, monkeypatch, restic=asks)
    with pytest.raises(common.Failure, match="there is no repository at") as raised:
        restic.Repository(host.repositories[0], host).open()
    assert raised.value.code == common.NO_REPOSITORY


def test_every_cause_has_a_remedy_that_names_the_place() -> None:
    for code, _ in restic.CAUSES:
        text = restic.REMEDIES[code].format(it="s3:host/bucket", name="offsite")
        assert "s3:host/bucket" in text
    for code, _ in restic.CAUSES:
        assert str(code) in (cli.__doc__ or "")


def test_summary_is_the_last_line_of_its_kind() -> None:
    output = '{"message_type":"status","percent_done":1}\n{"message_type":"summary","snapshot_id":"ab"}\n'
    assert restic.summary(output)["snapshot_id"] == "ab"
    with pytest.raises(common.Failure, match="cannot be read"):
        restic.summary("nothing of the kind\n")


# --- A dump on its way -----------------------------------------------------------------------------------------------


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs run as the tester: there is no postgres here."""
    monkeypatch.setattr(database, "as_user", lambda _name: {})


class Moment:
    """What `dump` needs of a moment."""

    server = database.Server()
    database = "chatbot"
    snapshot = "0000-1"


def programs(directory: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Put programs of that name first on the path."""
    for name, script in scripts.items():
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


def reading(command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["/bin/sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.mark.usefixtures("nobody")
def test_good_dump_goes_through_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(tmp_path, monkeypatch, pg_dump="yes chatbot | head -c 5000000", pg_restore="cat >/dev/null")
    with reading("cat >/dev/null; echo snapshot") as store:
        done = database.dump(Moment(), store)  # type: ignore[arg-type]
        assert store.stdout is not None
        assert store.stdout.read() == b"snapshot\n"
    assert done.bytes == 5_000_000


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize(
    ("pg_dump", "pg_restore", "words"),
    [
        ("head -c 300000 /dev/zero; echo broken >&2; exit 1", "cat >/dev/null", "pg_dump of chatbot failed.*broken"),
        ("head -c 300000 /dev/zero", "cat >/dev/null; echo no magic >&2; exit 1", "cannot be read back.*no magic"),
        ("head -c 30000000 /dev/zero", "echo no magic >&2; exit 1", "cannot be read back.*no magic"),
    ],
)  # fmt: skip
def test_failed_dump_never_ends_the_input_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pg_dump: str, pg_restore: str, words: str
) -> None:
    """Whoever reads to the end of a pipe takes it for the whole: that end must not come."""
    programs(tmp_path, monkeypatch, pg_dump=pg_dump, pg_restore=pg_restore)
    with reading("cat >/dev/null; echo snapshot") as store:
        with pytest.raises(common.Failure, match=words) as raised:
            database.dump(Moment(), store)  # type: ignore[arg-type]
        assert raised.value.code == common.DUMP_FAILED
        assert store.poll() is None, "it took the half for the whole"
        store.kill()


@pytest.mark.usefixtures("nobody")
def test_store_that_ends_early_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(tmp_path, monkeypatch, pg_dump="head -c 30000000 /dev/zero", pg_restore="cat >/dev/null")
    with reading("head -c 1000 >/dev/null; exit 1") as store, pytest.raises(database.StoppedError):
        database.dump(Moment(), store)  # type: ignore[arg-type]


# --- Restores -------------------------------------------------------------------------------------------------------


def test_files_that_are_made_beside_a_failing_database_are_not_waited_for(
    host: common.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs(tmp_path, monkeypatch, restic=f"touch {tmp_path}/started; exec sleep 60")
    made = restore.Plan(restic.Repository(host.repositories[0], host), whole_backup(), {}, ["database", "uploads"])

    def fail(_made: restore.Plan) -> None:
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        raise common.Failure(common.NOT_AS_RECORDED, "the dump could not be restored")

    monkeypatch.setitem(restore.MAKERS, "database", fail)
    begin = time.monotonic()
    with pytest.raises(common.Failure, match="the dump could not be restored"):
        restore.make(made)
    assert time.monotonic() - begin < 30


def test_a_restic_that_starts_while_it_is_stopped_is_ended_too(
    host: common.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs(tmp_path, monkeypatch, restic="exec sleep 60")
    repository = restic.Repository(host.repositories[0], host)
    repository.stop()
    begin = time.monotonic()
    with pytest.raises(common.Failure):
        repository.run("restore")
    assert time.monotonic() - begin < 30


def test_restored_parts_are_swapped_the_database_first(host: common.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    made = restore.Plan(restic.Repository(host.repositories[0], host), whole_backup(), {}, ["database", "uploads"])
    swapped: list[str] = []
    monkeypatch.setitem(restore.MAKERS, "uploads", lambda _made: lambda: swapped.append("uploads"))
    monkeypatch.setitem(restore.MAKERS, "database", lambda _made: lambda: swapped.append("database"))
    for swap in restore.make(made):
        swap()
    assert swapped == ["database", "uploads"]


def test_what_is_read_from_a_read_only_repository_is_read_without_a_lock(
    host: common.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses = "echo 'Fatal: unable to create lock in backend: read-only file system' >&2; exit 1"
    programs(tmp_path, monkeypatch, restic=f'[ "$1" = --no-lock ] && echo "[]" && exit; {refuses}')
    repository = restic.Repository(host.repositories[0], host)
    assert repository.open_to_read() == []
    assert repository.options == ["--no-lock"]


@pytest.mark.parametrize(("number", "asked"), [(7, False), (8, True)])
def test_restic_is_asked_what_to_drop_when_there_are_more_backups_than_days_to_keep(
    host: common.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, asked: bool
) -> None:
    snapshots = json.dumps([each for day in range(1, number + 1) for each in whole(f"202611{day:02}T031700Z")])
    (tmp_path / "snapshots.json").write_text(snapshots)
    answers = (
        f'case "$1" in snapshots) cat {tmp_path}/snapshots.json;; forget) touch {tmp_path}/asked; echo "[]";; esac'
    )
    programs(tmp_path, monkeypatch, restic=answers)
    repository = restic.Repository(host.repositories[0], host)
    assert backup.drop_old(host, repository, catalogue.REGULAR) == number
    assert (tmp_path / "asked").exists() == asked


# --- The books -------------------------------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> common.Settings:
    """A host with two repositories and an exporter, below a directory of the test."""
    for name in ("RUNS", "LAST_SUCCESS", "CHECKS", "DRILL"):
        monkeypatch.setattr(books, name, tmp_path / f"{name.lower()}.json")
    (tmp_path / "metrics").mkdir()
    places = [common.RepositorySettings(name, f"/{name}", "secret") for name in ("local", "offsite")]
    return common.Settings(
        host="vps", repositories=places, database="chatbot", database_owner="chatbot", uploads=tmp_path / "uploads",
        paths=[], reference_paths=[], sqlite_databases=[], release_state=tmp_path / "state.json", keep_pre_restore=3,
        check_subset="5%", metrics_directory=tmp_path / "metrics", timeout=60,
    )  # fmt: skip


FIGURES = {"snapshot": MONDAY, "timestamp": 1.7e9, "duration_seconds": 2, "size_bytes": 9, "added_bytes": 1}
FIGURES |= {"database_dump_bytes": 5, "backups": 4, "snapshots": 4}


def metrics(host: common.Settings, name: str = "chatbot_backup.prom") -> dict[str, float]:
    lines = (host.metrics_directory / name).read_text().splitlines()
    return {key: float(value) for key, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_failing_repository_has_a_metric_of_its_own(host: common.Settings) -> None:
    runs = books.Runs(host)
    runs.begin()
    runs.end("local", 0, FIGURES)
    runs.end("offsite", common.UNREACHABLE)
    runs.finish()
    found = metrics(host)
    assert found['backup_last_run_success{repository="local"}'] == 1
    assert found['backup_last_run_success{repository="offsite"}'] == 0
    assert found['backup_last_exit_code{repository="offsite"}'] == common.UNREACHABLE
    assert found['backup_last_success_timestamp_seconds{repository="local"}'] == 1.7e9
    assert 'backup_last_success_timestamp_seconds{repository="offsite"}' not in found
    assert not books.LAST_SUCCESS.exists(), "the health check would call this good"


def test_killed_run_counts_as_failed(host: common.Settings) -> None:
    runs = books.Runs(host)
    runs.begin()
    for name in ("local", "offsite"):
        runs.end(name, 0, FIGURES)
    runs.finish()
    again = books.Runs(host)
    again.begin()
    again.end("local", 0, FIGURES)  # … and then kill -9
    assert books.Runs(host).killed() == ["offsite"]
    assert books.Runs(host).killed() == []
    assert metrics(host)['backup_last_run_success{repository="offsite"}'] == 0
    assert metrics(host)['backup_last_exit_code{repository="offsite"}'] == common.KILLED
    assert metrics(host)['backup_last_success_timestamp_seconds{repository="offsite"}'] == 1.7e9


@pytest.mark.parametrize(
    ("code", "tried"), [(common.UNREACHABLE, ["local", "offsite"]), (common.STOPPED + 15, ["local"])]
)
def test_failure_lets_the_others_have_theirs_and_a_stop_ends_all(
    host: common.Settings, monkeypatch: pytest.MonkeyPatch, code: int, tried: list[str]
) -> None:
    seen: list[str] = []

    def back_up(_settings: common.Settings, place: common.RepositorySettings, *_: Any) -> dict[str, Any]:
        seen.append(place.name)
        if place.name == "local":
            raise common.Failure(code, "no")
        return FIGURES

    monkeypatch.setattr(backup, "back_up", back_up)
    with pytest.raises(common.Failure) as raised:
        backup.run(host)
    assert raised.value.code == code
    assert seen == tried
    assert metrics(host)['backup_last_run_success{repository="local"}'] == 0
    assert metrics(host)['backup_last_run_success{repository="offsite"}'] == (len(tried) == 2)


def test_failed_drill_keeps_the_time_of_the_last_good_one(host: common.Settings) -> None:
    good = {"end": 100.0, "verified": 100.0, "success": 1, "code": 0, "rto": 5.5, "rpo": 60, "bytes": 7}
    books.publish_drill(host, "offsite", good)
    books.publish_drill(host, "offsite", {"end": 200.0, "success": 0, "code": 21})
    found = metrics(host, "chatbot_backup_drill.prom")
    assert found['backup_last_verified_restore_timestamp_seconds{repository="offsite"}'] == 100
    assert found['backup_drill_last_run_timestamp_seconds{repository="offsite"}'] == 200
    assert found['backup_drill_success{repository="offsite"}'] == 0
    assert found['backup_recovery_time_seconds{repository="offsite"}'] == 5.5


# --- Restoring -------------------------------------------------------------------------------------------------------


def test_swaps_are_not_interrupted_between_one_another() -> None:
    done: list[str] = []

    def stop(*_: object) -> None:
        done.append("ended")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with restore.undisturbed():
            done.append("database")
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("uploads")
        assert done == ["database", "uploads"]
        os.kill(os.getpid(), signal.SIGTERM)
        assert done[-1] == "ended"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_restored_files_get_the_owners_of_those_that_they_replace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, int]] = []
    monkeypatch.setattr(os, "chown", lambda path, user, _group, **_: given.append((path.name, user)))
    for name in ("restored/known", "restored/unknown", "present/known"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    restore.adopt(tmp_path / "restored", tmp_path / "present")
    assert sorted(given) == [("known", os.getuid()), ("restored", os.getuid())]


def test_settings_that_cannot_be_read_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(common.Failure, match=r"site\.yml --tags backup"):
        common.read_settings(tmp_path / "missing.json")
    (tmp_path / "half.json").write_text('{"host": "vps"')
    with pytest.raises(common.Failure, match=r"site\.yml --tags backup"):
        common.read_settings(tmp_path / "half.json")


def test_module_runs_on_the_oldest_python_of_a_host() -> None:
    """Debian 12 has 3.11: no syntax of later ones."""
    import ast

    modules: list[ModuleType] = [books, catalogue, cli, common, database, manifest, restic]
    for module in modules:
        ast.parse(Path(str(module.__file__)).read_text(), feature_version=(3, 11))
