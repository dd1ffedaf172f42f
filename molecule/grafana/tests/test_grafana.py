"""The dashboard is there for the administrator and for nobody else.

Skipped, with the reason, where Grafana's package repository is out of reach.
"""

import json
import shlex
import socket

import pytest


@pytest.fixture
def installed(host):
    """Skip what needs the program, where the role could not install it."""
    if not host.file("/usr/share/grafana/bin/grafana").exists:
        pytest.skip("Grafana's package repository cannot be reached from the test host, so Grafana is not installed")


def test_without_the_repository_nothing_is_changed(host):
    if host.file("/usr/share/grafana/bin/grafana").exists:
        pytest.skip("Grafana's package repository can be reached: Grafana is installed")
    for path in ("/etc/apt/sources.list.d/grafana.sources", "/etc/apt/preferences.d/grafana-version", "/etc/grafana"):
        assert not host.file(path).exists, path


def api(host, path: str, password: str | None) -> tuple[int, str]:
    """Log in as the administrator, if a password is given, and ask Grafana's API on the host."""
    code = f"""
import http.cookiejar, json, urllib.error, urllib.request as u
opener = u.build_opener(u.HTTPCookieProcessor(http.cookiejar.CookieJar()))
base = "http://127.0.0.1:3000/grafana/"
cookie = ""
try:
    if {password!r} is not None:
        body = json.dumps({{"user": "admin", "password": {password!r}}}).encode()
        login = u.Request(base + "login", body, {{"Content-Type": "application/json"}})
        cookie = opener.open(login).headers["Set-Cookie"].split(";")[0]
    answer = u.urlopen(u.Request(base + {path!r}, headers={{"Cookie": cookie}}))
    print(answer.status, answer.read().decode())
except urllib.error.HTTPError as error:
    print(error.code, "")
"""
    status, _, body = host.check_output(f"python3 -c {shlex.quote(code)}").partition(" ")
    return int(status), body


@pytest.mark.usefixtures("installed")
def test_other_hosts_are_refused(host):
    address = host.ansible.get_variables()["ansible_host"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, 3000), timeout=5)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("password", [None, "admin"])
def test_nobody_else_comes_in(host, password):
    assert api(host, "api/dashboards/uid/chatbot", password)[0] == 401


@pytest.mark.usefixtures("installed")
def test_dashboard_and_data_sources_are_provisioned(host):
    password = host.ansible.get_variables()["chatbot_grafana_admin_password"]
    status, body = api(host, "api/dashboards/uid/chatbot", password)
    assert status == 200
    assert json.loads(body)["meta"]["provisioned"] is True
    status, body = api(host, "api/datasources", password)
    assert {source["uid"] for source in json.loads(body)} == {"prometheus", "loki"}
