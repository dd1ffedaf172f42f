"""Prometheus collects, judges and survives; every query of rules and dashboards is answerable.

What nginx's and PostgreSQL's exporters, the application and the backup deliver is not in this scenario: the names
that their queries use are held against where they are declared, or against the list EXPORTED below.
"""

import base64
import json
import pathlib
import re
import shlex
import subprocess
import urllib.parse

import pytest
import yaml
from testbed.verify import eventually, refuses

ROOT = pathlib.Path(__file__).parents[3]
RULES = sorted((ROOT / "roles/prometheus/files/rules").glob("*.yml"))
DASHBOARDS = sorted((ROOT / "roles/grafana/files/dashboards").glob("*.json"))
API = "http://127.0.0.1:9090/api/v1"

NAME = re.compile(r"\b(?:chatbot|node|pg|nginx|prometheus|alertmanager|backup|certificate)_\w+")

# As prometheus-nginx-exporter 0.11 to 1.4 and prometheus-postgres-exporter 0.11 to 0.17 name them.
EXPORTED = {
    "nginx_up",
    "nginx_connections_reading",
    "nginx_connections_writing",
    "nginx_connections_waiting",
    "pg_up",
    "pg_stat_activity_count",
    "pg_settings_max_connections",
}


def get(host, path: str, **parameters: str):
    """The data of an answer of Prometheus' API, asked on the host itself."""
    url = f"{API}/{path}?{urllib.parse.urlencode(parameters)}"
    code = f"import urllib.request as u; print(u.urlopen({url!r}).read().decode())"
    return json.loads(host.check_output(f"python3 -c {shlex.quote(code)}"))["data"]


def query(host, expression: str) -> list[tuple[dict, float]]:
    return [(r["metric"], float(r["value"][1])) for r in get(host, "query", query=expression)["result"]]


def expressions() -> list[tuple[str, str]]:
    """Every PromQL expression of rules and dashboards, with where it stands and the dashboards' variables filled in."""
    found = []
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            found += [(f"{path.name}: {rule['alert']}", rule["expr"]) for rule in group["rules"]]
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        for annotation in dashboard["annotations"]["list"]:
            found.append((f"{path.name}: {annotation['name']}", annotation["expr"].replace("$host", ".*")))
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                if target["datasource"]["type"] == "prometheus":
                    expression = target["expr"].replace("$__rate_interval", "1m").replace("$host", ".*")
                    found.append((f"{path.name}: {panel['title']}", expression))
    return found


# --- Who can reach it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", [9090, 9093, 9094, 9100])
def test_other_hosts_are_refused(host, port):
    assert refuses(host, port)


# --- What it collects ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", ["prometheus", "node", "alertmanager"])
def test_target_is_up(host, job):
    eventually(lambda: [value for _, value in query(host, f'up{{job="{job}"}}')] == [1], 60)


def test_both_colours_nginx_and_postgresql_are_asked(host):
    eventually(lambda: len(query(host, "up")) >= 7)
    asked = {(metric["job"], metric["instance"], metric.get("colour")) for metric, _ in query(host, "up")}
    assert asked >= {
        ("chatbot", "127.0.0.1:8101", "blue"),
        ("chatbot", "127.0.0.1:8102", "green"),
        ("nginx", "127.0.0.1:9113", None),
        ("postgresql", "127.0.0.1:9187", None),
    }


def test_every_target_names_its_host(host):
    name = host.ansible.get_variables()["inventory_hostname"]
    assert {metric.get("host") for metric, _ in query(host, "up")} == {name}


def test_other_roles_can_register_targets(host):
    path = "/etc/prometheus/targets.d/molecule.yml"
    host.check_output(f"echo '[{{targets: [\"127.0.0.1:9100\"], labels: {{job: molecule, host: here}}}}]' > {path}")
    try:
        eventually(lambda: [value for _, value in query(host, 'up{job="molecule",host="here"}')] == [1])
    finally:
        host.check_output(f"rm {path}")


def test_retention_in_effect(host):
    assert get(host, "status/runtimeinfo")["storageRetention"] == "3d or 512MiB"


# --- What it judges --------------------------------------------------------------------------------------------------


def test_all_rules_are_loaded_and_healthy(host):
    loaded = {rule["name"]: rule["health"] for group in get(host, "rules")["groups"] for rule in group["rules"]}
    written = {
        rule["alert"]
        for path in RULES
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    }
    assert set(loaded) == written
    eventually(lambda: {r["health"] for g in get(host, "rules")["groups"] for r in g["rules"]} == {"ok"})


def test_rules_pass_their_unit_tests(host):
    # Packed: Ansible's module for copying takes each file for itself.
    pack = ["tar", "-cz", "-C", str(ROOT / "roles/prometheus"), "files", "tests"]
    packed = base64.b64encode(subprocess.run(pack, check=True, capture_output=True).stdout).decode()
    unpack = "base64 -d | tar -xz --no-same-owner -C /root/prometheus-rules"
    host.check_output(f"mkdir -p /root/prometheus-rules && echo {packed} | {unpack}")
    result = host.run("cd /root/prometheus-rules/tests && promtool test rules *.test.yml")
    assert result.rc == 0, result.stdout + result.stderr
    assert result.stdout.count("SUCCESS") == len(list((ROOT / "roles/prometheus/tests").glob("*.test.yml")))


def test_every_alert_has_a_unit_test():
    tested = "".join(path.read_text() for path in (ROOT / "roles/prometheus/tests").glob("*.test.yml"))
    alerts = [
        rule["alert"]
        for path in RULES
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]
    assert [name for name in alerts if not re.search(rf"\b{name}\b", tested)] == []


def test_every_alert_has_its_paragraph_in_the_manual():
    manual = (ROOT / "docs/monitoring.md").read_text()
    headings = {line.removeprefix("### ").lower() for line in manual.splitlines() if line.startswith("### ")}
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                page, _, anchor = rule["annotations"]["runbook"].partition("#")
                assert page == "docs/monitoring.md"
                assert anchor in headings, rule["alert"]


def test_alert_reaches_alertmanager(host):
    """The chat is not installed here, so ChatbotDown must fire by itself and be handed over."""
    command = "amtool --alertmanager.url=http://127.0.0.1:9093 alert query -o json alertname=ChatbotDown"
    alerts = eventually(lambda: json.loads(host.check_output(command)), 120)
    assert alerts[0]["labels"]["severity"] == "critical"
    assert alerts[0]["annotations"]["summary"].endswith("is down")


# --- Are the questions answerable? ---------------------------------------------------------------------------------


# Asks many questions in one go; prints those that Prometheus refuses, with its reason.
ASK = """
import json, sys, urllib.error, urllib.parse, urllib.request
for where, expression in json.loads(sys.argv[1]):
    try:
        urllib.request.urlopen("http://127.0.0.1:9090/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
    except urllib.error.HTTPError as error:
        print(where, error.read().decode())
"""


def test_every_expression_is_valid(host):
    assert len(expressions()) > 40
    refused = host.check_output(f"python3 -c {shlex.quote(ASK)} {shlex.quote(json.dumps(expressions()))}")
    assert refused == ""


def test_metrics_of_the_expressions_exist(host):
    application = (ROOT / "app/chatbot/metrics.py").read_text()
    declared = set(re.findall(r'"(chatbot_\w+)"', application))
    backup = "".join(path.read_text() for path in (ROOT / "roles/backup/files").rglob("*.py"))
    declared |= set(re.findall(r"\bbackup_\w+", backup))
    declared |= set(
        re.findall(r"\bcertificate_\w+", (ROOT / "roles/node_exporter/files/certificate-metrics").read_text())
    )
    release = (ROOT / "roles/chatbot/templates/release.prom.j2").read_text()
    declared |= set(re.findall(r"^# TYPE (\w+)", release, re.MULTILINE))
    declared |= {name + suffix for name in declared for suffix in ("_bucket", "_sum", "_count")}
    live = set(get(host, "label/__name__/values"))
    used = {name for _, expression in expressions() for name in NAME.findall(re.sub(r'"[^"]*"', "", expression))}
    assert used - live - declared - EXPORTED == set()


# --- What it survives ----------------------------------------------------------------------------------------------


def test_killed_prometheus_returns_with_its_data(host):
    before = min(float(value) for _, value in query(host, "min_over_time(timestamp(up{job='prometheus'})[10m:])"))
    pid = host.check_output("systemctl show -P MainPID prometheus")
    host.check_output("systemctl kill --signal=KILL prometheus")
    eventually(lambda: host.check_output("systemctl show -P MainPID prometheus") not in ("0", pid))
    eventually(
        lambda: (
            host.run("python3 -c 'import urllib.request as u; u.urlopen(\"http://127.0.0.1:9090/-/ready\")'").succeeded
        )
    )
    eventually(lambda: query(host, "up{job='prometheus'}"))
    after = min(float(value) for _, value in query(host, "min_over_time(timestamp(up{job='prometheus'})[10m:])"))
    assert after <= before + 60
