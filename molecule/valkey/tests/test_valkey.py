"""Valkey as the application's container, an intruder and an operator see it."""

import socket
import time

import pytest
from testbed.verify import eventually

SOCKET = "/run/valkey/valkey.sock"


@pytest.fixture
def cli(host):
    """Run a command as the application does: an unrelated user, in the socket's group, with the password."""
    password = host.ansible.get_variables()["chatbot_valkey_password"]

    def run(*command: str, group: str = "valkey", password: str = password):
        auth = "VALKEYCLI_AUTH=%s REDISCLI_AUTH=%s" if password else "NONE=%s%s"
        arguments = " ".join(["%s"] * len(command))
        return host.run(
            f"setpriv --reuid=nobody --regid=nogroup --groups {group} env {auth} valkey-cli -s {SOCKET} {arguments}",
            password,
            password,
            *command,
        )

    return run


def test_application_can_do_its_work(cli):
    assert cli("SET", "probe", "1", "EX", "60").stdout.strip() == "OK"
    assert cli("XADD", "probe:stream", "*", "token", "Hello").rc == 0
    assert "Hello" in cli("XRANGE", "probe:stream", "-", "+").stdout
    assert cli("EVAL", "return redis.call('INCR', KEYS[1])", "1", "probe").stdout.strip() == "2"
    assert "valkey_version" in cli("INFO", "server").stdout
    assert cli("DEL", "probe", "probe:stream").stdout.strip() == "2"


def test_password_is_demanded(cli):
    assert "NOAUTH" in cli("GET", "probe", password="").stdout
    assert "PONG" not in cli("PING", password="wrong").stdout


def test_other_users_of_the_host_cannot_open_the_socket(cli):
    result = cli("PING", group="nogroup")
    assert result.rc != 0
    assert "Permission denied" in result.stdout + result.stderr


@pytest.mark.parametrize("command", ["FLUSHALL", "KEYS *", "CONFIG GET *", "SHUTDOWN", "ACL LIST"])
def test_application_cannot_administer(cli, command):
    assert "NOPERM" in cli(*command.split()).stdout


def test_no_port_is_open(host):
    address = host.ansible.get_variables()["ansible_host"]
    with pytest.raises(OSError), socket.create_connection((address, 6379), timeout=3):
        pass
    assert not host.socket("tcp://127.0.0.1:6379").is_listening


def test_memory_is_limited_and_live_answers_are_evicted_last(cli):
    """Write twice the memory in keys that expire soon: the live answer, which expires late, is still there."""
    cli("XADD", "live", "*", "token", "Hello")
    cli("EXPIRE", "live", "3600")
    script = "for i = 1, 200 do redis.call('SET', KEYS[1] .. i, string.rep('x', 16384), 'EX', 60) end return 1"
    for batch in range(40):
        assert cli("EVAL", script, "1", f"filler:{batch}:").stdout.strip() == "1"
    memory = dict(line.split(":", 1) for line in cli("INFO", "memory").stdout.splitlines() if ":" in line)
    assert int(memory["maxmemory"]) == 64 * 1024 * 1024
    assert int(memory["used_memory"]) < 72 * 1024 * 1024
    assert "evicted_keys:0" not in cli("INFO", "stats").stdout
    assert "Hello" in cli("XRANGE", "live", "-", "+").stdout


def test_killed_valkey_comes_back_with_its_keys(host, cli):
    cli("XADD", "survivor", "*", "token", "Hello")
    time.sleep(1.5)  # the append-only file is synchronised every second
    pid = host.check_output("systemctl show -P MainPID valkey-server")
    directory = host.check_output("stat -c %i /run/valkey")
    host.check_output("kill -9 %s", pid)
    eventually(lambda: cli("PING").stdout.strip() == "PONG")
    assert host.check_output("systemctl show -P MainPID valkey-server") != pid
    assert "Hello" in cli("XRANGE", "survivor", "-", "+").stdout
    assert host.check_output("stat -c %i /run/valkey") == directory


def test_socket_directory_survives_a_stop(host, cli):
    """It is mounted into the application's container: a new directory would cut the application off."""
    directory = host.check_output("stat -c %i /run/valkey")
    host.check_output("systemctl stop valkey-server")
    assert host.check_output("stat -c %i /run/valkey") == directory
    host.check_output("systemctl start valkey-server")
    assert cli("PING").stdout.strip() == "PONG"
    assert host.check_output("stat -c '%U:%G %a' /run/valkey") == "valkey:valkey 2755"


def test_socket_directory_is_made_at_boot(host):
    host.check_output("systemctl stop valkey-server && rm -r /run/valkey")
    host.check_output("systemd-tmpfiles --create --boot --prefix=/run/valkey")
    made = host.check_output("stat -c '%U:%G %a' /run/valkey")
    host.check_output("systemctl start valkey-server")
    assert made == "valkey:valkey 2755"


@pytest.mark.parametrize("line", ["maxmemory plenty", "nonsense yes", "user default on +@everything"])
def test_broken_configuration_is_found_before_it_is_installed(host, line):
    host.check_output("(grep -v '^user' /etc/valkey/chatbot.conf; echo %s) > /root/broken.conf", line)
    assert host.run("valkey-check-config /root/broken.conf").rc == 1
    assert host.run("valkey-check-config /etc/valkey/chatbot.conf").rc == 0


def test_only_valkey_comes_from_backports(host):
    if host.check_output(". /etc/os-release; echo $VERSION_CODENAME") != "bookworm":
        pytest.skip("this release ships Valkey itself")
    available = host.check_output("apt-cache policy restic").split("Candidate: ")[1].split()[0]
    assert "bpo" not in available
    installed = host.check_output("dpkg-query -W -f='${Package} ${Version}\\n' | grep bpo")
    assert {line.split()[0] for line in installed.splitlines()} == {"valkey-server", "valkey-tools"}
