"""Docker seen from outside: what it opens, what outlives it, what it keeps."""

import contextlib
import json
import socket

import pytest
from testbed.verify import eventually

IMAGE = "debian:trixie-slim"
ANSWER = (
    "use IO::Socket::INET;"
    "my $s = IO::Socket::INET->new(LocalPort => 8000, Listen => 5, ReuseAddr => 1) or die;"
    'while (my $c = $s->accept) { print $c "HTTP/1.0 200 OK\\r\\n\\r\\nhello\\n"; close $c }'
)


def run(host, command, *arguments):
    """Run a command on the host, fail the test when it fails, return what it printed."""
    return host.check_output(command, *arguments).strip()


def reachable(address, port):
    """Whether somebody outside the host gets a connection."""
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=3):
        return True
    return False


@pytest.fixture(scope="module", autouse=True)
def image(host):
    """The hub's image comes through the mirror: there is no other way to it in the test bed."""
    run(host, "docker pull --quiet %s", IMAGE)


@pytest.fixture
def container(host):
    """Start a container by its docker-run arguments; it is gone after the test."""
    names = []

    def start(*arguments):
        names.append(run(host, "docker run --detach " + " ".join(["%s"] * len(arguments)), *arguments))
        return names[-1]

    yield start
    for name in names:
        host.run("docker rm --force --volumes %s", name)


def state(host, name):
    return json.loads(run(host, "docker inspect --format '{{json .State}}' %s", name))


def settings(host):
    return host.ansible.get_variables()


def test_engine_listens_on_no_tcp_port(host):
    listeners = run(host, "ss -Hltnp")
    assert "dockerd" not in listeners
    outside = settings(host)["ansible_host"]
    assert not reachable(outside, 2375)
    assert not reachable(outside, 2376)


def test_socket_is_for_root_only(host):
    host.run_expect([0], "useradd --create-home docker-stranger || true")
    assert host.run("runuser -u docker-stranger -- docker info").rc != 0
    assert host.group("docker").members == []


@pytest.mark.parametrize("network", ["bridge", "chatbot"])
def test_published_port_is_open_to_the_host_alone(host, container, network):
    container("--network", network, "--publish", "18000:8000", IMAGE, "perl", "-e", ANSWER)
    fetch = (
        "perl -MIO::Socket::INET -e 'my $s = IO::Socket::INET->new(q(127.0.0.1:18000)) or exit 1;"
        " print $s qq(GET / HTTP/1.0\\r\\n\\r\\n); print <$s>'"
    )
    assert eventually(lambda: "hello" in host.run(fetch).stdout), "the host itself does not reach the port"
    assert not reachable(settings(host)["ansible_host"], 18000)


@pytest.mark.parametrize("network", ["bridge", "chatbot"])
def test_packets_of_containers_fit_the_uplink(host, container, network):
    name = container("--network", network, IMAGE, "sleep", "60")
    assert int(run(host, "docker exec %s cat /sys/class/net/eth0/mtu", name)) == settings(host)["testbed_mtu"]


def test_network_has_the_promised_interface_and_gateway(host):
    variables = settings(host)
    addresses = host.interface(variables["chatbot_network_bridge"]).addresses
    assert variables["chatbot_network_gateway"] in addresses


def test_other_networks_stay_in_the_private_pool(host):
    run(host, "docker network create pool-test")
    try:
        subnet = run(host, "docker network inspect --format '{{(index .IPAM.Config 0).Subnet}}' pool-test")
    finally:
        run(host, "docker network rm pool-test")
    assert subnet.startswith("172.30.") and int(subnet.split(".")[2]) >= 128


def test_logs_rotate(host, container):
    """Ten times the limit is printed; two files of at most 1 MB stay, and the newest line is among them."""
    script = (
        "i=0; while [ $i -lt 1200 ]; do head -c 6000 /dev/urandom | base64 -w0; echo; i=$((i+1)); done; echo the-end"
    )
    name = container(IMAGE, "bash", "-c", script)
    assert eventually(lambda: state(host, name)["Status"] == "exited", 90)
    size = int(run(host, "du --summarize --bytes /var/lib/docker/containers/%s", name).split()[0])
    assert size < 2.5 * 1024 * 1024
    assert "the-end" in run(host, "docker logs --tail 1 %s", name)


@pytest.mark.parametrize("event", ["systemctl restart docker", "kill -9 $(pidof dockerd)"])
def test_containers_outlive_the_engine(host, container, event):
    name = container(IMAGE, "sleep", "600")
    before = state(host, name)
    host.run_expect([0], event)
    assert eventually(lambda: host.run("docker info").rc == 0)
    assert eventually(lambda: state(host, name)["Running"])
    after = state(host, name)
    assert (after["Pid"], after["StartedAt"]) == (before["Pid"], before["StartedAt"])
    run(host, "docker exec %s true", name)


def test_engine_comes_back_after_crash_upon_crash(host):
    """The package itself allows three starts within a minute."""
    for _ in range(4):
        host.check_output("kill -9 $(pidof dockerd)")
        assert eventually(lambda: host.run("docker info").rc == 0)


def test_unattended_upgrades_leave_docker_alone(host):
    told = host.run("unattended-upgrade --dry-run --debug")
    line = next(line for line in (told.stdout + told.stderr).splitlines() if "Initial blacklist" in line)
    assert all(package in line for package in ("docker\\.io$", "containerd$", "runc$")), line
