"""Day-2 work on a finished host."""

import json
import re

import pytest
from conftest import recap

# Whole playbooks run here, beside other scenarios.
pytestmark = pytest.mark.timeout(900)

_QUERY = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9090/api/v1/query?query=up').read().decode())"


def test_health_fits_one_screen_and_is_good(playbook):
    code, output = playbook("health.yml")
    assert code == 0, output[-3000:]
    assert ", 0 FAIL" in output
    for word in ("nginx", "postgresql", "valkey", "certificate", "backup", "disk", "release"):
        assert word in output.lower(), word
    assert recap(output)["changed"] == 0


def test_prometheus_sees_every_part(host):
    answer = json.loads(host.check_output("python3 -c %s", _QUERY))
    up = {(r["metric"]["job"], r["metric"].get("colour", "")): r["value"][1] for r in answer["data"]["result"]}
    for job in ("prometheus", "node", "nginx", "postgresql"):
        assert any(value == "1" for (name, _), value in up.items() if name == job), (job, up)
    assert sum(value == "1" for (name, _), value in up.items() if name == "chatbot") == 1, up


def test_no_secret_is_in_the_journal(host, variables):
    """sudo writes every command that Ansible runs into the journal, with its environment and arguments."""
    journal = host.check_output("journalctl --no-pager --output=cat")
    assert "BECOME-SUCCESS" in journal, "the search would prove nothing"
    secrets = {name: value for name, value in variables.items() if re.match(r"chatbot_.*(password|key)$", name)}
    assert len(secrets) >= 7
    assert not [name for name, value in secrets.items() if value in journal]
