"""What the repository depends on is named once, pinned, and the same everywhere."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path

from repository import PROGRAMS, ROOT, load, shown, text_of, tracked

# Where modules, filters and plug-ins of collections are named.
ANSIBLE_FILES = re.compile(r"(roles|playbooks|molecule|inventories)/.*\.(yml|j2)|ansible\.cfg")

# The network's furniture has its place in locks and variables; a host name in code ties everybody to one of them.
REGISTRIES = re.compile(
    r"\b(pypi\.org|files\.pythonhosted\.org|registry\.npmjs\.org|registry-1\.docker\.io|index\.docker\.io|docker\.io/"
    r"|ghcr\.io|quay\.io|galaxy\.ansible\.com|(deb|security|ftp|archive)\.(debian|ubuntu)\.(org|com))"
)
# Paths that only one machine has.
MACHINES = re.compile(r"(?<![\w.])/(work/main|work/shared|root/\.pyenv|opt/(pypi|wheels))\b|file:///opt/")
LOCKS = {"uv.lock", "package-lock.json"}


def collections() -> dict[str, str]:
    """Return the collections that the ansible package carries, with their versions."""
    spec = importlib.util.find_spec("ansible_collections")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    found = {}
    for place in spec.submodule_search_locations:
        for manifest in Path(place).glob("*/*/MANIFEST.json"):
            info = json.loads(manifest.read_text(encoding="utf-8"))["collection_info"]
            found[f"{info['namespace']}.{info['name']}"] = info["version"]
    return found


def listed() -> dict[str, str]:
    """Return the collections in requirements.yml with their versions."""
    return {item["name"]: item["version"] for item in load(ROOT / "requirements.yml")["collections"]}


def test_collections_have_the_versions_of_the_ansible_package() -> None:
    installed = collections()
    assert listed() == {name: installed.get(name) for name in listed()}


def test_collections_in_use_are_listed_and_no_others() -> None:
    words = re.compile(r"(?<![\w.])(\w+\.\w+)\.\w+")
    used: dict[str, str] = {}
    installed = collections()
    for path in tracked():
        if ANSIBLE_FILES.fullmatch(shown(path)):
            used |= {name: shown(path) for name in words.findall(text_of(path)) if name in installed}
    assert set(used) == set(listed()), f"in use: {used}"


def test_lock_is_current() -> None:
    done = subprocess.run(
        [PROGRAMS / "uv", "lock", "--check", "--offline", "--quiet"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"run `uv lock`: {done.stderr}"


def test_requirements_of_the_image_are_those_of_the_lock() -> None:
    committed = (ROOT / "app/requirements.txt").read_text(encoding="utf-8")
    command = re.search(r"^#    (uv export .*) -o requirements\.txt$", committed, re.MULTILINE)
    assert command, "the second line is the command that wrote the file"
    exported = subprocess.run(
        [PROGRAMS / "uv", *command[1].split()[1:], "--offline", "--quiet"],
        cwd=ROOT / "app",
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    def packages(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.lstrip().startswith("#")]

    assert packages(committed) == packages(exported), f"run in app/: {command[1]} -o requirements.txt"


def test_nothing_names_a_registry_or_a_machine() -> None:
    found = []
    for path in tracked():
        if path.name in LOCKS or path == Path(__file__):
            continue
        for number, line in enumerate(text_of(path).splitlines(), 1):
            if REGISTRIES.search(line) or MACHINES.search(line):
                found.append(f"{shown(path)}:{number}: {line.strip()[:100]}")
    assert found == []
