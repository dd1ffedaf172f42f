"""tools/test counts what the logs say, and never takes silence for success."""

from __future__ import annotations

import asyncio
import importlib.machinery
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from repository import ROOT


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("test_program", str(ROOT / "tools/test"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


@pytest.fixture
def finished(runner: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a function that makes a job which has ended with a status and a log."""
    monkeypatch.setattr(runner, "LOGS", tmp_path)

    def make(status: str, log: str, counts_itself: bool = True) -> Any:
        job = runner.Job("job", [["true"]], 1.0, counts_itself=counts_itself)
        job.status = status
        job.log.write_text(log)
        job.count()
        return job

    return make


def test_a_scenarios_tests_are_added_to_its_life(finished: Any) -> None:
    summary = "\x1b[32m=== 10 passed, 2 skipped in 125.30s (0:02:05) ===\x1b[0m"
    job = finished("passed", f"SKIPPED [2] tests/test_x.py:3: no AppArmor here\n{summary}\n")
    assert job.counts == {"passed": 11, "skipped": 2}
    assert job.skips == {"no AppArmor here": 2}


def test_several_runs_of_pytest_add_up(finished: Any) -> None:
    job = finished("passed", "3 passed in 0.10s\n2 passed, 1 xfailed, 4 warnings in 0.20s\n", counts_itself=False)
    assert job.counts == {"passed": 6}


def test_vitest_is_counted_as_well(finished: Any) -> None:
    summary = "\x1b[2m      Tests \x1b[22m 1 failed | 118 passed | 2 skipped (121)\n"
    assert finished("failed", summary, counts_itself=False).counts == {"passed": 118, "failed": 1, "skipped": 2}
    assert finished("passed", "      Tests  121 passed (121)\n", counts_itself=False).counts == {"passed": 121}


def test_an_old_node_skips_the_web_client(runner: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "node_version", lambda: (18, 20))
    (web,) = (job for job in runner.checks() if job.name == "web")
    assert (web.status, web.skips) == ("skipped", {"Node.js is 18.20; the web client needs 20.19 or newer": 1})
    monkeypatch.setattr(runner, "node_version", lambda: (22, 1))
    assert [job.status for job in runner.checks()] == ["waiting"] * 4


def test_packages_are_installed_where_the_lock_has_changed(runner: ModuleType, tmp_path: Path) -> None:
    lock, modules = tmp_path / "package-lock.json", tmp_path / "node_modules"
    lock.write_text("1")
    ((*_, script),) = runner.missing_packages(tmp_path)
    # What the command leaves behind when npm has come to its end.
    modules.mkdir()
    subprocess.run(["sh", "-c", script.replace("npm ci", "true")], cwd=tmp_path, check=True)
    assert runner.missing_packages(tmp_path) == []
    lock.write_text("2")
    ((*_, script),) = runner.missing_packages(tmp_path)
    # npm that fails leaves no sign of success.
    assert subprocess.run(["sh", "-c", script.replace("npm ci", "false")], cwd=tmp_path, check=False).returncode
    assert runner.missing_packages(tmp_path)


def test_a_failed_test_is_not_counted_twice(finished: Any) -> None:
    job = finished("failed", "=== 1 failed, 9 passed, 1 error in 3.00s ===\n")
    assert job.counts == {"passed": 10, "failed": 2}


@pytest.mark.parametrize("status", ["failed", "timeout"])
@pytest.mark.parametrize("counts_itself", [True, False])
def test_an_end_without_tests_is_a_failure(finished: Any, status: str, counts_itself: bool) -> None:
    assert finished(status, "fatal: [debian13]: FAILED!\n", counts_itself).counts == {"failed": 1}


def test_what_did_not_run_counts_as_failed(
    runner: ModuleType, finished: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runner.Run()
    run.jobs = [finished("passed", ""), runner.Job("other", [["true"]], 1.0)]
    assert run.summary() == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 1 failed, 0 skipped"


def test_the_last_line_is_the_count(runner: ModuleType, finished: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = runner.Run()
    skips = "SKIPPED [1] a.py:1: why\nSKIPPED [2] a.py:5: why\nSKIPPED [1] b.py:1: because\n"
    run.jobs = [finished("passed", f"=== 4 passed, 4 skipped in 1.00s ===\n{skips}")]
    assert run.summary() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "5 passed, 0 failed, 4 skipped"
    assert {"  job: 3 x why", "  job: because"} <= set(lines)


def test_the_summary_says_what_failed(runner: ModuleType, finished: Any, capsys: pytest.CaptureFixture[str]) -> None:
    log = "TASK [nginx : Configuration] ****\nfatal: [debian12]: FAILED! => {}\nFAILED a.py::test_b - assert 1 == 2\n"
    log = "FAILED - RETRYING: [debian12]: It is ready (9 retries left).\n" + log
    log += "2026/11/27 23:01:14 [error] 71#71: *5 upstream prematurely closed connection\n"
    log += "2026/11/27 23:01:15 [notice] 71#71: signal process started\n"
    run = runner.Run()
    run.jobs = [finished("failed", f"{log}=== 1 failed in 1.00s ===\n")]
    assert run.summary() == 1
    told = capsys.readouterr().out.split("Not passed: ")[1].splitlines()
    assert told[1:5] == [
        "  job: [nginx : Configuration] fatal: [debian12]: FAILED! => {}",
        "  job: FAILED a.py::test_b - assert 1 == 2",
        "  job: 2026/11/27 23:01:14 [error] 71#71: *5 upstream prematurely closed connection",
        "",
    ]


def test_a_parked_scenario_is_skipped_with_its_reason(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "molecule/other").mkdir(parents=True)
    (tmp_path / "molecule/other/PARKED.md").write_text("Waits for its authority.\nMore of it.\n")
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    run = runner.Run()
    run.jobs = [runner.Job("job", [["true"]], 1.0), runner.Job("other", [["true"]], 1.0)]
    for job in run.jobs:
        job.park()
    run.jobs[0].status, run.jobs[0].counts["passed"] = "passed", 1
    assert run.summary() == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  other: Waits for its authority." in lines
    assert lines[-1] == "1 passed, 0 failed, 1 skipped"


def test_a_scenario_that_would_not_be_through_in_time_is_skipped_with_the_reason(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "LOGS", tmp_path)
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "guesses", lambda: {"slow": 1.0, "long": 40.0, "short": 2.0})
    monkeypatch.setenv("TEST_END_WITHIN", "1")
    run = runner.Run()
    check = runner.Job("check", [["true"]], 10.0, directory=tmp_path)
    slow = runner.Job("slow", [["sleep", "2"]], 10.0, directory=tmp_path, scenario=True)
    long = runner.Job("long", [["false"]], 10.0, directory=tmp_path, scenario=True)
    short = runner.Job("short", [["true"]], 10.0, directory=tmp_path, scenario=True)
    asyncio.run(run.perform_all([check, slow, long, short], runner.Places(1, 1)))
    # `slow` has taken twice its time: so will `long`, which is too much for this minute, and `short`, which is not.
    assert [job.status for job in (check, slow, long, short)] == ["passed", "passed", "skipped", "passed"]
    assert run.summary() == 0
    told = capsys.readouterr().out
    # How long exactly is a matter of the machine's pace: on a busy one the two seconds were three.
    reason = r"minutes, and the run has to end within 1:00 \(TEST_END_WITHIN\): tools/test long$"
    assert re.search(rf"^  long: would take \d+:\d\d {reason}", told, re.MULTILINE)


@pytest.mark.parametrize(("said", "status"), [("tests/test_one.py ..s.", "skipped"), ("..F.  [ 50%]", "timeout")])
def test_a_scenario_that_is_not_through_is_ended_and_skipped_unless_a_test_has_failed(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, status: str
) -> None:
    monkeypatch.setattr(runner, "LOGS", tmp_path)
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "guesses", lambda: {"one": 0.5})
    monkeypatch.setenv("TEST_END_WITHIN", str(1 / 60))
    run = runner.Run()
    command = ["sh", "-c", f"echo '{said}'; sleep 30"]
    one = runner.Job("one", [command], 20.0, directory=tmp_path, scenario=True, clean_up=["true"])
    check = runner.Job("check", [["true"]], 10.0, directory=tmp_path)
    asyncio.run(run.perform_all([check, one], runner.Places(1, 1)))
    assert one.status == status
    assert run.summary() == (status == "timeout")


def test_idle_processors_make_room_and_busy_ones_take_it_back(runner: ModuleType) -> None:
    places = runner.Places(3, 5)
    now = idle_ticks = 0

    def after(seconds: int, idle: float) -> int:
        """The number of places after so many seconds with such a share of two processors idle."""
        nonlocal now, idle_ticks
        for _ in range(0, seconds, 5):
            now, idle_ticks = now + 5, idle_ticks + round(1000 * idle)
            places.adapt(float(now), idle_ticks, now * 200)
        return int(places.number)

    assert after(15, 0.5) == 3, "too short to tell"
    assert after(10, 0.5) == 4
    assert after(15, 0.5) == 4, "what was before it changed does not count"
    assert after(10, 0.5) == 5
    assert after(60, 0.5) == 5, "no more than that"
    assert after(60, 0.05) == 5, "neither idle nor full"
    assert after(25, 0.0) == 4
    assert after(60, 0.0) == 3
    assert after(60, 0.0) == 3, "no less than that"


def test_room_depends_on_this_machines_processors(runner: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    idle, total = runner.processor_times()
    assert 0 < idle < total
    ticks = iter([(0, 0), (50, 100)])
    monkeypatch.setattr(runner, "processor_times", lambda: next(ticks))
    monkeypatch.setattr(runner, "MEASURED", 1e-9)
    places = runner.Places(3, 4)
    assert [places.free(3), places.free(3)] == [False, True]
    # Who says how many gets so many, whatever the processors do.
    assert not runner.Places(3, 3).free(3)


def test_no_more_run_side_by_side_than_there_is_room(runner: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    most, now = 0, 0

    async def perform(_run: Any, job: Any) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        job.status = "passed"

    monkeypatch.setattr(runner.Run, "perform", perform)
    jobs = [runner.Job(str(number), [["true"]], 10.0) for number in range(9)]
    asyncio.run(runner.Run().perform_all(jobs, runner.Places(3, 3)))
    assert (most, {job.status for job in jobs}) == (3, {"passed"})
