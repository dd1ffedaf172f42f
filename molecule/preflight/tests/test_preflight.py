"""Wrong inputs to site.yml: each is named with its remedy, all of them in one run, and the host stays as it was."""

from __future__ import annotations

import shutil

import pytest
from testbed.verify import play, run_as_operator

# The other host is there for its address.
pytestmark = pytest.mark.only_on("debian13")


def site(host, *arguments, **variables):
    """Run site.yml as an operator would; return its exit code and everything it printed, in one line."""
    played = play(host, "playbooks/site.yml", *arguments, **variables)
    return played.code, played.words


@pytest.fixture
def name(host):
    return host.ansible.get_variables()["inventory_hostname"]


@pytest.fixture
def unchanged(host):
    """Fail the test when the host is not afterwards what it was before."""

    def state():
        return host.check_output(
            "dpkg-query -W; find /etc /usr/local /opt -type f -exec sha256sum {} + | sort;"
            "systemctl list-unit-files --type=service,timer"
        )

    before = state()
    yield
    assert state() == before


@pytest.fixture
def old_system(host):
    """Make the host say that it is a Debian that is no longer supported."""
    files = {"/etc/debian_version": "11.9", "/etc/os-release": 'NAME="Debian GNU/Linux"\nID=debian\nVERSION_ID="11"'}
    for number, (path, text) in enumerate(files.items()):
        host.check_output(f"echo %s > /run/fake-{number} && mount --bind /run/fake-{number} {path}", text)
    yield
    for path in files:
        host.check_output(f"umount {path}")


@pytest.fixture
def port_taken(host):
    host.check_output("systemd-run --unit=squatter python3 -m http.server 80")
    host.check_output("timeout 20 sh -c 'until ss -Hltn sport = :80 | grep -q .; do sleep 0.2; done'")
    yield
    host.check_output("systemctl stop squatter")


@pytest.mark.usefixtures("unchanged")
def test_missing_domain(host, name):
    code, output = site(host, chatbot_domain="")
    assert code != 0
    assert f"{name} is not ready; nothing was changed. 1 problem:" in output
    assert "chatbot_domain has no value." in output
    assert "changed=0" in output


@pytest.mark.usefixtures("unchanged")
def test_inventory_of_an_earlier_version(host, name, tmp_path):
    directory = tmp_path / "inventory"
    shutil.copytree(host.ansible.get_variables()["testbed_directory"], directory)
    shared = directory / "group_vars/all/1-shared.yml"
    lines = shared.read_text().splitlines(keepends=True)
    shared.write_text("".join(line for line in lines if not line.startswith("chatbot_address_")))
    command = ["ansible-playbook", f"--inventory={directory}/hosts.yml", f"--limit={name}", "playbooks/site.yml"]
    played = run_as_operator(command)
    assert played.code != 0
    assert f"{name} is not ready; nothing was changed. 1 problem:" in played.words
    assert "does not know chatbot_address_blue, chatbot_address_green. Copy what" in played.words


@pytest.mark.usefixtures("unchanged", "old_system", "port_taken")
def test_everything_wrong_is_named_in_one_run(host):
    code, output = site(
        host,
        chatbot_domain="https://chat.example.org/",
        chatbot_environment="staging",
        chatbot_secret_key="CHANGE_ME",
        chatbot_valkey_password="short",
        chatbot_backup_password="",
        chatbot_admin_authorized_keys=["not a key"],
        preflight_disk_paths=["/mnt/small"],
        preflight_memory_minimum=99_000_000,
        preflight_renamed_variables={"chatbot_network_name": "chatbot_bridge_name"},
    )
    assert code != 0
    assert "11 problems:" in output
    for expected in (
        'chatbot_domain is "https://chat.example.org/", which is not a host name',
        'chatbot_environment is "staging"',
        "chatbot_admin_authorized_keys holds no OpenSSH public key",
        "chatbot_network_name is now called chatbot_bridge_name",
        "chatbot_secret_key is a placeholder",
        "chatbot_valkey_password has fewer than 16 characters",
        "chatbot_backup_password has no value",
        "This host runs Debian 11",
        "/mnt/small has 64 MB free, 2048 MB are needed",
        "MB of memory and swap, 99000000 MB are needed",
        "Port 80 is taken by python3",
    ):
        assert expected in output, output
    assert "ansible-vault edit .cache/testbed/preflight/group_vars/all/vault.yml" in output, (
        "the remedy is a command to copy"
    )
    assert "CHANGE_ME" not in output, "values of secrets are not shown"
    # The remedy for the port is the command that the report names.
    pid = output.split("Port 80 is taken by python3 (process ")[1].split(")")[0]
    assert host.check_output("ps -o unit= -p %s", pid).strip() == "squatter.service"


@pytest.mark.usefixtures("unchanged")
def test_check_mode_finds_the_same(host):
    code, output = site(host, "--check", "--diff", chatbot_secret_key="CHANGE_ME")
    assert code != 0
    assert "chatbot_secret_key is a placeholder" in output


def test_production_needs_a_domain_in_dns(host):
    code, output = site(
        host,
        chatbot_environment="production",
        chatbot_domain="chat.nobody.invalid",
        chatbot_contact_email="admin@nobody.invalid",
    )
    assert code != 0
    assert "chat.nobody.invalid has no address in DNS" in output


def test_production_needs_a_domain_that_leads_here(host):
    elsewhere = "debian12.preflight.example.test"
    code, output = site(host, chatbot_environment="production", chatbot_domain=elsewhere)
    assert code != 0
    assert f"{elsewhere} leads to" in output
    assert f"this host is {host.ansible.get_variables()['ansible_host']}" in output


def test_unreachable_host_is_one_clear_error(host):
    code, output = site(host, ansible_host="127.0.0.1", ansible_port=9)
    assert code != 0
    assert "127.0.0.1" in output
    assert "preflight :" not in output, "nothing else is tried"
