"""Logs go in and come out again, on loopback only.

Skipped, with the reason, where Grafana's package repository is out of reach.
"""

import json
import shlex
import time
import urllib.parse

import pytest
from testbed.verify import assert_untouched, refuses, skip_unless_installed

PROGRAM = "/usr/bin/loki"


@pytest.fixture
def installed(host):
    skip_unless_installed(host, PROGRAM)


def test_without_the_repository_nothing_is_changed(host):
    assert_untouched(
        host,
        PROGRAM,
        "/etc/apt/sources.list.d/grafana.sources",
        "/etc/apt/preferences.d/loki",
        "/etc/systemd/system/loki.service.d",
        "/etc/loki",
    )


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("port", [3100, 9095])
def test_other_hosts_are_refused(host, port):
    assert refuses(host, port)


@pytest.mark.usefixtures("installed")
def test_line_goes_in_and_comes_out(host):
    now = time.time_ns()
    body = json.dumps({"streams": [{"stream": {"job": "molecule"}, "values": [[str(now), f"line {now}"]]}]})
    url = "http://127.0.0.1:3100/loki/api/v1"
    code = (
        "import urllib.request as u; "
        f"u.urlopen(u.Request('{url}/push', {body.encode()!r}, {{'Content-Type': 'application/json'}}))"
    )
    host.check_output(f"python3 -c {shlex.quote(code)}")
    question = urllib.parse.urlencode({"query": '{job="molecule"}'})
    code = f"import urllib.request as u; print(u.urlopen('{url}/query_range?{question}').read().decode())"
    assert f"line {now}" in host.check_output(f"python3 -c {shlex.quote(code)}")


@pytest.mark.usefixtures("installed")
def test_retention_in_effect(host):
    code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:3100/config').read().decode())"
    config = host.check_output(f"python3 -c {shlex.quote(code)}")
    assert "retention_enabled: true" in config
    assert "retention_period: 2w" in config
