"""What test hosts keep of apt's lists: what roles and tests install, and all that these ask for."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import yaml
from repository import ROOT

sys.path.insert(0, str(ROOT / "molecule/shared"))

from testbed import server_lists, settled

PACKAGES = [
    {"Package": "nginx", "Section": "httpd", "Depends": "nginx-common (<< 1.26.3-3.1~), libc6 (>= 2.38)"},
    {"Package": "nginx-common", "Section": "libs", "Recommends": "nginx-doc"},
    {"Package": "nginx-doc", "Section": "doc"},
    {"Package": "libc6", "Section": "libs"},
    {"Package": "certbot", "Section": "web", "Depends": "python3:any, python3-certbot (= 4.0.0-2) | acme-client"},
    {"Package": "python3", "Section": "python"},
    {"Package": "python3-certbot", "Section": "python"},
    {"Package": "dehydrated", "Section": "misc", "Provides": "acme-client"},
    {"Package": "tasksel-data", "Section": "tasks", "Priority": "important"},
    {"Package": "dash", "Section": "shells"},
    {"Package": "gnome", "Section": "gnome", "Depends": "nginx, gnome-shell"},
    {"Package": "gnome-shell", "Section": "gnome"},
]


def test_what_roles_install_is_kept_with_all_that_it_needs_and_nothing_else() -> None:
    known = {fields["Package"] for fields in PACKAGES}
    kept = server_lists.kept(PACKAGES, present={"dash"})
    assert kept & known == known - {"nginx-doc", "gnome", "gnome-shell"}


# A package's name in a template.
QUOTED = r"'([a-z0-9][a-z0-9+.-]+)'"


class Plain(yaml.SafeLoader):
    """Leaves Ansible's own tags alone."""


Plain.add_multi_constructor("!", lambda _loader, _suffix, _node: None)


def installed(tasks: Any) -> Iterator[str]:
    """The names that tasks with the module apt say literally."""
    if isinstance(tasks, list):
        for task in tasks:
            yield from installed(task)
    elif isinstance(tasks, dict):
        apt = tasks.get("ansible.builtin.apt")
        if isinstance(apt, dict) and apt.get("state") != "absent":
            found = apt.get("name", [])
            for name in found if isinstance(found, list) else [found]:
                yield from re.findall(QUOTED, name) if "{{" in name else [name]
        for inner in tasks.values():
            yield from installed(inner)


def test_all_that_roles_and_scenarios_install_is_known() -> None:
    files = [*ROOT.glob("roles/*/tasks/**/*.yml"), *ROOT.glob("molecule/**/*.yml")]
    texts = [file.read_text() for file in files]
    literal = {name for text in texts for name in installed(yaml.load(text, Plain))}  # noqa: S506  (a safe one)
    docker = yaml.safe_load((ROOT / "roles/docker/vars/main.yml").read_text())
    literal |= set(re.findall(QUOTED, docker["_docker_packages"]))
    assert len(literal) > 20
    # Of a package source that the scenario adds for itself.
    assert literal - set(server_lists.INSTALLED.split()) <= {"postgresql=15+*", "postgresql-15"}


def test_no_host_begins_with_what_a_role_installs() -> None:
    """Otherwise no test would see that a role has forgotten it."""
    for libraries in settled.LIBRARIES.values():
        assert not set(libraries.split()) & set(server_lists.INSTALLED.split())
