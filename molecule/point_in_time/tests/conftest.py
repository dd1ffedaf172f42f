"""What the tests share: SQL, playbooks as the operator runs them, and what the metrics say."""

from functools import partial

import pytest
from testbed import restic_keys
from testbed.verify import play, sql_on

METRICS = "/var/lib/prometheus/node-exporter"


@pytest.fixture(scope="module", autouse=True)
def _repositories_open_quickly(host):
    restic_keys.make_quick(host)


@pytest.fixture
def sql(host):
    return partial(sql_on, host)


@pytest.fixture
def playbook(host):
    return partial(play, host)


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
