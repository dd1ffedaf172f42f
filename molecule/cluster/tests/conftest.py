"""The site as a whole, its hosts by name, its users, and releases to give it. The host under test has nginx."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from testbed import application
from testbed.docker import execute, inspect, lock
from testbed.verify import REPOSITORY

SETTINGS = REPOSITORY / "molecule/cluster/vars/cluster.yml"
APPLICATION = ("app1", "app2")
ASK = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=5).read().decode())"


def _of_one_host() -> Any:
    """What the scenario for one host has for its tests."""
    path = REPOSITORY / "molecule/update/tests/conftest.py"
    specification = importlib.util.spec_from_file_location("update_conftest", path)
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


_update = _of_one_host()
_update.SETTINGS = SETTINGS
_update.EXTRA = [f"--extra-vars=@{SETTINGS}", "--limit=all"]
begin, crowd, operator = _update.begin, _update.crowd, _update.operator
source, variables = _update.source, _update.variables


@pytest.fixture(scope="session")
def image(source: Any) -> Any:
    """A function: a release as several hosts get it, built once, by its digest in the registry."""

    def make(name: str) -> str:
        directory = Path(source(name))
        with lock():
            return application.publish(directory)

    return make


def on(name: str, script: str) -> str:
    """Run a script on a host of the site and return what it printed."""
    return execute(f"cluster-{name}", script)


def address(name: str) -> str:
    """The address of a host of the site."""
    found = inspect("container", f"cluster-{name}") or {}
    return str(found["Config"]["Labels"]["chatbot-testbed.address"])


def state(name: str) -> dict[str, Any]:
    """What a host of the application agrees to serve."""
    found: dict[str, Any] = json.loads(on(name, "cat /opt/chatbot/state.json"))
    return found


def served() -> dict[str, str]:
    """The release that answers behind each line of nginx's upstream that answers, asked from nginx's host."""
    lines = on("edge1", r"sed -n 's/^server \([^ ]*\) .*;$/\1/p' /etc/nginx/chatbot/servers/*.conf").split()
    answers = {
        line: on("edge1", f"python3 -c '{ASK}' http://{line}/api/v1/ready 2>/dev/null || true") for line in lines
    }
    return {line: str(json.loads(answer)["release"]) for line, answer in answers.items() if answer}
