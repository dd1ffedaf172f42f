"""Who reaches whom, as the example inventories say it: Ansible itself resolves the shared variables."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from repository import PROGRAMS, ROOT

ASKED = (
    "chatbot_database_host",
    "chatbot_database_clients",
    "chatbot_exporter_address",
    "postgresql_clients",
    "postgresql_listen_addresses",
    "postgresql_max_connections",
    "valkey_listen_address",
    "firewall_container_clients",
    "firewall_system_rules",
    "chatbot_publish_address",
    "_chatbot_alone",
    "_chatbot_database_url",
    "_chatbot_valkey_url",
    "prometheus_targets_chatbot",
    "prometheus_targets_node",
)
ROLES_ASKED = ("postgresql", "valkey", "firewall", "chatbot", "prometheus")


def resolve(inventory: str, directory: Path) -> dict[str, dict[str, Any]]:
    """The variables of every host of an inventory, with the defaults of the roles below its own."""
    (directory / "roles").mkdir()
    for role in ROLES_ASKED:
        for part in ("defaults", "vars", "files"):
            target = directory / "roles" / role / part
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / "roles" / role / part).is_dir():
                target.symlink_to(ROOT / "roles" / role / part)
        # Nothing but its variables.
        (directory / "roles" / role / "tasks").mkdir()
        (directory / "roles" / role / "tasks/main.yml").write_text("[]\n")
    play = {
        "hosts": "all",
        "gather_facts": False,
        "connection": "local",
        "roles": list(ROLES_ASKED),
        "tasks": [
            {
                "ansible.builtin.copy": {
                    "content": "{{ {" + ", ".join(f"'{name}': {name}" for name in ASKED) + "} | to_json }}",
                    "dest": f"{directory}/{{{{ inventory_hostname }}}}.json",
                    "mode": "0600",
                },
            }
        ],
    }
    (directory / "ask.yml").write_text(json.dumps([play]))
    done = subprocess.run(
        [
            PROGRAMS / "ansible-playbook",
            f"--inventory={ROOT / 'inventories' / inventory}",
            "--extra-vars=ansible_become=false ansible_python_interpreter={{ansible_playbook_python}}",
            directory / "ask.yml",
        ],
        cwd=ROOT,
        env=os.environ | {"LC_ALL": "C.UTF-8", "ANSIBLE_ROLES_PATH": str(directory / "roles")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return {path.stem: json.loads(path.read_text()) for path in directory.glob("*.json")}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return resolve("cluster", tmp_path_factory.mktemp("cluster"))


def test_one_vps_keeps_to_its_sockets(tmp_path: Path) -> None:
    vps = resolve("single", tmp_path)["vps"]
    assert vps["postgresql_clients"] == []
    assert vps["postgresql_listen_addresses"] == vps["valkey_listen_address"] == vps["chatbot_publish_address"] == ""
    assert vps["postgresql_max_connections"] == 60
    assert vps["firewall_container_clients"] == vps["firewall_system_rules"] == []
    assert vps["chatbot_exporter_address"] == "127.0.0.1"
    assert vps["_chatbot_alone"] is True
    assert vps["_chatbot_database_url"] == "postgresql+psycopg://chatbot@/chatbot?host=/run/postgresql"
    assert vps["_chatbot_valkey_url"] == "unix:///run/valkey/valkey.sock"
    assert {target["address"] for target in vps["prometheus_targets_chatbot"]} == {"127.0.0.1:8101", "127.0.0.1:8102"}


def test_databases_of_the_cluster_are_for_the_application(cluster: dict[str, dict[str, Any]]) -> None:
    assert {name: host["postgresql_listen_addresses"] for name, host in cluster.items()} == {
        "edge1": "",
        "app1": "",
        "app2": "",
        "db1": "10.0.0.13",
    }
    assert cluster["db1"]["postgresql_clients"] == ["10.0.0.11", "10.0.0.12"]
    assert cluster["db1"]["postgresql_max_connections"] == 100
    opened = {(tuple(rule["ports"]), tuple(rule["sources"])) for rule in cluster["db1"]["firewall_system_rules"]}
    assert opened == {((5432, 6379), ("10.0.0.11", "10.0.0.12")), ((9100, 9113, 9187), ("10.0.0.10",))}


def test_application_of_the_cluster_is_for_nginx_and_the_monitoring(cluster: dict[str, dict[str, Any]]) -> None:
    application = cluster["app2"]
    assert application["chatbot_publish_address"] == "10.0.0.12"
    assert application["firewall_container_clients"] == ["10.0.0.10"]
    assert application["_chatbot_alone"] is False
    assert "@10.0.0.13/chatbot?sslmode=verify-full&" in application["_chatbot_database_url"]
    assert application["_chatbot_valkey_url"].startswith("valkeys://10.0.0.13:6379?ssl_check_hostname=true&")
    assert cluster["db1"]["firewall_container_clients"] == []


def test_monitoring_of_the_cluster_asks_every_host(cluster: dict[str, dict[str, Any]]) -> None:
    asked = cluster["edge1"]
    assert {target["address"] for target in asked["prometheus_targets_node"]} == {
        "127.0.0.1:9100",
        "10.0.0.11:9100",
        "10.0.0.12:9100",
        "10.0.0.13:9100",
    }
    assert {(target["address"], target["labels"]["host"]) for target in asked["prometheus_targets_chatbot"]} == {
        ("10.0.0.11:8101", "app1"),
        ("10.0.0.11:8102", "app1"),
        ("10.0.0.12:8101", "app2"),
        ("10.0.0.12:8102", "app2"),
    }
    assert {name: host["chatbot_exporter_address"] for name, host in cluster.items()} == {
        "edge1": "127.0.0.1",
        "app1": "10.0.0.11",
        "app2": "10.0.0.12",
        "db1": "10.0.0.13",
    }
