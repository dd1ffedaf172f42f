"""The playbooks are sound before they meet a host."""

from __future__ import annotations

import os
import subprocess

from repository import PLAYBOOKS, PROGRAMS, ROLES, ROOT, load, walk


def test_syntax() -> None:
    """All in one start; what is wrong names its file."""
    done = subprocess.run(
        [
            PROGRAMS / "ansible-playbook", "--syntax-check", "-i", "inventories/single",
            *(f"playbooks/{name}" for name in PLAYBOOKS),
        ],
        cwd=ROOT,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "[DEPRECATION WARNING]" not in done.stderr


def test_site_applies_every_role() -> None:
    applied = set()
    for node in walk([load(ROOT / "playbooks" / name) for name in PLAYBOOKS]):
        for role in node.get("roles") or []:
            applied.add(role if isinstance(role, str) else role.get("role"))
        for module in ("ansible.builtin.include_role", "ansible.builtin.import_role"):
            applied.add((node.get(module) or {}).get("name"))
    for role in ROLES:
        meta = load(ROOT / "roles" / role / "meta/main.yml")
        applied |= {item if isinstance(item, str) else item["role"] for item in meta.get("dependencies") or []}
        for path in (ROOT / "roles" / role / "tasks").glob("*.yml"):
            for node in walk(load(path)):
                for module in ("ansible.builtin.include_role", "ansible.builtin.import_role"):
                    applied.add((node.get(module) or {}).get("name"))
    assert set(ROLES) - applied == set()
