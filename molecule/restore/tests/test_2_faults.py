"""What goes wrong on the way to and from another provider's object store; nothing that is in use is touched."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HOST, execute, settings
from testbed.verify import REPOSITORY, eventually, play

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("untouched")]

CUT = "OUTPUT --protocol tcp --dport 8333 --jump DROP"


def metrics(file: str = "chatbot_backup") -> dict[str, float]:
    """The values of a file of metrics for the object store."""
    text = execute(HOST, f"cat /var/lib/prometheus/node-exporter/{file}.prom")
    return {name: float(value) for name, value in re.findall(r'^(\w+)\{repository="offsite"\} (\S+)$', text, re.M)}


def backups() -> list[str]:
    """The backups in the object store."""
    return [row["backup"] for row in json.loads(execute(HOST, "chatbot-backup list --json --repository offsite"))]


def test_network_cut_during_upload(host):
    """Packets are lost from the middle of an upload on: the run ends in time, and half a backup is none."""
    host.check_output("systemctl start chatbot-backup")
    known, good = backups(), metrics()["backup_last_success_timestamp_seconds"]
    host.check_output("mkdir -p /var/lib/chatbot/uploads; chown --reference=/var/lib/chatbot /var/lib/chatbot/uploads")
    host.check_output("head -c 200m /dev/urandom > /var/lib/chatbot/uploads/big.bin")
    prefix = settings(only="offsite", timeout=25)
    try:
        host.check_output(
            f"({prefix} chatbot-backup run > /root/cut 2>&1; echo $? > /root/code) & "
            "for n in $(seq 1200); do pgrep -f '[r]estic backup.*part-files' >/dev/null && break; sleep 0.05; done;"
            f" sleep 0.7; iptables --insert {CUT}"
        )
        code = eventually(lambda: host.run("cat /root/code").stdout, 90)
        said = host.check_output("cat /root/cut")
        assert code == "13\n", said
        assert "did not answer in time. Check offsite in backup_repositories and the network" in said
        values = metrics()
        assert (values["backup_last_run_success"], values["backup_last_exit_code"]) == (0, 13)
        assert values["backup_last_success_timestamp_seconds"] == good
    finally:
        host.run(f"iptables --delete {CUT}")
        host.check_output("rm -f /root/code /var/lib/chatbot/uploads/big.bin")
    assert backups() == known
    # The next night: the lock of the one that was cut is gone, and what it has left as well.
    host.check_output("systemctl start chatbot-backup")
    assert metrics()["backup_last_run_success"] == 1
    snapshots = json.loads(execute(HOST, "chatbot-backup restic --repository offsite snapshots --json"))
    runs = {tag for each in snapshots for tag in each["tags"] if tag.startswith("run-")}
    assert runs == {f"run-{name}" for name in backups()}


def test_refused_key_is_told(host):
    known = json.loads(host.check_output("cat /etc/chatbot-backup/settings.json"))
    for place in known["repositories"]:
        if place["name"] == "offsite":
            place["environment"]["AWS_SECRET_ACCESS_KEY"] = "another"
    prefix = settings(repositories=known["repositories"], connect_timeout=8)
    result = host.run(f"{prefix} chatbot-backup plan --from offsite")
    assert result.rc == 13
    assert "Check offsite in backup_repositories" in result.stderr


def test_failed_restore_takes_the_maintenance_page_away(host, looking):
    """A dump that cannot be restored: its table belongs to a role that no longer exists."""
    sql = "cd / && runuser -u postgres -- psql -Xq chatbot -c %s"
    host.check_output(sql, "CREATE ROLE stranger; CREATE TABLE strange (); ALTER TABLE strange OWNER TO stranger")
    host.check_output("chatbot-backup run --repository offsite")
    host.check_output(sql, "DROP TABLE strange; DROP ROLE stranger")
    with looking:
        result = play(host, "playbooks/restore.yml", **{"from": "offsite", "safety": False})
    assert result.code != 0
    assert "Nothing was changed" in result.words
    assert 'role "stranger" does not exist' in result.words
    assert looking.seen == [200, 503, 200]
    host.check_output("chatbot-backup run --repository offsite")


def test_interrupted_restore_is_ended_and_the_page_goes(host, looking):
    """Ctrl-C while the restore is at work: Ansible itself would leave the page, and the restore go on to its swap."""
    variables = host.ansible.get_variables()
    # The restore waits for a backup, so that there is time to interrupt it.
    host.check_output("systemd-run --quiet --unit=backing-up flock /run/lock/chatbot-backup.lock sleep 120")
    command = [
        str(Path(sys.executable).with_name("ansible-playbook")),
        f"--inventory={variables['testbed_directory']}/hosts.yml",
        "--limit=vps",
        "--extra-vars=safety=false",
        "playbooks/restore.yml",
    ]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_STRATEGY")}
    log = Path(variables["testbed_directory"], "interrupted.log")
    with log.open("w") as output:
        running = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=kept | {"ANSIBLE_CONFIG": "ansible.cfg"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            eventually(lambda: host.run("systemctl is-active 'chatbot-backup-restore-*'").rc == 0, 120)
            assert looking.now() == 503
            os.killpg(running.pid, signal.SIGINT)
            running.wait(timeout=120)
        finally:
            running.kill()
            host.check_output("systemctl stop backing-up")
    text = " ".join(log.read_text().split())
    assert "Interrupted: the restore is ended, and the maintenance page goes" in text
    assert "ended before its swap: nothing was changed" in text
    assert looking.now() == 200
    assert host.run("systemctl is-active 'chatbot-backup-restore-*'").rc != 0
