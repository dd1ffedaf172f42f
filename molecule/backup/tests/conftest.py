"""What the tests of the backups share: SQL, playbooks, and the program with other settings."""

import json
import re
from functools import partial

import pytest
from testbed import restic_keys
from testbed.verify import Played, play, sql_on

METRICS = "/var/lib/prometheus/node-exporter"
SETTINGS = "/etc/chatbot-backup/settings.json"


@pytest.fixture(scope="module", autouse=True)
def _repositories_open_quickly(host):
    restic_keys.make_quick(host)


@pytest.fixture
def sql(host):
    return partial(sql_on, host)


@pytest.fixture
def playbook(host):
    """Run a playbook as the operator does, limited to the host under test."""

    def run(name: str, *arguments: str, **variables: str) -> Played:
        return play(host, f"playbooks/{name}", *arguments, **variables)

    return run


class Backups:
    """The backups of one host, as its operator sees them."""

    def __init__(self, host):
        self.host = host

    def cron_command(self, unit: str = "chatbot-backup.service") -> str:
        """The command that cron runs, without the schedule and the user."""
        lines = self.host.check_output("cat /etc/cron.d/chatbot-backup").splitlines()
        (line,) = [line for line in lines if line.endswith(unit)]
        return line.split(None, 6)[6]

    def make(self) -> str:
        """Let cron's command make a backup; its name."""
        self.host.check_output(self.cron_command())
        return self.known("local")[-1]["backup"]

    def known(self, repository: str) -> list[dict]:
        rows = json.loads(self.host.check_output("chatbot-backup list --json --repository %s", repository))
        return sorted(rows, key=lambda row: row["backup"])

    def snapshots(self, repository: str) -> list[dict]:
        return json.loads(self.restic(repository, "snapshots --json"))

    def restic(self, repository: str, command: str) -> str:
        return self.host.check_output(f"chatbot-backup restic --repository {repository} {command}")

    def metrics(self, file: str = "chatbot_backup") -> dict[str, dict[str, float]]:
        """The values by metric and repository."""
        found: dict[str, dict[str, float]] = {}
        for line in self.host.check_output("cat %s", f"{METRICS}/{file}.prom").splitlines():
            if match := re.fullmatch(r'(\w+)\{repository="([^"]+)"\} (\S+)', line):
                found.setdefault(match[1], {})[match[2]] = float(match[3])
        return found

    def with_settings(self, **changes) -> str:
        """Copy the settings with some changed; return the prefix that makes the program read the copy.

        A change whose name is a repository's is one of that repository.
        """
        settings = json.loads(self.host.check_output("cat %s", SETTINGS))
        for place in settings["repositories"]:
            place |= changes.pop(place["name"], {})
        self.host.check_output("umask 077; printf %%s %s > /root/settings.json", json.dumps(settings | changes))
        return "CHATBOT_BACKUP_SETTINGS=/root/settings.json "


@pytest.fixture
def backups(host):
    return Backups(host)


@pytest.fixture
def untouched(host, sql):
    """Whatever a test does: the live database and the uploads are the same after it."""

    def state():
        rows = sql("SELECT md5(string_agg(m::text, ',' ORDER BY id)) FROM messages m")
        databases = sql("SELECT string_agg(datname, ',' ORDER BY datname) FROM pg_database")
        uploads = host.check_output("cd /var/lib/chatbot && find . -path './uploads*' -type f | sort | xargs sha256sum")
        return rows, databases, uploads

    before = state()
    yield
    assert state() == before
