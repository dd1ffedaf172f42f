"""A plugin for pytest: one process for each host, where a scenario asks for them; tests that need one host only."""

from __future__ import annotations

import re
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling


def host_of(nodeid: str) -> str:
    """Return the host of a test as pytest-testinfra names it: test_x[ansible://debian13-parameter]."""
    found = re.search(r"\[ansible://(\w+)", nodeid)
    return found[1] if found else "no host"


class HostScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Keeps the tests of one host together and in their order; those without a host are another group."""

    def _split_scope(self, nodeid: str) -> str:
        return host_of(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> HostScheduling:
    """Take this way to share out the tests."""
    return HostScheduling(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker: strict runs refuse one that they do not know."""
    config.addinivalue_line(
        "markers", "only_on(host): this host is enough, because the others cannot give another result"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave a test out on hosts that cannot give another result than the one that its marker names."""
    markers = {item: item.get_closest_marker("only_on") for item in items}
    left_out = [item for item, marker in markers.items() if marker and host_of(item.nodeid) != marker.args[0]]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
