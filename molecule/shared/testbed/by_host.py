"""A plugin for pytest-xdist: one process for each host, where a scenario's molecule.yml asks for processes."""

from __future__ import annotations

import re
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling


class HostScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Keeps the tests of one host together and in their order; those without a host are another group."""

    def _split_scope(self, nodeid: str) -> str:
        # As pytest-testinfra names them: test_x[ansible://debian13-parameter].
        found = re.search(r"\[ansible://(\w+)", nodeid)
        return found[1] if found else "no host"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> HostScheduling:
    """Take this way to share out the tests."""
    return HostScheduling(config, log)
