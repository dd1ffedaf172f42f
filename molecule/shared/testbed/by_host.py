"""Lets the tests of a scenario run side by side where its molecule.yml asks for it: one process for each host."""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of one host in one process and in their order; those without a host go together."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        item.add_marker(pytest.mark.xdist_group(str(parameters.get("_testinfra_host", "none"))))
