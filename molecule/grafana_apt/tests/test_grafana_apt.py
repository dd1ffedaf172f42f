"""The rehearsal: the roles' own doing around the programs of Grafana Labs, whose places stubs have taken."""

import configparser
import json
import re

import pytest
import yaml
from testbed.verify import refuses


@pytest.mark.parametrize(("package", "version"), [("loki", "3.7.7"), ("alloy", "1.19.2-1"), ("grafana", "13.2.3")])
def test_pinned_version_is_installed(host, package, version):
    assert host.package(package).version == version
    assert f"*** {version} 900" in re.sub(r" +", " ", host.check_output(f"apt-cache policy {package}"))


def test_repository_cannot_replace_other_packages(host):
    """The repository offers hello 99.0; the distribution's own, or none, must be the candidate."""
    policy = host.check_output("apt-cache policy hello")
    assert "99.0" in policy, "the repository is read"
    assert "Candidate: 99.0" not in policy


@pytest.mark.parametrize("port", [3000, 3100, 9095, 12345])
def test_other_hosts_are_refused(host, port):
    assert refuses(host, port)


@pytest.mark.parametrize("unit", ["loki", "alloy", "grafana-server"])
def test_service_runs_and_starts_at_boot(host, unit):
    assert host.service(unit).is_running
    assert host.service(unit).is_enabled
    pid = host.check_output(f"systemctl show -P MainPID {unit}")
    assert int(host.file(f"/proc/{pid}/oom_score_adj").content_string) >= 500


def test_loki_never_listened_on_all_addresses(host):
    """The package starts its service at once; the drop-in has made it wait for the role's configuration."""
    journal = host.check_output("journalctl -u loki --no-pager")
    assert "skipped" in journal.lower(), journal
    assert "chatbot.yml" in journal


def test_loki_configuration_is_yaml(host):
    config = yaml.safe_load(host.file("/etc/loki/chatbot.yml").content_string)
    assert config["server"]["http_listen_address"] == "127.0.0.1"
    assert config["compactor"]["retention_enabled"] is True
    assert host.run("setpriv --reuid=loki --clear-groups --regid=nogroup test -w /var/lib/loki").succeeded


def test_alloy_redacts_what_looks_like_a_secret(host):
    text = host.file("/etc/alloy/chatbot.alloy").content_string
    expressions = [json.loads(f'"{e}"') for e in re.findall(r'expression = "(.*)"$', text, re.MULTILINE)]
    assert expressions

    def redact(line: str) -> str:
        for expression in expressions:
            line = re.sub(expression, lambda m: m[0].replace(m[1], "[redacted]"), line)
        return line

    for line in (
        '{"password": "hunter2hunter2"}',
        "token=hunter2hunter2&x=1",
        "Authorization: Bearer hunter2hunter2",
        "OPENAI_API_KEY=hunter2hunter2",
        "provider said: invalid key sk-hunter2hunter2hunter2",
    ):
        assert "hunter2" not in redact(line), line
    for line in ('{"prompt_tokens": 12, "path": "/api/v1/health"}', "Accepted publickey for deploy", "task=skip-all"):
        assert redact(line) == line


def test_alloy_may_read_the_logs(host):
    assert {"adm", "systemd-journal"} <= set(host.user("alloy").groups)


def test_grafana_provisioning_is_well_formed(host):
    sources = yaml.safe_load(host.file("/etc/grafana/provisioning/datasources/chatbot.yml").content_string)
    uids = {source["uid"] for source in sources["datasources"]}
    providers = yaml.safe_load(host.file("/etc/grafana/provisioning/dashboards/chatbot.yml").content_string)
    directory = providers["providers"][0]["options"]["path"]
    dashboard = json.loads(host.file(f"{directory}/chatbot.json").content_string)
    used = {target["datasource"]["uid"] for panel in dashboard["panels"] for target in panel.get("targets", [])}
    assert used == uids
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_grafana_environment_is_well_formed(host):
    parser = configparser.RawConfigParser()
    parser.optionxform = str
    parser.read_string("[settings]\n" + host.file("/etc/grafana/chatbot.env").content_string)
    settings = dict(parser["settings"])
    domain = host.ansible.get_variables()["chatbot_domain"]
    assert settings["GF_SERVER_ROOT_URL"] == f"https://{domain}/grafana/"
    password = re.fullmatch(r"\$__file\{(.*)\}", settings["GF_SECURITY_ADMIN_PASSWORD"])[1]
    for path in (password, re.fullmatch(r"\$__file\{(.*)\}", settings["GF_SECURITY_SECRET_KEY"])[1]):
        assert host.run(f"setpriv --reuid=grafana --regid=grafana --clear-groups cat {path}").succeeded
        assert host.run(f"setpriv --reuid=nobody --regid=nogroup --clear-groups cat {path}").failed


def test_changed_password_is_set_again(host):
    """The side effects changed it; the role has found that out and mended it."""
    assert (
        host.check_output("cat /var/lib/grafana/password")
        == host.ansible.get_variables()["chatbot_grafana_admin_password"]
    )
