"""What a host has to say about a failed test; nothing of it is there any more when somebody reads the result.

A conftest.py takes pytest_runtest_makereport from here.
"""

from __future__ import annotations

import shlex
from collections.abc import Generator
from typing import Any

import pytest

SAID = (
    "uptime; free -m; docker ps -a --format '{{.Names}} {{.Status}}'; tail -n 20 /var/log/nginx/error.log; "
    "journalctl --quiet --no-pager --since -3min --lines 60 --output cat"
    " CONTAINER_NAME=chatbot-blue + CONTAINER_NAME=chatbot-green"
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any) -> Generator[None, Any, Any]:
    """Keep what the host says beside the traceback."""
    report = yield
    if report.when == "call" and report.failed and (host := item.funcargs.get("host")):
        try:
            said = host.run(f"timeout 30 sh -c {shlex.quote(SAID)}").stdout
        except Exception as error:
            said = f"nothing: {error!r}"
        report.sections.append(("What the host says", said))
    return report
