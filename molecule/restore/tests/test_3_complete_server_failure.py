"""The runbook of the same name, executed: the host is destroyed, and an empty one takes its place.

All that is known beside the runbook is the inventory with its vault, which has the repository's address. The roles that
have no data in any backup are left out by their tags: they have scenarios of their own.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import bulk
import pytest
import yaml
from conftest import ADMINISTRATOR, DOMAIN, HOST, OBJECTS, address, data, execute
from testbed import hosts
from testbed.chat import ChatClient
from testbed.docker import docker
from testbed.runbook import blocks
from testbed.verify import REPOSITORY, eventually

pytestmark = pytest.mark.timeout(2400)

LEFT_OUT = "hardening,ssh,firewall,fail2ban,node_exporter,prometheus,alertmanager,loki,grafana,alloy"
VAULT_PASSWORD = "testbed-vault-0123456789abcdef"
FORM = "--limit\r\nContent-Disposition: form-data; name=file; filename=notes.txt\r\n\r\n{}\r\n--limit--\r\n"
# The certificate that the site shows.
SERIAL = (
    "openssl s_client -connect 127.0.0.1:443 -servername chat.localhost </dev/null 2>/dev/null"
    " | openssl x509 -noout -serial"
)


def section(name: str) -> list[list[str]]:
    """The commands of a section of the runbook."""
    chosen = [block for block in blocks("complete-server-failure") if block.heading == name]
    return [shlex.split(line) for block in chosen for line in block.commands.splitlines()]


@pytest.fixture(scope="module")
def inventory(tmp_path_factory) -> Path:
    """What the operator has: hosts.yml, variables, and a vault that a password opens."""
    folder = tmp_path_factory.mktemp("inventories") / "prod"
    variables = folder / "group_vars/all"
    variables.mkdir(parents=True)
    known = hosts.directory("restore")
    for name in ("1-shared.yml", "3-generated.yml"):
        (variables / name).write_text((known / "group_vars/all" / name).read_text())
    (variables / "4-choices.yml").write_text((REPOSITORY / "molecule/restore/vars/site.yml").read_text())
    (folder.parent / "password").write_text(VAULT_PASSWORD)
    # The secrets of the test bed.
    program = str(Path(sys.executable).with_name("ansible-vault"))
    plain = (known / "group_vars/all/2-testbed.yml").read_text()
    subprocess.run(
        [program, "encrypt", f"--vault-password-file={folder.parent}/password", f"--output={variables}/2-vault.yml"],
        input=plain, text=True, check=True, capture_output=True,
    )  # fmt: skip
    assert "testbed-backup" not in (variables / "2-vault.yml").read_text()
    return folder


@pytest.fixture(scope="module")
def follow(inventory):
    """Do what a command of the runbook says, with this inventory in place of inventories/prod."""

    def run(command: list[str]) -> tuple[int, str]:
        known = yaml.safe_load((hosts.directory("restore") / "hosts.yml").read_text())
        known["all"]["hosts"].pop("objects")
        known["all"]["children"].pop("objects")
        (inventory / "hosts.yml").write_text(json.dumps(known))
        words = [word.replace("inventories/prod", str(inventory)) for word in command]
        # Molecule's strategy stays: it is the commands that are tried here, and they take a third of the time with it.
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("ANSIBLE_") or name.startswith("ANSIBLE_STRATEGY") or "WARNINGS" in name
        }
        environment = kept | {
            "ANSIBLE_VAULT_PASSWORD_FILE": f"{inventory.parent}/password",
            "ANSIBLE_SKIP_TAGS": LEFT_OUT,
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_SSH_CONTROL_PATH": "/tmp/testbed-restore-book-%%C",  # noqa: S108
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        log = inventory.parent / "log"
        with log.open("w") as output:
            done = subprocess.run(
                words, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, timeout=1500, check=False,
            )  # fmt: skip
        return done.returncode, " ".join(log.read_text().split())

    return run


@pytest.fixture(scope="module")
def before(authority) -> dict[str, Any]:
    """A chat with accounts, a conversation and an upload; what is to come back of it."""
    client = ChatClient(DOMAIN, address=address(), authority=authority, account=ADMINISTRATOR)
    status, conversation = client.call("POST", "/api/v1/conversations", {"title": "Before the failure"})
    assert status == 201, conversation
    path = f"/api/v1/conversations/{conversation['id']}"
    status, file = client.call(
        "POST", f"{path}/attachments", FORM.format("What is kept for ever?"),
        {"Content-Type": "multipart/form-data; boundary=limit"},
    )  # fmt: skip
    assert status == 201, file
    # No model is there: the answer is an error, and the question is kept.
    client.call("POST", f"{path}/messages", {"content": "What is kept?", "attachments": [file["id"]]})
    eventually(lambda: "What is kept?" in str(client.call("GET", path)[1]))
    execute(HOST, "docker exec $(docker ps --format '{{.Names}}' --filter name=chatbot-) python -m chatbot token create"
                  " reader@example.test --name tests --scope chat --new-account >/dev/null")  # fmt: skip
    # Nothing is asked after the backup: a browser that is seen again after a minute is written down.
    messages = client.call("GET", path)[1]["messages"]
    bulk.fill()
    size = bulk.sql("SELECT pg_size_pretty(pg_database_size(current_database()))")
    bulk.TIMES.write_text(f"{size} of database, {bulk.UPLOADS} uploads of 100 kB\n")
    with bulk.timed("backup into a local repository and into the object store"):
        execute(HOST, "systemctl start chatbot-backup", bulk.PATIENCE)
    return {
        "path": path,
        "messages": messages,
        "file": f"/api/v1/attachments/{file['id']}/content",
        "certificate": execute(HOST, SERIAL),
        "data": data(),
        "machine": execute(HOST, "cat /etc/machine-id"),
        "account": execute(HOST, "id --user chatbot"),
    }


def lose_the_host() -> None:
    """Destroy it, with its disks."""
    docker("rm", "--force", "--volumes", HOST)
    for socket in Path("/tmp").glob("testbed-restore-*"):  # noqa: S108 - connections to the host that is gone
        socket.unlink(missing_ok=True)


def order_another(account: str) -> None:
    """A provider's empty host under the same name in the inventory; the object store is as it was."""
    platforms = yaml.safe_load((REPOSITORY / "molecule/restore/molecule.yml").read_text())["platforms"]
    hosts.create("restore", [hosts.Host(**platform) for platform in platforms], keep=True)
    # Somebody else has the number that the application's account had on the old host.
    execute(HOST, f"useradd --system --uid {account} somebody-else")


def test_runbook(before, follow, authority):
    """Followed from its first command to its last."""
    lose_the_host()
    for command in section("Detection"):
        code, output = follow(command)
        assert code != 0
        assert "UNREACHABLE" in output

    order_another(before["account"])
    assert execute(HOST, "cat /etc/machine-id") != before["machine"]
    assert execute(HOST, "ls /etc/letsencrypt /var/lib/chatbot /var/lib/postgresql 2>/dev/null | wc -l") == "0"
    assert execute(OBJECTS, "systemctl is-active objects") == "active"
    said = ""
    for command in section("Commands"):
        with bulk.timed(shlex.join(command)):
            code, said = follow(command)
        assert code == 0, (command, said[-3000:])
    assert "all as its manifest says" in said
    lines = before["data"].splitlines()
    rows = sum(int(line.split("|")[1]) for line in lines if "|" in line)
    assert f"with {rows} rows, {sum('uploads/' in line for line in lines)} uploads" in said
    assert data() == before["data"]
    assert execute(HOST, "find /var/lib/chatbot ! -user chatbot") == ""
    assert execute(HOST, SERIAL) == before["certificate"]

    ChatClient._sessions.clear()
    administrator = ChatClient(DOMAIN, address=address(), authority=authority, account=ADMINISTRATOR)
    assert administrator.call("GET", before["path"])[1]["messages"] == before["messages"]
    assert administrator.call("GET", before["file"]) == (200, "What is kept for ever?")

    for command in section("Verification"):
        code, said = follow(command)
        assert code == 0, (command, said[-3000:])
    assert "restores:" in said
    assert f"conversation {before['path'].rpartition('/')[2]}" in said
    for command in section("After-care"):
        code, said = follow(command)
        assert code == 0, (command, said[-3000:])
    assert execute(HOST, SERIAL) == before["certificate"]
