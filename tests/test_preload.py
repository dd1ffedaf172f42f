"""callback_plugins/preload.py: tasks find loaded what each would load for itself; one's own plugins are found, too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

# Runs in a task's process, and tells what there is before the task has used anything.
ACTION = """
import gc, sys
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        loaded = [kind for kind in ("filter", "test")
                  if any(name.startswith(f"ansible.plugins.{kind}.core") for name in sys.modules)]
        return {"loaded": loaded, "frozen": gc.get_freeze_count()}
"""
FILTER = """
class FilterModule:
    def filters(self):
        return {"NAME": lambda value: value + "NAME"}
"""
PLAYBOOK = """
- hosts: localhost
  gather_facts: false
  tasks:
    - loaded:
      register: first
- hosts: localhost
  gather_facts: false
  roles: [one]
  tasks:
    - ansible.builtin.copy:
        dest: "{{ playbook_dir }}/told.json"
        content: "{{ ANSWER | combine({'mine': 'a' | beside | of_role}) | to_json }}"
"""


@pytest.mark.parametrize("answer", ["first", "second"])  # of which play
def test_tasks_find_filters_and_tests_loaded(tmp_path: Path, answer: str) -> None:
    files = {
        "action_plugins/loaded.py": ACTION,
        "filter_plugins/beside.py": FILTER.replace("NAME", "beside"),
        "roles/one/filter_plugins/of_role.py": FILTER.replace("NAME", "of_role"),
        "roles/one/tasks/main.yml": "- loaded:\n  register: second\n",
        "play.yml": PLAYBOOK.replace("ANSWER", answer),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", "localhost,", "-c", "local", tmp_path / "play.yml"],
        env=os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_ROLES_PATH": str(tmp_path / "roles")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["loaded"] == ["filter", "test"]
    assert told["frozen"] > 0
    # Plugins beside the playbook and in a role are found, though the others were loaded before.
    assert told["mine"] == "abesideof_role"
