"""Long playbooks on a finished host; on one, because the roles' own scenarios have both systems."""

import pytest
from conftest import recap
from testbed.verify import play

# The other host has the runbooks meanwhile. Whole playbooks run here, beside other scenarios.
pytestmark = [pytest.mark.only_on("debian13"), pytest.mark.timeout(900)]


def test_check_mode_reports_no_change(host):
    code, output = play(host, "playbooks/site.yml", "--check", "--diff")
    assert code == 0, output[-3000:]
    assert recap(output) == {"changed": 0, "failed": 0, "unreachable": 0}, output


def test_backup_and_restore_bring_a_conversation_back(chat, playbook):
    """With Ansible's own strategy."""
    _, conversation = chat.call("POST", "/api/v1/conversations", {"title": "Kept in a backup"})
    path = f"/api/v1/conversations/{conversation['id']}"
    code, output = playbook("backup.yml")
    assert code == 0, output[-3000:]
    assert chat.call("DELETE", path)[0] == 204
    assert chat.call("GET", path)[0] == 404
    code, output = playbook("restore.yml")
    assert code == 0, output[-3000:]
    status, found = chat.call("GET", path)
    assert (status, found.get("title")) == (200, "Kept in a backup")
