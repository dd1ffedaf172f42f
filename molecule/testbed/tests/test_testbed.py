"""The test bed keeps its promises: what the other scenarios take for granted is looked at here."""

import json
import subprocess
import sys

import pytest


def test_systemd_is_pid_1_and_nothing_failed(host):
    assert host.run("systemctl is-system-running").stdout.strip() == "running"
    assert "systemd" in host.file("/proc/1/exe").linked_to


def test_host_is_bare(host):
    for program in ("nginx", "dockerd", "psql", "nft", "cron"):
        assert not host.exists(program)


def test_helper_hosts_answer(host):
    assert host.addr("acme").is_resolvable
    for name, port in (("acme", 14000), ("acme", 8055), ("registry", 5000), ("apt-cache", 3142)):
        assert host.addr(name).port(port).is_reachable


def test_packages_come_through_the_cache(host):
    host.run_expect([0], "apt-get -qq update && apt-get -qq --download-only install nftables")


def test_acme_authority_is_trusted(host):
    answer = host.check_output(
        "python3 -c 'import urllib.request; print(urllib.request.urlopen(\"https://acme:14000/dir\").read().decode())'"
    )
    assert "newOrder" in answer


@pytest.mark.only_on("debian13")
def test_hosts_that_are_kept_are_left_alone(host):
    """As the second `make demo` finds its host, which had no package lists and so was settled by itself."""
    look = "stat -c '%n %Z' /root/.ssh/authorized_keys /usr/local/share/ca-certificates/*"
    before = host.check_output(look)
    hosts = [
        {"name": name, "suite": suite, "package_lists": False}
        for name, suite in (("debian13", "trixie"), ("debian12", "bookworm"))
    ]
    subprocess.run([sys.executable, "-m", "testbed", "create", "testbed", json.dumps(hosts), "--keep"], check=True)
    assert host.check_output(look) == before
