"""Runs the command blocks of docs/runbooks as they stand there, on a host of the test bed."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

from .verify import REPOSITORY, run_as_scenario

RUNBOOKS = REPOSITORY / "docs/runbooks"
BLOCK = re.compile(r"^ *```(?:sh)?( host)?\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
# The inventories that the runbooks name.
INVENTORY = re.compile(r"-i inventories/(?:prod|new)\b")


class Block(NamedTuple):
    """One block of commands: the heading that it stands under, whether it is for the server, and its lines."""

    heading: str
    on_server: bool
    commands: str


def blocks(name: str) -> list[Block]:
    """Return the command blocks of docs/runbooks/<name>.md, in their order."""
    text = (RUNBOOKS / f"{name}.md").read_text()
    found = []
    for match in BLOCK.finditer(text):
        above = [heading[1] for heading in HEADING.finditer(text, 0, match.start())]
        found.append(Block(above[-1], match[1] is not None, textwrap.dedent(match[2])))
    return found


def perform(host: Any, block: Block, replace: Mapping[str, str] | None = None) -> str:
    """Run a block and return what it printed, both streams.

    Args:
        host: testinfra's host, in the place of the reader's server.
        block: what to run; its first failing command ends it, as the reader would stop there.
        replace: what stands for what in the commands, beside the inventory: the domain, an address.

    Raises:
        AssertionError: with what it printed, when a command fails.
    """
    commands = block.commands
    for old, new in (replace or {}).items():
        commands = commands.replace(old, new)
    if block.on_server:
        done = host.run("bash -euo pipefail -c %s 2>&1", commands)
        code, output = done.rc, str(done.stdout)
    else:
        known = host.ansible.get_variables()
        inventory = f"-i {known['testbed_directory']}/hosts.yml --limit {known['inventory_hostname']}"
        code, output = run_as_scenario(["bash", "-euo", "pipefail", "-c", INVENTORY.sub(inventory, commands)])
    assert code == 0, f"exit code {code} from\n{commands}\n{output[-3000:]}"
    return output
