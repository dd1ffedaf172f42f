"""What the tests share: SQL, playbooks as the operator runs them, and what the metrics say."""

import pytest
from testbed.verify import Played, play

METRICS = "/var/lib/prometheus/node-exporter"


@pytest.fixture
def sql(host):
    def run(statement: str, database: str = "chatbot") -> str:
        return host.check_output("cd / && runuser -u postgres -- psql -XAtq -d %s -c %s", database, statement)

    return run


@pytest.fixture
def playbook(host):
    def run(name: str, *arguments: str, **variables: object) -> Played:
        return play(host, name, *arguments, **variables)

    return run


@pytest.fixture
def metrics(host):
    """What cron's command tells Prometheus: the values by metric, without the words `backup_archive_`."""

    def read() -> dict[str, float]:
        lines = host.check_output("cat /etc/cron.d/chatbot-backup").splitlines()
        (line,) = [line for line in lines if "chatbot-backup watch" in line]
        host.check_output(line.split(None, 6)[6])
        values = host.check_output("cat %s", f"{METRICS}/chatbot_backup_archive.prom").splitlines()
        pairs = (line.rsplit(" ", 1) for line in values if not line.startswith("#"))
        return {name.partition("{")[0].removeprefix("backup_archive_"): float(value) for name, value in pairs}

    return read
