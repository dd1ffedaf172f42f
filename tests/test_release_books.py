"""The books of releases: what serves, what is tried, where a rollback leads, and what a crash leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from repository import ROOT, program

FILE = ROOT / "roles/chatbot/files/release_books.py"


class Host:
    """The books of one host, opened anew for each step, as the role does."""

    def __init__(self, directory: Path) -> None:
        self.module: ModuleType = program(FILE)
        self.directory = directory
        self.runs = 0

    def open(self) -> Any:
        return self.module.Books(self.directory)

    def begin(self, release: str, **more: Any) -> None:
        self.runs += 1
        colour = "green" if self.state["colour"] == "blue" else "blue"
        run = {"id": f"run{self.runs}", "release": release, "colour": colour, "by": "anna@laptop", "commit": "c0ffee"}
        self.open().begin(run | {"image": f"chatbot:{release}", "rollback": False} | more)

    def release(self, release: str, **more: Any) -> None:
        self.begin(release, **more)
        for phase in ("switch", "bake"):
            self.open().phase(phase)
        self.open().commit()

    @property
    def state(self) -> dict[str, Any]:
        report: dict[str, Any] = self.open().report(3)
        return report

    def verdicts(self) -> dict[str, str]:
        return {one["id"]: one["verdict"] for one in self.state["releases"]}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_empty_host_has_empty_books_and_looking_writes_none(host: Host) -> None:
    assert host.state["release"] == host.state["colour"] == host.state["previous"] == ""
    assert list(host.directory.iterdir()) == []


def test_releases_follow_one_another(host: Host) -> None:
    for release in ("aaa", "bbb", "ccc"):
        host.release(release)
    assert host.verdicts() == {"ccc": "active", "bbb": "superseded", "aaa": "superseded"}
    state = host.state
    assert (state["release"], state["previous"], state["colour"], state["run"]) == ("ccc", "bbb", "blue", None)
    (newest, *_) = state["releases"]
    assert (newest["who"], newest["commit"], newest["image"]) == ("anna@laptop", "c0ffee", "chatbot:ccc")
    # What other parts read without this program.
    written = json.loads((host.directory / "state.json").read_text())
    assert (written["release"], written["colour"], written["previous"]) == ("ccc", "blue", "bbb")


def test_rejected_release_changes_nothing_and_says_why(host: Host) -> None:
    host.release("aaa")
    before = host.state
    host.begin("bad")
    assert host.state["run"]["phase"] == "stage"
    host.open().reject("Gate: no answer")
    assert host.verdicts() == {"aaa": "active", "bad": "rejected"}
    assert next(one["reason"] for one in host.state["releases"] if one["id"] == "bad") == "Gate: no answer"
    assert {key: host.state[key] for key in ("release", "colour", "since")} == {
        key: before[key] for key in ("release", "colour", "since")
    }


def test_rollbacks_lead_further_back_each_time(host: Host) -> None:
    for release in ("aaa", "bbb", "ccc"):
        host.release(release)
    host.release(host.state["previous"], rollback=True)
    assert host.verdicts() == {"bbb": "active", "ccc": "rolled back", "aaa": "superseded"}
    assert host.state["previous"] == "aaa"
    host.release("aaa", rollback=True)
    assert host.state["previous"] == ""
    host.release("ccc")
    assert host.verdicts()["ccc"] == "active"
    assert host.state["previous"] == "aaa"


def test_rollback_that_fails_leaves_the_release_as_a_way_back(host: Host) -> None:
    host.release("aaa")
    host.release("bbb")
    host.begin("aaa", rollback=True)
    host.open().reject("interrupted")
    assert host.state["previous"] == "aaa"
    # Who made it is remembered, too.
    assert next(one["commit"] for one in host.state["releases"] if one["id"] == "aaa") == "c0ffee"


def test_new_settings_of_the_same_release_are_no_other_release(host: Host) -> None:
    host.release("aaa")
    host.release("bbb")
    host.release("bbb")
    assert (host.state["previous"], host.state["colour"]) == ("aaa", "blue")
    host.begin("bbb")
    host.open().reject("Gate: no answer")
    assert host.verdicts() == {"bbb": "active", "aaa": "superseded"}


def test_books_of_a_host_without_manifests_go_on(host: Host) -> None:
    """As the version before this one left them."""
    (host.directory / "state.json").write_text(
        '{"colour": "green", "release": "old", "previous": "older", "since": "2026-01-01T00:00:00Z"}'
    )
    host.release("new")
    assert host.verdicts() == {"new": "active", "old": "superseded"}
    assert (host.state["previous"], host.state["colour"]) == ("old", "blue")


@pytest.mark.parametrize("survived", range(5))
def test_crash_between_any_two_writes_of_a_commit_is_finished(host: Host, survived: int) -> None:
    host.release("aaa")
    host.begin("bbb")
    store, writes = host.module.store, iter(range(100))

    def crashing(*arguments: Any) -> None:
        if next(writes) >= survived:
            raise SystemExit
        store(*arguments)

    host.module.store = crashing  # type: ignore[attr-defined]
    try:
        host.open().commit()
    except SystemExit:
        pass
    finally:
        host.module.store = store  # type: ignore[attr-defined]
    # The first write decides.
    agreed = "bbb" if survived else "aaa"
    assert host.state["release"] == agreed
    host.open().reject("interrupted")
    expected = {"bbb": "active", "aaa": "superseded"} if survived else {"aaa": "active", "bbb": "rejected"}
    assert host.verdicts() == expected
    assert host.state["run"] is None


def test_ways_back_and_the_last_rejected_one_are_kept(host: Host) -> None:
    for release in ("r1", "r2", "r3", "r4"):
        host.release(release)
    for release in ("bad1", "bad2"):
        host.begin(release)
        host.open().reject("no")
    assert host.state["kept"] == ["r4", "r3", "r2", "bad2"]


def test_list_stays_short(host: Host) -> None:
    for number in range(23):
        host.release(f"r{number:02}")
    assert len(host.state["releases"]) == 20
    assert sorted(host.state["forgotten"]) == ["r00", "r01", "r02"]
