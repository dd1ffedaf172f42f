"""The host, its users, and releases to give it: good ones, and some that must not pass."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from crowd import Crowd
from testbed import helpers
from testbed.said import pytest_runtest_makereport  # noqa: F401 - a hook
from testbed.verify import (
    REPOSITORY,
    Played,
    command_of,
    eventually,
    operators_environment,
    play,
    scenarios_environment,
)

SETTINGS = REPOSITORY / "molecule/update/vars/update.yml"
# The scenario's settings, and all of its hosts: those of the scenario `cluster` make one site.
EXTRA = [f"--extra-vars=@{SETTINGS}", "--limit=all"]
# Lines at the end of chatbot/wsgi.py, which every worker reads as its last.
CHANGES = {
    "crashing": "raise RuntimeError('this release does not start')",
    "unready": "app.view_functions['health.ready'] = lambda: ({'status': 'never'}, 503)",
    "mute": """
from chatbot.model import Model, ModelError
def _mute(*_arguments, **_named):
    raise ModelError(503, "this release cannot chat")
Model.answer = _mute
""",
    # Quick for the gate, which asks the application directly; slow for whoever comes through nginx.
    "slow": """
import time
from chatbot.model import Model
_answer, _serve, _users = Model.answer, app.wsgi_app, []
def _slow(*arguments, **named):
    time.sleep(4 if _users else 0)
    return _answer(*arguments, **named)
def _notice(environ, start_response):
    if "HTTP_X_FORWARDED_FOR" in environ:
        _users[:] = [True]
    return _serve(environ, start_response)
Model.answer, app.wsgi_app = _slow, _notice
""",
}


def _no_part_of_the_image(directory: str, names: list[str]) -> set[str]:
    """Leave out what .dockerignore leaves out as well and is large."""
    above = {"web", "tests"} if directory == str(REPOSITORY / "app") else set()
    return {name for name in names if name in above or name.endswith(("__pycache__", "_cache"))}


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function: directory with the application and one change, which makes it another release."""

    def make(name: str) -> str:
        directory = tmp_path_factory.mktemp(name) / "app"
        shutil.copytree(REPOSITORY / "app", directory, ignore=_no_part_of_the_image)
        with (directory / "chatbot/wsgi.py").open("a") as file:
            file.write(f"\n{CHANGES.get(name, '# Release ' + name)}\n")
        return str(directory)

    return make


@pytest.fixture(scope="module")
def variables(host: Any) -> dict[str, Any]:
    found: dict[str, Any] = host.ansible.get_variables()
    return found


@pytest.fixture(scope="module")
def operator(host: Any) -> Any:
    """Run one of the operator's playbooks, with this scenario's settings."""

    def run(name: str, *arguments: str, **extra: Any) -> Played:
        return play(host, f"playbooks/{name}.yml", *EXTRA, *arguments, **extra)

    return run


class Running:
    """A playbook that is under way."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        # Without it a task's name is printed only when its first result is there, which is too late to interrupt it.
        environment = environment | {"ANSIBLE_DISPLAY_SKIPPED_HOSTS": "true"}
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def reaches(self, task: str, after: str = "") -> None:
        """Wait until a task has begun; with `after`, until it has begun after that one."""

        def begun() -> bool:
            output = self.log.read_text()
            assert self.process.poll() is None, output[-2000:]
            _, found, since = output.rpartition(f": {after}]") if after else ("", "begin", output)
            return bool(found) and f": {task}]" in since

        eventually(begun, seconds=600)

    def ends(self, how: signal.Signals) -> str:
        """Send it a signal, as the terminal does for Ctrl-C, and return what it printed when it has ended."""
        self.process.send_signal(how)
        self.process.wait(timeout=600)
        time.sleep(1)
        return self.log.read_text()


@pytest.fixture
def begin(host: Any, tmp_path: Path) -> Any:
    """Begin one of the operator's playbooks.

    The test interrupts it, and so it has Ansible's own strategy, whose connections end as an operator's do; one that
    it only watches has the scenario's.
    """
    begun: list[Running] = []

    def start(name: str, *arguments: str, interrupted: bool = True) -> Running:
        command = command_of(host, f"playbooks/{name}.yml", *EXTRA, *arguments)
        environment = operators_environment() if interrupted else scenarios_environment()
        begun.append(Running(command, tmp_path / f"{len(begun)}.log", environment))
        return begun[-1]

    yield start
    for running in begun:
        if running.process.poll() is None:
            running.process.kill()


@pytest.fixture(scope="module")
def crowd(variables: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Users who are there all the time; at the end the table of what they saw."""
    authority = tmp_path_factory.mktemp("authority") / "root.pem"
    authority.write_text(helpers.issuing_root())
    account = (variables["chatbot_contact_email"], variables["chatbot_admin_password"])
    users = Crowd(variables["chatbot_domain"], variables["ansible_host"], authority, account)
    users.start()
    yield users
    users.stop()
    print(f"\n{users.table()}")
    directory = REPOSITORY / ".cache/logs"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{SETTINGS.stem}-table.txt").write_text("\n".join([users.table(), *users.failures, ""]))
