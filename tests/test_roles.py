"""Every role has the shape that CONTRIBUTING.md describes, and its contract is what its code does."""

from __future__ import annotations

import subprocess
import sys

import pytest
from repository import ROLES, ROOT, SHARED_VARIABLES, defaults, load, names_used, options, role_files, shown, tasks

# Roles without a scenario of their own, and the one that tests them as well.
TESTED_WITH = {"loki": "grafana"}

pytestmark = pytest.mark.parametrize("role", ROLES)


@pytest.mark.parametrize(
    "name", ["README.md", "defaults/main.yml", "meta/argument_specs.yml", "meta/main.yml", "tasks/main.yml"]
)
def test_role_has_file(role: str, name: str) -> None:
    assert (ROOT / "roles" / role / name).is_file()


def test_spec_names_the_defaults_and_the_required_variables(role: str) -> None:
    required = {name for name, option in options(role).items() if option.get("required")}
    # A variable that may stay undefined (in words: "optional") has neither.
    optional = {name for name, option in options(role).items() if "default" not in option} - required
    assert not required & set(defaults(role)), "required, and yet a default"
    assert set(options(role)) - required - optional == set(defaults(role)) - optional


def test_spec_has_the_default_that_defaults_has(role: str) -> None:
    written = {name: option["default"] for name, option in options(role).items() if "default" in option}
    assert {name: defaults(role).get(name) for name in written} == written


def test_spec_describes_and_types_every_option(role: str) -> None:
    def incomplete(fields: dict[str, dict[str, object]], prefix: str = "") -> list[str]:
        found = [
            prefix + name for name, field in fields.items() if not (field.get("description") and field.get("type"))
        ]
        for name, field in fields.items():
            nested = field.get("options")
            if isinstance(nested, dict):
                found += incomplete(nested, f"{prefix}{name}.")
        return found

    assert incomplete(options(role)) == []


def test_every_default_has_a_comment(role: str) -> None:
    bare = []
    commented = False
    for line in (ROOT / "roles" / role / "defaults/main.yml").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            commented = True
        elif not line.strip():
            # A comment speaks for the lines right below it, up to the next empty one.
            commented = False
        elif line[0].isalpha() and not commented:
            bare.append(line.partition(":")[0])
    assert bare == []


def test_required_variables_are_named_in_defaults(role: str) -> None:
    text = (ROOT / "roles" / role / "defaults/main.yml").read_text(encoding="utf-8")
    required = [name for name, option in options(role).items() if option.get("required")]
    assert [name for name in required if name not in text] == []


def test_variables_start_with_the_roles_name(role: str) -> None:
    wrong = [name for name in defaults(role) if not name.startswith(f"{role}_")]
    for path in role_files(role, "vars"):
        wrong += [name for name in load(path) if not name.startswith(f"_{role}_")]
    for path, node in tasks(role):
        registered = node.get("register")
        if isinstance(registered, str) and not registered.startswith(f"__{role}_"):
            wrong.append(f"{shown(path)}: register {registered}")
        for name in node.get("ansible.builtin.set_fact") or {}:
            # Facts about the connection (ansible_port, ansible_user) are Ansible's own.
            if name != "cacheable" and not name.startswith((f"_{role}_", f"__{role}_", "ansible_")):
                wrong.append(f"{shown(path)}: set_fact {name}")
    assert wrong == []


def test_role_reads_no_variable_of_another_role(role: str) -> None:
    shared = set(load(SHARED_VARIABLES))
    foreign = {name: other for other in ROLES if other != role for name in options(other) if name not in shared}
    found = [
        f"{shown(path)}: {name} belongs to {foreign[name]}"
        for path, names in names_used(role).items()
        for name in sorted(names & set(foreign))
    ]
    assert found == []


def test_shared_variables_exist(role: str) -> None:
    known = set(load(SHARED_VARIABLES)) | (set(options(role)) if role == "chatbot" else set())
    found = [
        f"{shown(path)}: {name}"
        for path, names in names_used(role).items()
        for name in sorted(names)
        if name.startswith("chatbot_") and name not in known
    ]
    assert found == []


def test_no_task_ignores_errors(role: str) -> None:
    found = [
        f"{shown(path)}: {node.get('name')}"
        for path, node in tasks(role)
        if {"ignore_errors", "ignore_unreachable"} & set(node)
    ]
    assert found == []


def test_role_has_a_scenario_with_tests(role: str) -> None:
    scenario = ROOT / "molecule" / TESTED_WITH.get(role, role)
    assert (scenario / "molecule.yml").is_file()
    assert (scenario / "converge.yml").is_file()
    assert list(scenario.glob("tests/test_*.py"))
    if role in TESTED_WITH:
        assert f"role: {role}\n" in (scenario / "converge.yml").read_text()
        assert (scenario / f"tests/test_{role}.py").is_file()


def test_table_in_the_readme_is_current(role: str) -> None:
    done = subprocess.run(
        [sys.executable, "tools/role-docs", "--check", role], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
