"""What the tests of several scenarios share: waiting, running a playbook as the operator does, ports that stay shut."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
SHARED = REPOSITORY / "molecule/shared"
PROGRAMS = Path(sys.executable).parent
# Of the run of Molecule that a test is a part of.
_STRATEGY = {name: os.environ[name] for name in ("ANSIBLE_STRATEGY", "ANSIBLE_STRATEGY_PLUGINS") if name in os.environ}
# Set by scenarios whose tests play so much that it counts, and nothing of it is about connections.
_PLAYS_LIKE_MOLECULE = "TESTBED_PLAYS_LIKE_MOLECULE" in os.environ


class Played(NamedTuple):
    """How a playbook ended: its exit code and everything that it printed."""

    code: int
    output: str

    @property
    def words(self) -> str:
        """The output on one line, for messages that Ansible wraps where it likes."""
        return " ".join(self.output.split())


def command_of(host: Any, playbook: Path | str, *arguments: str, **variables: Any) -> list[str]:
    """Return the command that runs a playbook against the host under test; see play()."""
    known = host.ansible.get_variables()
    return [
        "ansible-playbook",
        f"--inventory={known['testbed_directory']}/hosts.yml",
        f"--limit={known['inventory_hostname']}",
        f"--extra-vars={json.dumps(variables)}",
        *arguments,
        str(REPOSITORY / playbook),
    ]


def play(host: Any, playbook: Path | str, *arguments: str, **variables: Any) -> Played:
    """Run a playbook against the host under test, from the control node and over SSH.

    With Ansible's own strategy, as an operator does; with Mitogen's, as Molecule runs the roles, in scenarios whose
    molecule.yml sets TESTBED_PLAYS_LIKE_MOLECULE: that takes a third less of processor time.

    Args:
        host: testinfra's host.
        playbook: path, absolute or from the repository's root.
        arguments: further arguments of ansible-playbook.
        variables: extra variables, of any type that JSON has.
    """
    return run_as_scenario(command_of(host, playbook, *arguments, **variables))


def run_as_scenario(command: list[str], limit: float = 900) -> Played:
    """Run a command that plays, for at most `limit` seconds, with the strategy that play() would take."""
    return _run(command, scenarios_environment(), limit)


def run_as_operator(command: list[str], limit: float = 900) -> Played:
    """Run a command in the repository as after `source .venv/bin/activate`, for at most `limit` seconds."""
    return _run(command, operators_environment(), limit)


def scenarios_environment() -> dict[str, str]:
    """Return the operator's environment, and with it the strategy that play() would take."""
    environment = operators_environment()
    if _PLAYS_LIKE_MOLECULE:
        environment |= _STRATEGY
        environment["PATH"] = f"{SHARED}/bin:{environment['PATH']}"
    return environment


def operators_environment() -> dict[str, str]:
    """Return the environment of somebody who has activated the virtual environment, without Molecule's settings."""
    environment = os.environ | {
        "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
    }
    for name in ("ANSIBLE_FORCE_COLOR", *_STRATEGY):
        environment.pop(name, None)
    return environment


def _run(command: list[str], environment: dict[str, str], limit: float) -> Played:
    # Into a file: ssh's shared connection outlives the playbook and would keep a pipe open.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=limit,
            check=False,
        )
        output.seek(0)
        return Played(done.returncode, output.read())


def eventually[Answer](condition: Callable[[], Answer], seconds: float = 60) -> Answer:
    """Return the first true answer of a condition.

    Raises:
        AssertionError: when there is none within the given seconds; the last answer is in the message.
    """
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, f"after {seconds} s still: {answer!r}"
        time.sleep(0.5)
    return answer


def sql_on(host: Any, statement: str, database: str = "chatbot") -> str:
    """Run SQL on the host's PostgreSQL as its administrator; return the rows, columns between `|`."""
    return str(host.check_output("cd / && runuser -u postgres -- psql -XAtq -d %s -c %s", database, statement))


def refuses(host: Any, port: int) -> bool:
    """Tell whether the host refuses connections to a TCP port that come from another machine."""
    try:
        with socket.create_connection((host.ansible.get_variables()["ansible_host"], port), timeout=5):
            return False
    except ConnectionRefusedError:
        return True


def skip_unless_installed(host: Any, program: str) -> None:
    """Skip a test of a program from Grafana's package repository on hosts that could not fetch it."""
    if not host.file(program).exists:
        pytest.skip(f"Grafana's package repository cannot be reached from the test host, so it has no {program}")


def assert_untouched(host: Any, program: str, *paths: str) -> None:
    """Skip where the program is installed; elsewhere nothing of its role may be on the host."""
    if host.file(program).exists:
        pytest.skip(f"Grafana's package repository can be reached: {program} is installed")
    for path in paths:
        assert not host.file(path).exists, path
