"""What the packet filter lets through, asked from other hosts, and whether its safety net holds.

The control node is one other host. A network namespace behind the bridge br-chatbot stands for a container of the
application.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testbed.docker import execute
from testbed.verify import eventually, play

SCENARIO = Path(__file__).resolve().parent.parent
RULES = "/etc/nftables.d/chatbot.nft"
TOOL = "/usr/local/sbin/chatbot-firewall"
PUBLIC, NEIGHBOURS, ABSENT_NETWORK, CLOSED, MODEL = 80, 9000, 9001, 8000, 8080
GATEWAY = "172.30.10.1"
# Lets nobody in any more; what is established goes on.
SHUT = """
add table inet chatbot_firewall
delete table inet chatbot_firewall
table inet chatbot_firewall {
  chain input {
    type filter hook input priority filter; policy drop;
    iifname "lo" accept
    ct state established,related accept
  }
}
"""


def address(host: Any) -> str:
    """Return the host's address as the control node sees it."""
    return host.ansible.get_variables()["ansible_host"]


def answers(host: Any, port: int) -> bool:
    """Return whether a new TCP connection from the control node gets through."""
    try:
        socket.create_connection((address(host), port), timeout=2).close()
    except OSError:
        return False
    return True


def wait_for(host: Any, port: int, seconds: float) -> bool:
    """Return whether the port answers within the given time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answers(host, port):
            return True
        time.sleep(0.5)
    return False


def wait_for_banner(host: Any, seconds: float) -> bool:
    """Return whether sshd greets within the given time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with socket.create_connection((address(host), 22), timeout=5) as connection:
                if connection.recv(4) == b"SSH-":
                    return True
        except OSError:
            pass
        time.sleep(2)
    return False


def neighbour_of(host: Any) -> str:
    """Return the container of the other host under test."""
    name = host.ansible.get_variables()["inventory_hostname"]
    return {"debian13": "firewall-debian12", "debian12": "firewall-debian13"}[name]


def namespace_answers(host: Any, port: int) -> bool:
    """Return whether the application's container reaches a port of the bridge's address."""
    probe = f"import socket; socket.create_connection(('{GATEWAY}', {port}), timeout=2)"
    return host.run(f'ip netns exec app python3 -c "{probe}"').rc == 0


def own_rules(host: Any) -> str:
    """Return the loaded rules without counters and learned addresses."""
    chains = [
        f"nft --stateless list chain inet chatbot_firewall {chain}"
        for chain in ("ssh", "input", "to_containers", "output")
    ]
    return host.check_output(" && ".join(chains))


@pytest.fixture(scope="module", autouse=True)
def listeners(host: Any) -> Iterator[None]:
    """Listeners on all addresses, as a careless package starts them."""
    ports = (PUBLIC, NEIGHBOURS, ABSENT_NETWORK, CLOSED, MODEL)
    for port in ports:
        server = f"python3 -m http.server {port} --bind 0.0.0.0"
        unit = f"test-{port}.service"
        host.check_output(f"systemctl stop {unit} 2>/dev/null; systemd-run --quiet --collect --unit={unit} {server}")
    for port in ports:
        host.check_output(f"timeout 30 sh -c 'until ss -Hltn sport = :{port} | grep -q LISTEN; do sleep 0.2; done'")
    yield
    for port in ports:
        host.run(f"systemctl stop test-{port}.service")


@pytest.fixture(scope="module")
def container(host: Any) -> Iterator[None]:
    """A network namespace on the application's bridge."""
    host.run("ip netns del app; ip link del br-chatbot")
    host.check_output(
        "ip link add br-chatbot type bridge && ip addr add %s/24 dev br-chatbot && ip link set br-chatbot up"
        " && ip netns add app && ip link add app-host type veth peer name eth0 netns app"
        " && ip link set app-host master br-chatbot up && ip -n app addr add 172.30.10.2/24 dev eth0"
        " && ip -n app link set eth0 up && ip -n app link set lo up",
        GATEWAY,
    )
    yield
    host.run("ip netns del app; ip link del br-chatbot")


def test_another_host_reaches_only_what_is_open(host: Any) -> None:
    assert answers(host, 22)
    assert answers(host, PUBLIC)
    assert answers(host, NEIGHBOURS), "a rule with a source lets that source in"
    assert not answers(host, ABSENT_NETWORK), "a rule with a source lets others in"
    assert not answers(host, CLOSED)
    assert not answers(host, MODEL), "the local model is reachable from outside"


def test_loopback_stays_open(host: Any) -> None:
    for port in (CLOSED, MODEL, ABSENT_NETWORK):
        host.check_output(f"python3 -c \"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=2)\"")


@pytest.mark.usefixtures("container")
def test_only_the_model_is_open_to_the_containers(host: Any) -> None:
    assert namespace_answers(host, MODEL)
    assert not namespace_answers(host, CLOSED)


@pytest.mark.usefixtures("container")
def test_a_flood_of_ssh_connections_is_cut(host: Any) -> None:
    flood = (
        "import socket\n"
        "passed = 0\n"
        "for _ in range(80):\n"
        "    try:\n"
        f"        socket.create_connection(('{GATEWAY}', 22), timeout=0.2).close(); passed += 1\n"
        "    except OSError:\n"
        "        pass\n"
        "print(passed)\n"
    )
    passed = int(host.check_output("ip netns exec app python3 -c %s", flood))
    assert 55 <= passed < 80
    assert answers(host, 22), "somebody else's flood shuts us out"
    # sshd itself still has to work off what got through.
    assert wait_for_banner(host, 30)


@pytest.mark.usefixtures("container")
def test_a_neighbour_reaches_published_ports_but_no_container_by_its_address(host: Any) -> None:
    """The neighbour sends packets for the containers' network through this host, as any machine beside it can."""
    neighbour = neighbour_of(host)
    connect = "python3 -c 'import socket; socket.create_connection((\"{}\", 8000), timeout=2)' && echo in || echo out"
    publish = (
        "add table ip published; add chain ip published c { type nat hook prerouting priority dstnat; };"
        " add rule ip published c tcp dport 8000 dnat to 172.30.10.2"
    )
    host.check_output("sysctl -qw net.ipv4.ip_forward=1 && ip -n app route add default via %s", GATEWAY)
    host.check_output("systemd-run --quiet --collect --unit=test-app ip netns exec app python3 -m http.server 8000")
    # A machine beside it need not have these rules.
    execute(neighbour, "nft flush chain inet chatbot_firewall output")
    execute(neighbour, f"ip route replace 172.30.10.0/24 via {address(host)}")
    try:
        eventually(lambda: host.run("ip netns exec app ss -Hltn sport = :8000 | grep -q .").succeeded)
        assert execute(neighbour, connect.format("172.30.10.2")) == "out"
        host.check_output("nft %s", publish)
        assert execute(neighbour, connect.format(address(host))) == "in"
        host.check_output("nft delete table inet chatbot_firewall")
        assert execute(neighbour, connect.format("172.30.10.2")) == "in", "without the rule it would have worked"
    finally:
        execute(neighbour, "ip route del 172.30.10.0/24; systemctl restart chatbot-firewall.service")
        host.run("nft delete table ip published; systemctl stop test-app; ip -n app route del default")
        host.check_output("systemctl restart chatbot-firewall.service")


def test_what_is_meant_for_the_application_does_not_leave_the_host(host: Any) -> None:
    """Docker makes the bridge after nginx has started; until then somebody outside may have the address, and answer."""
    neighbour = neighbour_of(host)
    connect = "python3 -c \"import socket; socket.create_connection(('172.30.10.2', 22), timeout=3)\""
    host.run("ip netns del app; ip link del br-chatbot")
    execute(neighbour, "ip addr add 172.30.10.2/32 dev lo")
    host.check_output("ip route replace 172.30.10.0/24 via %s", execute(neighbour, "hostname --ip-address").split()[0])
    try:
        assert "ConnectionRefusedError" in host.run(connect).stderr
        host.check_output("nft flush chain inet chatbot_firewall output")
        host.check_output(connect)
    finally:
        host.run("ip route del 172.30.10.0/24; systemctl restart chatbot-firewall.service")
        execute(neighbour, "ip addr del 172.30.10.2/32 dev lo")


def test_foreign_tables_and_name_resolution_survive(host: Any) -> None:
    foreign = "nft list table inet foreign"
    host.check_output("nft 'add table inet foreign; add chain inet foreign c; add rule inet foreign c counter'")
    nat = host.check_output("nft --stateless list ruleset | grep -c dnat || true")
    for action in ("reload", "restart", "stop", "start"):
        host.check_output(f"systemctl {action} chatbot-firewall.service")
        assert host.run(foreign).rc == 0, action
        assert host.check_output("getent hosts registry"), action
        assert (host.run("nft list table inet chatbot_firewall").rc != 0) == (action == "stop")
    assert host.check_output("nft --stateless list ruleset | grep -c dnat || true") == nat
    host.check_output("nft delete table inet foreign")
    assert not answers(host, CLOSED)


def test_rules_that_shut_everybody_out_are_taken_back(host: Any) -> None:
    before = own_rules(host)
    host.check_output("printf '%%s' %s > %s.wanted", SHUT, RULES)
    assert "to be confirmed" in host.check_output(f"{TOOL} apply 10")
    assert not answers(host, 22), "the new rules were not in force"
    assert wait_for(host, 22, 20), "the old rules did not come back"
    assert own_rules(host) == before
    assert host.run(f"{TOOL} confirm").rc != 0, "what was taken back cannot be confirmed"


def test_unconfirmed_rules_do_not_survive_a_reboot(host: Any) -> None:
    before = own_rules(host)
    host.check_output("printf '%%s' %s > %s.wanted", SHUT, RULES)
    # What a reboot does: the timer is gone, and the unit starts from the file. In one command: nobody gets in again.
    reboot = "systemctl stop chatbot-firewall-revert.timer && systemctl restart chatbot-firewall.service"
    host.check_output(f"{TOOL} apply 60 && ! nft list chain inet chatbot_firewall ssh 2>/dev/null && {reboot}")
    assert own_rules(host) == before
    assert answers(host, 22)


def test_broken_rules_change_nothing(host: Any) -> None:
    before = own_rules(host)
    host.check_output("echo 'table inet chatbot_firewall { nonsense }' > %s.wanted", RULES)
    assert host.run(f"{TOOL} apply 5").rc != 0
    assert own_rules(host) == before


def test_ansible_that_locks_itself_out_fails_and_gets_back_in(host: Any) -> None:
    """The role with an SSH source that this machine is not: the run must fail, and the host must open again."""
    before = own_rules(host)
    played = play(host, SCENARIO / "converge.yml", firewall_ssh_sources=["192.0.2.0/24"])
    assert played.code != 0
    assert "the host has taken the old ones back" in played.words, played.output[-3000:]
    assert answers(host, 22)
    assert own_rules(host) == before
