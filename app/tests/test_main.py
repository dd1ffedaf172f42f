import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from chatbot.__main__ import main
from support import APP, environment


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def command(*arguments: str, **variables: str) -> tuple[int, str, str]:
        for key, value in variables.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setattr("sys.argv", ["chatbot", *arguments])
        monkeypatch.setattr("logging.config.dictConfig", lambda _: None)
        status = main()
        return status, *capsys.readouterr()

    return command


def test_settings_are_shown_without_secrets(run) -> None:  # type: ignore[no-untyped-def]
    status, out, _ = run("settings", **environment("http://m/v1", "postgresql://u:hunter2@/d"))
    assert status == 0
    assert "hunter2" not in out
    assert json.loads(out)["model_name"] == "test-model"


def test_a_wrong_setting_is_one_line(run) -> None:  # type: ignore[no-untyped-def]
    status, _, err = run("migrate", CHATBOT_TYPO="1")
    assert (status, err.count("\n")) == (1, 1)
    assert "CHATBOT_TYPO is not a setting" in err


def test_migrate_says_what_it_did(run, database_url: str) -> None:  # type: ignore[no-untyped-def]
    variables = environment("http://m/v1", database_url)
    assert run("migrate", **variables)[1].startswith("schema: upgraded from nothing to ")
    assert run("migrate", **variables)[1].startswith("schema: already at ")


def test_an_unreachable_database_is_one_line(run) -> None:  # type: ignore[no-untyped-def]
    status, _, err = run("migrate", **environment("http://m/v1", "postgresql://chatbot:hunter2@/x?host=/nonexistent"))
    assert (status, err.count("\n")) == (1, 1)
    assert "the database was not changed" in err
    assert "hunter2" not in err


def test_commands_leave_no_metrics_behind(tmp_path: Path) -> None:
    """They may run in a container beside the server, whose directory this is."""
    variables = environment("http://m/v1", f"sqlite:///{tmp_path}/test.db") | {
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")
    }
    for command in (["migrate"], ["account", "list"]):
        subprocess.run([sys.executable, "-m", "chatbot", *command], cwd=APP, env=os.environ | variables, check=True)
    assert not (tmp_path / "metrics").exists()
