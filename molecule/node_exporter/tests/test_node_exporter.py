"""The exporter tells what the host does, to loopback only, and comes back when it is killed."""

import re

from testbed.verify import eventually, refuses


def metrics(host) -> str:
    return host.check_output(
        "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:9100/metrics\").read().decode())'"
    )


def test_other_hosts_are_refused(host):
    assert refuses(host, 9100)


def test_metrics_of_the_host(host):
    text = metrics(host)
    for name in (
        "node_memory_MemAvailable_bytes",
        "node_cpu_seconds_total",
        "node_vmstat_oom_kill",
        "node_timex_sync_status",
    ):
        assert f"\n{name}" in text, name


def test_collectors_do_not_fail(host):
    failed = [
        line
        for line in metrics(host).splitlines()
        if line.startswith("node_scrape_collector_success") and line.endswith(" 0")
    ]
    # In a container some collectors find nothing; those that the role asks for must work.
    assert not [line for line in failed if 'collector="systemd"' in line or 'collector="textfile"' in line], failed


def test_failed_unit_is_reported(host):
    host.run("systemd-run --unit=test-that-fails --property=Type=oneshot /bin/false")
    try:
        line = 'node_systemd_unit_state{name="test-that-fails.service",state="failed",type="oneshot"} 1'
        eventually(lambda: line in metrics(host), 10)
    finally:
        host.run("systemctl reset-failed test-that-fails.service")


def test_other_roles_can_add_metrics(host):
    directory = "/var/lib/prometheus/node-exporter"
    host.check_output(
        f"echo 'molecule_metric 42' > {directory}/molecule.tmp && mv {directory}/molecule.tmp {directory}/molecule.prom"
    )
    try:
        text = metrics(host)
        assert "\nmolecule_metric 42\n" in text
        assert "\nnode_textfile_scrape_error 0\n" in text
    finally:
        host.check_output(f"rm {directory}/molecule.prom")


def test_killed_exporter_returns(host):
    pid = host.check_output("systemctl show -P MainPID prometheus-node-exporter")
    host.check_output("systemctl kill --signal=KILL prometheus-node-exporter")
    eventually(lambda: host.check_output("systemctl show -P MainPID prometheus-node-exporter") not in ("0", pid))
    eventually(
        lambda: host.run("python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 9100), 2)'").succeeded
    )


def test_no_privileges(host):
    pid = host.check_output("systemctl show -P MainPID prometheus-node-exporter")
    status = dict(line.split(":", 1) for line in host.file(f"/proc/{pid}/status").content_string.splitlines())
    assert status["NoNewPrivs"].strip() == "1"
    assert int(status["CapBnd"], 16) == 0
    assert host.check_output(f"ps -o user= -p {pid}") == "prometheus"


def test_validity_of_certificates_is_reported(host):
    """A self-signed certificate, one that another key has signed, and a file that is none."""
    host.check_output("mkdir -p /srv/certificates")
    make = "cd /srv/certificates && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key"
    host.check_output(f"{make} -subj /CN=authority -days 10 -out authority.pem")
    host.check_output(
        "cd /srv/certificates && openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout leaf.key"
        " -subj /CN=leaf -out leaf.csr"
        " && openssl x509 -req -in leaf.csr -CA authority.pem -CAkey ca.key -CAcreateserial -days 5 -out leaf.pem"
    )
    host.check_output("echo nonsense > /srv/certificates/broken.pem")
    host.check_output("systemctl start certificate-metrics")
    try:
        text = metrics(host)
        assert 'certificate_self_signed{path="/srv/certificates/authority.pem"} 1' in text
        assert 'certificate_self_signed{path="/srv/certificates/leaf.pem"} 0' in text
        assert "broken.pem" not in text
        end = re.search(r'certificate_not_after_timestamp_seconds{path="/srv/certificates/leaf.pem"} (\S+)', text)[1]
        assert 4.9 < (float(end) - int(host.check_output("date +%s"))) / 86400 <= 5
    finally:
        host.check_output("rm -r /srv/certificates")
        host.check_output("systemctl start certificate-metrics")
    assert "certificate_self_signed{" not in metrics(host)


def test_certificates_are_reported_hourly(host):
    assert host.service("certificate-metrics.timer").is_enabled
    assert "certificate-metrics.timer" in host.check_output("systemctl list-timers --no-pager")
