"""What a hardened host does by itself and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from testbed.verify import play

CONVERGE = Path(__file__).parents[1] / "converge.yml"


def test_the_administrator_becomes_root_without_a_password(host: Any) -> None:
    assert host.check_output("runuser -u deploy -- sudo -n id -u") == "0"


def test_the_administrator_has_no_password(host: Any) -> None:
    assert host.check_output("getent shadow deploy").split(":")[1] in ("*", "!", "!*")


def test_keys_that_are_not_listed_are_gone(host: Any) -> None:
    """prepare.yml has put a stranger's key there, as a former colleague would leave it."""
    keys = host.check_output("cat ~deploy/.ssh/authorized_keys").splitlines()
    assert len(keys) == 1
    assert "former-colleague" not in keys[0]


def test_the_authorities_of_the_test_bed_are_trusted(host: Any) -> None:
    """TLS to the ACME authority's API is checked against the host's trust store, which the role has filled."""
    probe = (
        "import socket, ssl; connection = socket.create_connection(('acme', 14000), 10); "
        "ssl.create_default_context().wrap_socket(connection, server_hostname='acme')"
    )
    host.check_output("python3 -c %s", probe)


@pytest.fixture(scope="module")
def dry_run(host: Any) -> str:
    """What unattended-upgrade would do now, with another role's list of held packages beside the role's own."""
    drop_in = "/etc/apt/apt.conf.d/61test-other-role"
    host.check_output(f"echo 'Unattended-Upgrade::Package-Blacklist {{ \"^held-by-another-role\"; }};' > {drop_in}")
    output = host.check_output("unattended-upgrade --dry-run --debug 2>&1")
    host.check_output(f"rm {drop_in}")
    return output


def test_security_updates_are_allowed(host: Any, dry_run: str) -> None:
    allowed = re.search(r"Allowed origins are: (.*)", dry_run)
    assert allowed is not None, dry_run
    assert f"codename={host.system_info.codename}-security,label=Debian-Security" in allowed.group(1)


def test_lists_of_held_packages_add_up(dry_run: str) -> None:
    held = re.search(r"Initial blacklist ?: (.*)", dry_run)
    assert held is not None, dry_run
    assert "nano$" in held.group(1)
    assert "^held-by-another-role" in held.group(1)


def test_upgrades_come_by_themselves(host: Any) -> None:
    timers = host.check_output("systemctl list-timers --no-legend apt-daily.timer apt-daily-upgrade.timer")
    assert len(timers.splitlines()) == 2
    settings = host.check_output("apt-config dump")
    assert 'APT::Periodic::Unattended-Upgrade "1";' in settings
    assert 'Unattended-Upgrade::Automatic-Reboot-Time "04:30";' in settings


def test_time_comes_from_the_chosen_server_and_the_machines_clock_is_left_alone(host: Any) -> None:
    assert host.service("chrony").is_running
    assert "ntp.example.test" in host.check_output("chronyc -N sources -a 2>/dev/null || chronyc -N sources")
    assert "-x" in host.check_output("tr '\\0' ' ' < /proc/$(pidof chronyd | awk '{print $NF}')/cmdline").split()


def test_the_journal_is_kept_and_limited(host: Any) -> None:
    host.check_output("journalctl --flush")
    assert host.run("find /var/log/journal -name '*.journal' | grep -q .").rc == 0
    limit = host.check_output(
        "journalctl --unit=systemd-journald --no-pager --output=cat | grep 'System Journal' | tail -1"
    )
    assert re.search(r"max 123(\.0)?M", limit), limit


def test_redirects_and_forged_routes_are_refused(host: Any) -> None:
    for key in ("accept_redirects", "secure_redirects", "send_redirects", "accept_source_route"):
        assert host.sysctl(f"net.ipv4.conf.all.{key}") == 0
    assert host.sysctl("net.ipv4.tcp_rfc1337") == 1
    assert host.sysctl("net.ipv4.ip_forward") == 1, "Docker needs forwarding"


def test_settings_of_the_machine_below_are_untouched(host: Any) -> None:
    """kernel.* of a container are the machine's own: the role must not have asked for them."""
    assert host.run("grep -E '^(kernel|fs|vm)\\.' /etc/sysctl.d/90-chatbot.conf").rc == 1
    assert host.check_output("sysctl -n kernel.core_pattern") != "|/bin/false"


def test_a_crash_leaves_no_core_file(host: Any) -> None:
    """With a large limit asked for, a login session and a service may still write none."""
    assert host.check_output("su -l deploy -c 'ulimit -Hc'") == "0"
    crash = "cd $(mktemp -d) && ulimit -c; ( ulimit -c unlimited 2>/dev/null; sh -c 'kill -SEGV $$' ); ls -A"
    assert host.check_output("systemd-run --quiet --collect --pipe --wait sh -c %s 2>/dev/null || true", crash) == "0"


def test_login_shells_make_private_files(host: Any) -> None:
    assert host.check_output("su -l deploy -c 'umask'") == "0027"


def test_an_archive_that_cannot_be_reached_is_named_and_no_package_is_blamed(host: Any) -> None:
    """apt-get update calls that a success, so that each package of the role is one that does not exist."""
    proxy = "/etc/apt/apt.conf.d/99nobody-listens"
    host.check_output("mv /var/lib/apt/lists /var/lib/apt/lists.kept")
    host.check_output('echo \'Acquire { http::Proxy "http://127.0.0.1:9"; Retries "0"; };\' > %s', proxy)
    try:
        played = play(host, CONVERGE, "--check")
    finally:
        host.check_output("rm %s && rm -r /var/lib/apt/lists && mv /var/lib/apt/lists.kept /var/lib/apt/lists", proxy)
    assert played.code == 2
    assert "apt could fetch no package lists" in played.words
    assert "Could not connect to 127.0.0.1:9" in played.words
    assert "sudo apt-get update --error-on=any" in played.words
    assert "No package matching" not in played.words
