"""The dashboard is there for the administrator and for nobody else.

Skipped, with the reason, where Grafana's package repository is out of reach.
"""

import json
import shlex

import pytest
from testbed.verify import assert_untouched, refuses, skip_unless_installed

PROGRAM = "/usr/share/grafana/bin/grafana"


@pytest.fixture
def installed(host):
    skip_unless_installed(host, PROGRAM)


def test_without_the_repository_nothing_is_changed(host):
    assert_untouched(
        host,
        PROGRAM,
        "/etc/apt/sources.list.d/grafana.sources",
        "/etc/apt/preferences.d/grafana-version",
        "/etc/grafana",
    )


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
    assert refuses(host, 3000)


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
