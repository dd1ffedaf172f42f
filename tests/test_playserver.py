"""A play by a process that has Ansible loaded is as one by ansible-playbook itself."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

SHARED = ROOT / "molecule/shared"
# In the home directory of the bench.
PLAY = ("ansible-playbook", "--inventory=localhost,", "--extra-vars=@/dev/stdin", "../play.yml")
INVENTORY = ("ansible-inventory", "--inventory=localhost,", "--list")
PLAYBOOK = """
- name: Tell
  hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - name: Surroundings are told
      ansible.builtin.debug:
        msg: "{{ lookup('env', 'WHO') }} in {{ lookup('pipe', 'umask') }} at {{ where | default('work') }}, {{ said }}"
    - name: Process is told
      ansible.builtin.debug:
        msg: "process {{ lookup('pipe', 'echo $PPID') }}"
      when: wait is defined
    - name: Host is asked
      ansible.builtin.command:
        argv: [sh, -c, "exit {{ code | default(0) }}"]
      changed_when: false
    - name: Time passes
      ansible.builtin.command:
        argv: [sleep, "120"]
      when: wait is defined
      changed_when: false
"""


def eventually(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + 60
    while not (answer := condition()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return answer


def lives(process: int) -> bool:
    """Tell whether a process runs; one that nobody has asked for its end does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parent(process: int) -> int:
    """Return the process that has made a process."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def without_times(played: tuple[int, str]) -> tuple[int, str]:
    """Leave out when a command began and ended."""
    return played[0], re.sub(r"'?\d+[-:]\S+'?( \S+)?", "", played[1])


def waits(caller: subprocess.Popen[str]) -> int:
    """Wait until a play waits; return its process."""
    assert caller.stdout is not None
    play, asked = 0, False
    for line in caller.stdout:
        if found := re.search(r"process (\d+)", line):
            play = int(found[1])
        asked = asked or "Host is asked" in line
        # The last that it prints before time passes.
        if asked and line.startswith("ok: "):
            return play
    raise AssertionError(caller.poll())


class Bench:
    """A directory for servers, a home, a playbook, and the ways to play it."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.servers, self.home = directory, directory / "servers", directory / "home"
        self.servers.mkdir()
        self.home.mkdir()
        (directory / "play.yml").write_text(PLAYBOOK)
        self.begun: list[subprocess.Popen[str]] = []

    def begin(
        self,
        *arguments: str,
        command: tuple[str, ...] = PLAY,
        said: str = "said: nothing",
        served: bool = True,
        directory: Path | None = None,
        umask: int = 0o22,
        **environment: str,
    ) -> subprocess.Popen[str]:
        """Start a play with these extra variables on its standard input, or another command."""
        (self.directory / "said.yml").write_text(said)
        environment = {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_DEPRECATION_WARNINGS": "false",
            "ANSIBLE_STRATEGY": "mitogen_linear",
            "ANSIBLE_STRATEGY_PLUGINS": str(SHARED / "strategy"),
            "HOME": str(self.home),
            "LC_ALL": "C.UTF-8",
            "NO_COLOR": "1",
            "PATH": f"{SHARED / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(SHARED),
            "PYTHONUNBUFFERED": "1",
            **({"TESTBED_PLAYSERVERS": str(self.servers)} if served else {}),
            **environment,
        }
        with (self.directory / "said.yml").open() as standard_input:
            process = subprocess.Popen(
                [*command, *arguments],
                env=environment,
                cwd=directory or self.home,
                umask=umask,
                stdin=standard_input,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.begun.append(process)
        return process

    def play(self, *arguments: str, **named: Any) -> tuple[int, str]:
        """Do what begin() does, to the end; return the exit code and the output."""
        process = self.begin(*arguments, **named)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def sockets(self) -> list[Path]:
        """Return the servers that there are."""
        return [path for path in self.servers.iterdir() if path.is_socket()]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("bench"))
    # Starts a server, which has its surroundings; whoever comes after has others.
    assert made.play(directory=made.servers, WHO="Bob")[0] == 0
    yield made
    for process in made.begun:
        process.kill()
        process.communicate()
    for path in made.sockets():
        path.unlink()


@pytest.mark.parametrize(
    ("arguments", "said", "told"),
    [
        # A file in the caller's directory, its standard input, its environment, its umask.
        (["--extra-vars=@here.yml"], "said: aloud", "Ann in 0027 at home, aloud"),
        (["--extra-vars=code=3"], "said: nothing", "The command exited with a non-zero return code."),
        (["--nonsense"], "said: nothing", "unrecognized arguments: --nonsense"),
    ],
)
def test_a_play_is_as_without_a_server(bench: Bench, arguments: list[str], said: str, told: str) -> None:
    (bench.home / "here.yml").write_text("where: home\n")
    own = bench.play(*arguments, said=said, served=False, umask=0o27, WHO="Ann")
    assert told in own[1]
    assert without_times(bench.play(*arguments, said=said, umask=0o27, WHO="Ann")) == without_times(own)
    assert len(bench.sockets()) == 1
    # What Ansible makes there for a process is removed at its end; the server has not ended.
    assert len(list((bench.home / ".ansible/tmp").iterdir())) == 1


def test_the_inventory_is_as_without_a_server(bench: Bench) -> None:
    answers = [bench.play(command=INVENTORY, served=served, ANSIBLE_SSH_CONTROL_PATH="/x") for served in (False, True)]
    assert answers[0] == answers[1]
    assert json.loads(answers[0][1])["ungrouped"]["hosts"] == ["localhost"]
    assert len(bench.sockets()) == 1


def test_other_settings_have_another_server(bench: Bench) -> None:
    before = set(bench.sockets())
    code, output = bench.play(ANSIBLE_DISPLAY_SKIPPED_HOSTS="true")
    assert code == 0
    assert "Time passes" in output
    (another,) = set(bench.sockets()) - before
    another.unlink()


def test_what_cannot_be_loaded_is_told_by_ansible(bench: Bench) -> None:
    code, output = bench.play(ANSIBLE_CONFIG=str(bench.directory / "play.yml"))
    own = bench.play(ANSIBLE_CONFIG=str(bench.directory / "play.yml"), served=False)
    assert (code, output) == own
    assert code != 0
    assert "ERROR" in output


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 99), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_the_end_of_the_caller_is_the_end_of_the_play(bench: Bench, how: signal.Signals, code: int) -> None:
    caller = bench.begin("--extra-vars=wait=true")
    play = waits(caller)
    caller.send_signal(how)
    assert caller.wait(timeout=60) == code
    assert eventually(lambda: not lives(play))
    # And the next one can be played.
    assert bench.play()[0] == 0


@pytest.mark.timeout(180)
def test_a_server_ends_when_its_socket_is_gone(bench: Bench) -> None:
    caller = bench.begin("--extra-vars=wait=true")
    play = waits(caller)
    (socket,) = bench.sockets()
    server = parent(play)
    assert str(socket) in Path(f"/proc/{server}/cmdline").read_text()
    socket.unlink()
    assert eventually(lambda: not lives(server))
    assert not lives(play)
    assert caller.wait(timeout=60) != 0


@pytest.mark.timeout(180)
def test_a_server_that_breaks_down_says_why(bench: Bench) -> None:
    caller = bench.begin("--extra-vars=wait=true")
    play = waits(caller)
    (socket,) = bench.sockets()
    server = parent(play)
    socket.with_suffix(".log").write_text("This is why.\n")
    os.kill(server, signal.SIGKILL)
    assert caller.wait(timeout=60) == 1
    os.killpg(play, signal.SIGKILL)
    output, _ = caller.communicate(timeout=60)
    assert output.endswith("has ended before this play; it said:\nThis is why.\n\n")
    # Its socket does not answer: what comes is played without it.
    assert bench.play()[0] == 0
