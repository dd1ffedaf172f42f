"""An alert reaches its receivers; nothing listens beyond loopback; secrets are in no log and no readable file."""

import json
import pathlib
import time

import pytest
from testbed.verify import eventually, refuses

SINK = pathlib.Path(__file__).parent / "sink.py"
RECEIVED = "/root/received.jsonl"


@pytest.fixture
def sink(host):
    """The records that the test's own webhook and mail receiver have got so far, as a function."""
    host.check_output(f"cat > /root/sink.py << 'END-OF-SINK'\n{SINK.read_text()}\nEND-OF-SINK")
    host.check_output(f"rm -f {RECEIVED}")
    host.check_output(f"systemd-run --collect --unit=alert-sink python3 /root/sink.py {RECEIVED}")
    eventually(lambda: host.run("ss -tln | grep -q 127.0.0.1:9999").succeeded)

    def records() -> list[dict]:
        return [json.loads(line) for line in host.run(f"cat {RECEIVED}").stdout.splitlines()]

    yield records
    host.check_output("systemctl stop alert-sink")


@pytest.mark.parametrize("port", [9093, 9094])
def test_other_hosts_are_refused(host, port):
    assert refuses(host, port)


def test_no_gossip_port(host):
    assert not host.run("ss -tuln | grep -q :9094").succeeded


def test_alert_arrives_at_webhook_and_mailbox(host, sink):
    name = f"MoleculeAlert{int(time.time())}"
    host.check_output(
        "amtool --alertmanager.url=http://127.0.0.1:9093 alert add "
        f"alertname={name} host=vps severity=critical --annotation=summary='It works'"
    )
    records = eventually(lambda: {r["kind"]: r for r in sink()} if len({r["kind"] for r in sink()}) == 2 else None)

    webhook = records["webhook"]
    assert webhook["path"] == "/alerts?secret=molecule-url-secret"
    assert webhook["authorization"] == "Bearer molecule-bearer-token"
    assert webhook["body"]["alerts"][0]["labels"]["alertname"] == name
    assert webhook["body"]["alerts"][0]["annotations"]["summary"] == "It works"

    mail = records["mail"]
    assert "operator@example.test" in mail["recipients"][0]
    assert name in mail["text"]


def test_host_down_silences_the_rest_of_the_host(host, sink):
    stamp = int(time.time())

    def add(name: str, of: str) -> None:
        command = "amtool --alertmanager.url=http://127.0.0.1:9093 alert add"
        host.check_output(f"{command} alertname={name} host={of}{stamp}")

    def told() -> set[tuple[str, str]]:
        alerts = [alert for record in sink() if record["kind"] == "webhook" for alert in record["body"]["alerts"]]
        return {(alert["labels"]["alertname"], alert["labels"]["host"]) for alert in alerts}

    add("HostDown", "gone")
    # Of two that come in the same second either may be the first.
    eventually(lambda: ("HostDown", f"gone{stamp}") in told())
    add("NginxDown", "gone")
    add("NginxDown", "other")
    eventually(lambda: ("NginxDown", f"other{stamp}") in told())
    time.sleep(3)
    assert ("NginxDown", f"gone{stamp}") not in told()


def test_alerts_survive_a_kill(host):
    pid = host.check_output("systemctl show -P MainPID prometheus-alertmanager")
    host.check_output("systemctl kill --signal=KILL prometheus-alertmanager")
    eventually(lambda: host.check_output("systemctl show -P MainPID prometheus-alertmanager") not in ("0", pid))
    eventually(lambda: host.run("amtool --alertmanager.url=http://127.0.0.1:9093 alert query").succeeded)


def test_secrets_are_not_readable_for_others(host):
    for path in ("/etc/prometheus/alertmanager-chatbot.yml", "/etc/prometheus/alertmanager-webhook-token"):
        assert host.run(f"setpriv --reuid=nobody --regid=nogroup --clear-groups cat {path}").failed, path
        assert host.run(f"setpriv --reuid=prometheus --regid=prometheus --clear-groups cat {path}").succeeded, path
    for secret in ("molecule-url-secret", "molecule-bearer-token"):
        assert host.run(f"journalctl --no-pager | grep {secret}").stdout == ""
