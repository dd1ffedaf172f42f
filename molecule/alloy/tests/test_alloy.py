"""The journal is read and delivered, on loopback only.

Skipped, with the reason, where Grafana's package repository is out of reach.
"""

import json
import shlex
import time

import pytest
from testbed.verify import assert_untouched, refuses, skip_unless_installed

PROGRAM = "/usr/bin/alloy"


@pytest.fixture
def installed(host):
    skip_unless_installed(host, PROGRAM)


def test_without_the_repository_nothing_is_changed(host):
    assert_untouched(
        host,
        PROGRAM,
        "/etc/apt/sources.list.d/grafana.sources",
        "/etc/apt/preferences.d/alloy",
        "/etc/systemd/system/alloy.service.d",
        "/etc/alloy",
    )


# Takes what Alloy delivers, in Loki's place, and keeps it as it came (short texts stand unchanged in snappy's format).
SINK = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        open("/root/delivered", "ab").write(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", 3100), Handler).serve_forever()
"""


@pytest.mark.usefixtures("installed")
def test_other_hosts_are_refused(host):
    assert refuses(host, 12345)


@pytest.mark.usefixtures("installed")
def test_journal_is_delivered_without_secrets(host):
    host.check_output(f"systemd-run --collect --unit=loki-sink python3 -c {shlex.quote(SINK)}")
    try:
        host.check_output("logger -t molecule 'harmless-marker password=hunter2hunter2'")
        end = time.monotonic() + 30
        while time.monotonic() < end and host.run("grep -aq harmless-marker /root/delivered").failed:
            time.sleep(1)
        delivered = host.check_output("cat /root/delivered | tr -cd '[:print:]'")
        assert "harmless-marker" in delivered
        assert "hunter2" not in delivered
    finally:
        host.check_output("systemctl stop loki-sink")


@pytest.mark.usefixtures("installed")
def test_components_are_healthy(host):
    code = (
        "import urllib.request as u; print(u.urlopen('http://127.0.0.1:12345/api/v0/web/components').read().decode())"
    )
    components = json.loads(host.check_output(f"python3 -c {shlex.quote(code)}"))
    assert {component["health"]["state"] for component in components} == {"healthy"}
