"""What the checks of the repository share: where things are, and Ansible's YAML read without Ansible."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / ".venv/bin"
SHARED_VARIABLES = ROOT / "inventories/single/group_vars/all/main.yml"
ROLES = sorted(path.parent.parent.name for path in ROOT.glob("roles/*/tasks/main.yml"))
PLAYBOOKS = sorted(path.name for path in ROOT.glob("playbooks/*.yml"))

JINJA = re.compile(r"{{(.*?)}}|{%(.*?)%}", re.DOTALL)
JINJA_COMMENT = re.compile(r"{#.*?#}", re.DOTALL)
QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
# A name that stands alone: no attribute, no part of a longer word.
NAME = re.compile(r"(?<![\w.])[a-zA-Z_]\w*")
# Keys whose values are expressions without braces.
EXPRESSIONS = {"when", "that", "until", "changed_when", "failed_when", "var"}


class Loader(yaml.SafeLoader):
    """Reads Ansible's YAML: its tags (!vault, !unsafe) carry no meaning here."""


Loader.add_multi_constructor("!", lambda loader, _suffix, node: loader.construct_scalar(node))


@cache
def load(path: Path) -> Any:
    """Return the content of a YAML file, or an empty mapping where there is none."""
    if not path.exists():
        return {}
    return yaml.load(path.read_text(encoding="utf-8"), Loader) or {}  # noqa: S506 - a SafeLoader


@cache
def tracked() -> tuple[Path, ...]:
    """Return the repository's files, also those git does not know yet, without ignored ones."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return tuple(path for name in sorted(listed.stdout.split("\0")) if name and (path := ROOT / name).is_file())


@cache
def text_of(path: Path) -> str:
    """Return a file's text, or nothing where it is no text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def shown(path: Path) -> str:
    """Return the path as a reader at the root would type it."""
    return str(path.relative_to(ROOT))


def defaults(role: str) -> dict[str, Any]:
    """Return a role's default variables."""
    return dict(load(ROOT / "roles" / role / "defaults/main.yml"))


def options(role: str) -> dict[str, dict[str, Any]]:
    """Return the options of a role's main entry point."""
    spec = load(ROOT / "roles" / role / "meta/argument_specs.yml")
    return dict(spec.get("argument_specs", {}).get("main", {}).get("options", {}))


def role_files(role: str, *folders: str) -> Iterator[Path]:
    """Yield the files in some folders of a role."""
    for folder in folders:
        yield from sorted(path for path in (ROOT / "roles" / role / folder).rglob("*") if path.is_file())


def walk(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping in a YAML document, at whatever depth."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)


def tasks(role: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield every mapping of a role's tasks and handlers: tasks, blocks and the arguments of modules."""
    for path in role_files(role, "tasks", "handlers"):
        for node in walk(load(path)):
            yield path, node


def names_in(expression: str) -> set[str]:
    """Return the names that a Jinja expression may look up."""
    return set(NAME.findall(QUOTED.sub("''", expression)))


def names_in_templates(text: str) -> set[str]:
    """Return the names in all Jinja expressions of a text."""
    found = JINJA.finditer(JINJA_COMMENT.sub("", text))
    return set().union(*(names_in(match[1] or match[2] or "") for match in found))


def names_in_yaml(node: Any, expression: bool = False) -> set[str]:
    """Return the names in all expressions of a YAML document, also those that Ansible takes without braces."""
    if isinstance(node, dict):
        parts = [names_in_yaml(value, key in EXPRESSIONS) for key, value in node.items()]
    elif isinstance(node, list):
        parts = [names_in_yaml(value, expression) for value in node]
    elif isinstance(node, str):
        parts = [names_in(node) if expression and "{{" not in node else names_in_templates(node)]
    else:
        parts = []
    return set().union(*parts)


def names_used(role: str) -> dict[Path, set[str]]:
    """Return, for each of a role's files, the variables that it may read."""
    used = {}
    for path in role_files(role, "defaults", "vars", "tasks", "handlers"):
        used[path] = names_in_yaml(load(path))
    for path in role_files(role, "templates"):
        used[path] = names_in_templates(text_of(path))
    return used


def program(file: Path) -> ModuleType:
    """Return a program of the repository as a module, to test its functions."""
    module = ModuleType(file.stem)
    sys.modules[file.stem] = module  # dataclasses look themselves up there
    exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), module.__dict__)  # noqa: S102 - our own file
    return module
