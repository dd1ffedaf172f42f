"""What a release needs of the process that runs it: a name for its lock, order after Ctrl-C, and a last line.

Ansible runs neither `rescue` nor `always` after Ctrl-C. So this plugin, which lives in ansible-playbook's own
process, watches for the facts that roles/chatbot sets (`_chatbot_lock_held`, `_chatbot_outcome`). When the process ends
while a lock is held, it runs playbooks/abort.yml with the same inventory: back to the old release, lock given back.
What even that cannot reach (SIGKILL, no network) is put right by the next run.

A restore needs order, too: while roles/backup's `_backup_under_way` holds, it is playbooks/restore_abort.yml that is
run, also after a host was lost on the way: the restore is ended, and the maintenance page goes.
"""

from __future__ import annotations

import atexit
import getpass
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from ansible import context  # type: ignore[import-untyped]
from ansible.plugins.callback import CallbackBase  # type: ignore[import-untyped]

DOCUMENTATION = """
    name: chatbot_release
    type: notification
    short_description: Names the owner of a release's lock, tidies up after Ctrl-C, says how a release ended
    description:
      - Does nothing in runs that have no release and no restore in them.
"""

REPOSITORY = Path(__file__).resolve().parent.parent
# The name of this run, for the role: JSON with token, who, node, pid, started.
NAME = "CHATBOT_RUN"
# Options of ansible-playbook that lead to the same hosts with the same rights and variables.
OPTIONS = {
    "inventory": "--inventory",
    "extra_vars": "--extra-vars",
    "subset": "--limit",
    "vault_ids": "--vault-id",
    "vault_password_files": "--vault-password-file",
    "private_key_file": "--private-key",
    "remote_user": "--user",
    "connection": "--connection",
    "ssh_common_args": "--ssh-common-args",
    "ssh_extra_args": "--ssh-extra-args",
    "become_method": "--become-method",
    "become_user": "--become-user",
}
FLAGS = {"ask_pass": "--ask-pass", "become_ask_pass": "--ask-become-pass", "become": "--become"}


def lock_program() -> ModuleType:
    """Return the role's program for locks as a module: it knows what tells processes of two control nodes apart."""
    module = ModuleType("release_lock")
    file = REPOSITORY / "roles/chatbot/files/release_lock.py"
    exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), module.__dict__)  # noqa: S102 - our own file
    return module


def owner() -> dict[str, Any]:
    """Name this process so that a later run can tell whether it still lives."""
    program, pid = lock_program(), os.getpid()
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    name = {"who": f"{user}@{os.uname().nodename}", "node": program.node(), "pid": pid, "started": program.started(pid)}
    token = hashlib.sha256(json.dumps(name, sort_keys=True).encode()).hexdigest()[:16]
    return name | {"token": token}


def same_hosts() -> list[str]:
    """Return the options of this run that its tidying up needs as well."""
    given: list[str] = []
    for key, option in OPTIONS.items():
        value = context.CLIARGS.get(key)
        for one in value if isinstance(value, list | tuple) else [value]:
            if one:
                given += [f"{option}={one}"]
    return given + [flag for key, flag in FLAGS.items() if context.CLIARGS.get(key)]


class CallbackModule(CallbackBase):  # type: ignore[misc]  # Ansible has no type information
    """Remembers which hosts this run holds a lock on and which release serves on them."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "chatbot_release"

    def __init__(self) -> None:
        """Name the run. Tidying up passes the name on: it acts for the run that it belongs to."""
        super().__init__()
        os.environ.setdefault(NAME, json.dumps(owner()))
        self._process = os.getpid()
        self._locked: set[str] = set()
        self._restoring: set[str] = set()
        self._outcomes: dict[str, dict[str, str]] = {}
        self._unreachable: set[str] = set()
        atexit.register(self._tidy_up)

    def v2_playbook_on_play_start(self, _play: Any) -> None:
        """SIGTERM ends like Ctrl-C; Ansible's own handler would end the process without a word."""
        handler = signal.getsignal(signal.SIGTERM)

        def terminate(number: int, frame: FrameType | None) -> None:
            if not self._locked and not self._restoring and callable(handler):
                handler(number, frame)
            else:
                os.kill(os.getpid(), signal.SIGINT)

        if getattr(handler, "__name__", "") != terminate.__name__:
            signal.signal(signal.SIGTERM, terminate)

    def v2_runner_on_ok(self, result: Any) -> None:
        """Take note of the roles' facts."""
        facts = result.result.get("ansible_facts") or {}
        host = result.host.get_name()
        if "_chatbot_lock_held" in facts:
            (self._locked.add if facts["_chatbot_lock_held"] else self._locked.discard)(host)
        if "_backup_under_way" in facts:
            (self._restoring.add if facts["_backup_under_way"] else self._restoring.discard)(host)
        if "_chatbot_outcome" in facts:
            self._outcomes[host] = facts["_chatbot_outcome"]

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Take note of a host that is lost: it cannot say what serves on it."""
        self._unreachable.add(result.host.get_name())

    def v2_playbook_on_stats(self, _stats: Any) -> None:
        """Say how the release ended, below everything else. A lock that is still held is on a host that is lost."""
        self._locked.clear()
        for line in self.last_lines():
            self._display.display(line)

    def last_lines(self) -> list[str]:
        """Return one sentence for each site: every host on the old release, or every host on the new one."""
        sites: dict[str, dict[str, dict[str, str]]] = {}
        for host, outcome in self._outcomes.items():
            sites.setdefault(outcome["site"], {})[host] = outcome
        alone = len(sites) == 1
        return [self._line(outcomes, "" if alone else f" at {site}") for site, outcomes in sorted(sites.items())]

    def _line(self, outcomes: dict[str, dict[str, str]], where: str) -> str:
        known = {host: one for host, one in outcomes.items() if host not in self._unreachable}
        lost = sorted(self._unreachable & set(outcomes))
        ends = {(one["state"], one["release"]) for one in known.values()}
        hosts = f"{len(known)} of {len(outcomes)} app host{'s' * (len(outcomes) != 1)}"
        tried = next((one["tried"] for one in outcomes.values() if one.get("tried")), "")
        if not ends:
            text = f"RELEASE UNKNOWN{where}."
        elif len(ends) > 1:
            serving = ", ".join(f"{host} {one['release']}" for host, one in sorted(known.items()))
            text = f"RELEASE MIXED{where}: {serving}."
        else:
            state, release = ends.pop()
            text = {
                "new": f"RELEASE ALL NEW{where}: {release} serves on {hosts}.",
                "same": f"RELEASE UNCHANGED{where}: {release} serves on {hosts}.",
                "old": f"RELEASE ALL OLD{where}: {release or 'no release'} serves on {hosts}; {tried} does not.",
            }[state]
        if lost:
            text += f" Not reached any more: {', '.join(lost)}; the next run puts that right."
        return text

    def _tidy_up(self) -> None:
        """Give back what this process holds when it ends in the middle: after Ctrl-C or an error of Ansible's."""
        if os.getpid() != self._process:
            return
        if self._locked:
            self._settle("the old release is put back in order, and the lock given back", "abort.yml")
        if self._restoring:
            self._settle("the restore is ended, and the maintenance page goes", "restore_abort.yml")

    def _settle(self, words: str, playbook: str) -> None:
        """Run the playbook that puts an interrupted run in order."""
        print(f"\nInterrupted: {words}. Please wait.", flush=True)
        program = str(Path(sys.argv[0]).with_name("ansible-playbook"))
        command = [sys.executable, program, *same_hosts(), str(REPOSITORY / "playbooks" / playbook)]
        # A session of its own: a second Ctrl-C ends the waiting here, not the work. The three streams are named because
        # Ansible has marked them as not to be inherited.
        done = subprocess.run(
            command, start_new_session=True, check=False, stdin=sys.stdin, stdout=sys.stdout, stderr=sys.stderr
        )
        if done.returncode:
            print(f"That failed. Once the host can be reached: ansible-playbook playbooks/{playbook}", flush=True)
