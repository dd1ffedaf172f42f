"""Who gets in over SSH, who does not, and what the role does when a change would lock the administrator out."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from testbed.verify import play

SCENARIO = Path(__file__).resolve().parent.parent
REPOSITORY = SCENARIO.parent.parent
DROP_IN = "/etc/ssh/sshd_config.d/00-chatbot.conf"


def ssh(host: Any, user: str, *options: str, command: str = "true") -> subprocess.CompletedProcess[str]:
    """Log in from the control node with the inventory's key, over a connection of its own."""
    variables = host.ansible.get_variables()
    return subprocess.run(
        [
            "ssh", "-o", "BatchMode=yes", "-o", "ControlPath=none", "-o", "ConnectTimeout=20",
            *shlex.split(variables["ansible_ssh_common_args"]), "-i", variables["ansible_ssh_private_key_file"],
            *options, "-l", user, variables["ansible_host"], command,
        ],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def root(host: Any) -> Any:
    """The host with root's rights: testinfra logs in as the administrator."""
    with host.sudo():
        yield host


def test_the_administrator_gets_in_with_the_key_and_becomes_root(host: Any) -> None:
    run = ssh(host, "deploy", command="sudo -n id -u")
    assert (run.returncode, run.stdout.strip()) == (0, "0"), run.stderr
    assert "Authorized users only." in run.stderr


def test_root_does_not_get_in_with_the_same_key(host: Any) -> None:
    run = ssh(host, "root")
    assert run.returncode == 255
    assert "Permission denied" in run.stderr


def test_others_do_not_get_in_with_the_same_key(root: Any) -> None:
    root.check_output(
        "id stranger >/dev/null 2>&1 || useradd --create-home --password '*' stranger;"
        " install -d -o stranger -m 700 ~stranger/.ssh;"
        " install -o stranger -m 600 ~deploy/.ssh/authorized_keys ~stranger/.ssh/authorized_keys"
    )
    run = ssh(root, "stranger")
    assert run.returncode == 255
    assert "Permission denied" in run.stderr


def test_only_keys_are_offered(host: Any) -> None:
    run = ssh(host, "deploy", "-v", "-o", "PreferredAuthentications=none")
    assert run.returncode == 255
    assert "Authentications that can continue: publickey\n" in run.stderr


def test_outdated_algorithms_are_refused(host: Any) -> None:
    for option in ("KexAlgorithms=diffie-hellman-group14-sha256", "HostKeyAlgorithms=ecdsa-sha2-nistp256"):
        run = ssh(host, "deploy", "-o", option)
        assert run.returncode == 255
        assert "no matching" in run.stderr.lower()


def test_tunnels_reach_loopback_but_not_the_other_way(root: Any) -> None:
    # Before ssh-audit: its many visits earn loopback a penalty from OpenSSH 10.
    forward = ssh(root, "deploy", "-o", "ExitOnForwardFailure=yes", "-R", "18999:127.0.0.1:22")
    assert forward.returncode == 255
    assert ssh(root, "deploy", "-W", "127.0.0.1:22").stdout.startswith("SSH-2.0-")


def test_ssh_audit_finds_no_failure(root: Any) -> None:
    # Exit codes: 0 good, 1 no connection, 2 warnings, 3 failures.
    audit = root.run("ssh-audit --no-colors --level=fail 127.0.0.1")
    assert audit.rc in (0, 2), audit.stdout


def test_a_stronger_file_is_found_and_nothing_changes(root: Any) -> None:
    """A file that sshd reads first opens password logins: the run fails, the drop-in is the old one, login goes on."""
    before = root.check_output(f"cat {DROP_IN}")
    root.check_output("echo 'PasswordAuthentication yes' > /etc/ssh/sshd_config.d/0-other.conf")
    played = play(root, SCENARIO / "converge.yml", ssh_max_auth_tries=5)
    root.check_output("rm /etc/ssh/sshd_config.d/0-other.conf")
    assert played.code != 0
    assert "The SSH configuration was put back" in played.words
    assert "passwordauthentication no" in played.words
    assert root.check_output(f"cat {DROP_IN}; ls {DROP_IN}*").strip() == f"{before}\n{DROP_IN}".strip()
    assert ssh(root, "deploy").returncode == 0


def test_a_login_that_fails_after_the_change_brings_the_old_configuration_back(root: Any) -> None:
    """AllowUsers without the administrator passes every check of sshd: only the login afterwards shows it."""
    before = root.check_output(f"cat {DROP_IN}")
    played = play(root, SCENARIO / "converge.yml", ssh_allow_users=["stranger"])
    assert played.code != 0
    assert "The SSH configuration was put back" in played.words
    assert root.check_output(f"cat {DROP_IN}") == before
    assert ssh(root, "deploy").returncode == 0


def test_nothing_changes_before_the_administrator_can_log_in(root: Any) -> None:
    before = root.check_output(f"cat {DROP_IN}")
    played = play(root, SCENARIO / "converge.yml", ssh_admin_user="stranger", ssh_max_auth_tries=5)
    assert played.code != 0
    assert "stranger cannot log in" in played.words
    assert "so nothing was changed" in played.words
    assert root.check_output(f"cat {DROP_IN}") == before


def test_moving_the_port_at_once_is_refused(host: Any) -> None:
    played = play(host, SCENARIO / "converge.yml", ssh_ports=[2222])
    assert played.code != 0
    assert "Move in two steps" in played.words


@pytest.mark.parametrize(
    ("extra", "cause", "remedy"),
    [
        ({"ansible_ssh_private_key_file": "/dev/null"}, "Permission denied", "ssh-copy-id root@"),
        ({"ansible_host": "127.0.0.1", "ansible_port": 9}, "Connection refused", "Check ansible_host and ansible_port"),
        (
            {"ansible_ssh_common_args": "-o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=yes"},
            "host key",
            "ssh-keyscan",
        ),
    ],
)
def test_a_host_that_cannot_be_reached_is_explained(host: Any, extra: dict[str, Any], cause: str, remedy: str) -> None:
    played = play(host, REPOSITORY / "playbooks/connect.yml", **extra)
    assert played.code != 0
    assert cause in played.words
    assert remedy in played.words
