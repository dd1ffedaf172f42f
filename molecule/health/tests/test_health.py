"""playbooks/health.yml: what is well, what is not, and an exit code that a script can rely on."""

from __future__ import annotations

import json
import re
import time

import pytest
from testbed.verify import play


@pytest.fixture
def look(host):
    """Return a function that runs the playbook on the host: exit code, lines by subject, output."""

    def run(*arguments, **variables):
        code, output = play(host, "playbooks/health.yml", *arguments, **variables)
        found = re.findall(r"^ +(OK|WARN|FAIL) +(\S+(?: /\S*)?) +(.*)$", output, re.MULTILINE)
        lines = {what: (verdict, detail) for verdict, what, detail in found}
        assert lines, output
        return code, lines, output

    return run


def test_what_is_well_is_ok(look):
    code, lines, output = look()
    assert code == 0, output
    assert lines["nginx.service"][0] == "OK"
    assert lines["cron.service"][0] == "OK"
    assert lines["ssh.service"][0] == "OK"
    assert "changed=0" in output


def test_what_is_not_installed_is_not_shown(look):
    _, lines, _ = look()
    assert not {"docker.service", "prometheus.service", "container", "release"} & set(lines)


def test_placeholder_certificate_and_missing_backup_are_warnings(look):
    code, lines, _ = look()
    assert code == 0
    verdict, detail = lines["certificate"]
    assert verdict == "WARN"
    assert "self-signed placeholder, 60 days left" in detail
    website = next(value for what, value in lines.items() if what.startswith("https://"))
    assert website[0] == "WARN"
    assert "certificate not trusted" in website[1]
    assert lines["backup"][0] == "WARN"


def test_stopped_service_fails_with_the_place_to_look(host, look):
    host.check_output("systemctl stop nginx")
    try:
        code, lines, output = look("--check")
        assert code != 0
        assert lines["nginx.service"] == ("FAIL", "inactive (success); see: journalctl -u nginx.service -n 50")
        assert next(value for what, value in lines.items() if what.startswith("https://"))[0] == "FAIL"
        assert "Failed on" in output
    finally:
        host.check_output("systemctl start nginx")


def test_full_disk_fails(look):
    code, lines, _ = look(health_disk_paths=["/", "/mnt/full"])
    assert code != 0
    assert lines["disk /mnt/full"][0] == "FAIL"


@pytest.mark.parametrize(("hours", "verdict"), [(3, "OK"), (30, "WARN"), (60, "FAIL")])
def test_age_of_the_backup_is_judged(host, look, hours, verdict):
    content = json.dumps({"timestamp": time.time() - hours * 3600, "snapshot": "0123abcd", "backups": 7})
    host.check_output("printf %%s %s > /run/last-success.json", content)
    code, lines, _ = look(health_backup_file="/run/last-success.json")
    assert lines["backup"][0] == verdict
    assert "snapshot 0123abcd, 7 kept" in lines["backup"][1]
    assert (code != 0) == (verdict == "FAIL")
