"""The lock of a release: one owner at a time, and a dead one's is taken over."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from repository import ROOT, program

FILE = ROOT / "roles/chatbot/files/release_lock.py"


@pytest.fixture(scope="module")
def lock() -> ModuleType:
    return program(FILE)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run/lock.json"


def owner(lock: ModuleType, token: str, pid: int | None = None) -> dict[str, Any]:
    pid = pid or os.getpid()
    return {"token": token, "who": f"{token}@laptop", "node": lock.node(), "pid": pid, "started": lock.started(pid)}


def test_second_run_is_told_who_has_it(lock: ModuleType, file: Path) -> None:
    assert lock.take(file, owner(lock, "anna"), 60)["taken"]
    refused = lock.take(file, owner(lock, "ben"), 60)
    assert not refused["taken"]
    assert refused["before"]["who"] == "anna@laptop"
    assert refused["before"]["since"] < refused["before"]["until"]
    assert not refused["expired"]


def test_own_lock_can_be_taken_again_and_keeps_its_beginning(lock: ModuleType, file: Path) -> None:
    lock.take(file, owner(lock, "anna"), 60)
    since = lock.read(file)["since_seconds"]
    again = lock.take(file, owner(lock, "anna"), 600)
    assert (again["taken"], again["before"]) == (True, None)
    assert lock.read(file)["since_seconds"] == since
    assert lock.read(file)["until_seconds"] > time.time() + 500


def test_released_lock_is_free_and_only_the_owner_releases(lock: ModuleType, file: Path) -> None:
    lock.take(file, owner(lock, "anna"), 60)
    assert lock.release(file, owner(lock, "ben"))["before"]["who"] == "anna@laptop"
    assert not lock.take(file, owner(lock, "ben"), 60)["taken"]
    lock.release(file, owner(lock, "anna"))
    assert lock.take(file, owner(lock, "ben"), 60) == {"taken": True, "before": None, "expired": False}


def test_lock_that_has_run_out_is_taken_over_and_named(lock: ModuleType, file: Path) -> None:
    lock.take(file, owner(lock, "anna"), 0)
    time.sleep(0.01)
    taken = lock.take(file, owner(lock, "ben"), 60)
    assert (taken["taken"], taken["expired"], taken["before"]["who"]) == (True, True, "anna@laptop")
    # The old owner notices before it changes anything more.
    assert not lock.renew(file, owner(lock, "anna"), 60)["taken"]
    assert lock.renew(file, owner(lock, "ben"), 60)["taken"]


def test_taking_over_is_meant_for_one_owner(lock: ModuleType, file: Path) -> None:
    """Between the question whether Anna's run has ended and the take-over, Ben may have come."""
    lock.take(file, owner(lock, "ben"), 60)
    assert not lock.take(file, owner(lock, "carla"), 60, instead_of="anna")["taken"]
    assert lock.take(file, owner(lock, "carla"), 60, instead_of="ben")["taken"]


def test_half_written_lock_is_none(lock: ModuleType, file: Path) -> None:
    file.parent.mkdir()
    file.write_text('{"token": "an')
    assert lock.take(file, owner(lock, "ben"), 60)["taken"]


def test_living_process_has_not_ended(lock: ModuleType) -> None:
    assert not lock.ended(owner(lock, "anna"))


def test_killed_process_has_ended_even_before_its_parent_asks(lock: ModuleType) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        held = owner(lock, "anna", process.pid)
        assert not lock.ended(held)
        process.kill()
        deadline = time.monotonic() + 10
        while not lock.ended(held) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert lock.ended(held)
        process.wait()
        assert lock.ended(held)


def test_number_that_another_process_has_now_has_ended(lock: ModuleType) -> None:
    assert lock.ended(owner(lock, "anna") | {"started": "1"})


def test_process_of_another_control_node_may_live(lock: ModuleType) -> None:
    assert not lock.ended(owner(lock, "anna") | {"node": "elsewhere", "started": "1"})


def test_of_many_at_once_one_gets_it(lock: ModuleType, file: Path) -> None:
    taken = []
    begin = threading.Barrier(8)

    def run(number: int) -> None:
        begin.wait()
        taken.append(lock.take(file, owner(lock, str(number)), 60)["taken"])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken.count(True) == 1
