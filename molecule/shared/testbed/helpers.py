"""The outside parties of a VPS as real programs: package cache, image registry, ACME authority with its DNS."""

from __future__ import annotations

import hashlib
import json

from . import images
from .docker import docker, execute, inspect, run, say, wait_until

NETWORK = "chatbot-testbed"
SUBNET = "172.29.77.0/24"
GATEWAY = "172.29.77.1"
ADDRESSES = {"apt-cache": "172.29.77.2", "registry": "172.29.77.3", "acme": "172.29.77.4"}


def container(name: str) -> str:
    """Return the container name of a helper host; the plain name is its name in DNS."""
    return f"chatbot-testbed-{name}"


def uplink_mtu() -> int:
    """Return the MTU of this machine's default route in bytes; test networks must not exceed it."""
    route = json.loads(run("ip", "-json", "route", "show", "default") or "[]")
    if not route:
        return 1500
    return int(json.loads(run("ip", "-json", "link", "show", route[0]["dev"]))[0]["mtu"])


def ensure_network() -> None:
    """Create the network of the test hosts unless it is there."""
    if inspect("network", NETWORK) is None:
        docker(
            "network", "create", "--subnet", SUBNET, "--gateway", GATEWAY,
            "-o", "com.docker.network.bridge.name=br-testbed",
            "-o", f"com.docker.network.driver.mtu={uplink_mtu()}", NETWORK,
        )  # fmt: skip


def _ensure(name: str, script: str, *options: str) -> bool:
    """Start a helper host with a script as its program; return True when it had to be started."""
    digest = hashlib.sha256(script.encode()).hexdigest()[:16]
    found = inspect("container", container(name))
    if found and found["State"]["Running"] and found["Config"]["Labels"].get("chatbot-testbed.script") == digest:
        return False
    docker("rm", "-fv", container(name), check=False)
    say(f"starting helper host {name}")
    docker(
        "run", "--detach", "--init", "--name", container(name), "--hostname", name, "--label", "chatbot-testbed=helper",
        "--label", f"chatbot-testbed.script={digest}",
        "--network", NETWORK, "--ip", ADDRESSES[name], "--network-alias", name, *options,
        images.repository("helper"), "sh", "-euc", script,
    )  # fmt: skip
    return True


def ensure_apt_cache() -> None:
    """Package cache: hosts install the same packages again and again, the mirror sees each once."""
    script = (
        "mkdir -p /var/cache/apt-cacher-ng /run/apt-cacher-ng\n"
        "chown -R apt-cacher-ng /var/cache/apt-cacher-ng /run/apt-cacher-ng /var/log/apt-cacher-ng\n"
        "exec setpriv --reuid apt-cacher-ng --regid apt-cacher-ng --clear-groups"
        " apt-cacher-ng -c /etc/apt-cacher-ng ForeGround=1 Port=3142 VerboseLog=0"
    )
    _ensure("apt-cache", script, "--volume", "chatbot-testbed-apt:/var/cache/apt-cacher-ng")
    wait_until("package cache", lambda: "3142" in execute(container("apt-cache"), "ss -ltn"))


def ensure_registry() -> None:
    """Registry that is also the mirror of the hub, filled with debian:trixie-slim."""
    script = (
        "cat > /srv/registry.yml <<'EOF'\n"
        "version: 0.1\n"
        "storage: {filesystem: {rootdirectory: /var/lib/docker-registry}, delete: {enabled: true}}\n"
        "http: {addr: '0.0.0.0:5000'}\n"
        "EOF\n"
        "exec docker-registry serve /srv/registry.yml"
    )
    volume = "chatbot-testbed-registry:/var/lib/docker-registry"
    _ensure("registry", script, "--volume", volume, "--publish", "127.0.0.1::5000")
    wait_until("registry", lambda: "5000" in execute(container("registry"), "ss -ltn"))
    base = images.build_hub_base()
    digest = (inspect("image", base) or {})["Id"]
    filled = execute(container("registry"), "cat /var/lib/docker-registry/filled 2>/dev/null || true")
    if filled != digest:
        port = docker("port", container("registry"), "5000/tcp").splitlines()[0].rsplit(":", 1)[1]
        reference = f"127.0.0.1:{port}/library/debian:trixie-slim"
        docker("tag", base, reference)
        docker("push", reference)
        docker("rmi", reference)
        execute(container("registry"), f"echo {digest} > /var/lib/docker-registry/filled")


def ensure_acme() -> None:
    """ACME authority (pebble, HTTP-01 on port 80) with a DNS of its own that add_name() fills."""
    if _ensure("acme", (images.HERE / "acme.sh").read_text()):
        wait_until("ACME authority", lambda: ":14000" in execute(container("acme"), "ss -ltn"))
        for name, address in ADDRESSES.items():
            add_name(name, address)


def add_name(name: str, address: str) -> None:
    """Give a name an IPv4 address in the DNS that the ACME authority asks."""
    body = json.dumps({"host": name, "addresses": [address]})
    execute(container("acme"), f"curl -sf -d '{body}' http://127.0.0.1:8055/clear-a >/dev/null || true")
    execute(container("acme"), f"curl -sf -d '{body}' http://127.0.0.1:8055/add-a >/dev/null")


def acme_authority() -> str:
    """Return the certificate (PEM) that signs the authority's own web server."""
    return execute(container("acme"), "cat /srv/acme/ca.pem") + "\n"


def issuing_root() -> str:
    """Return the root certificate (PEM) of everything that the authority has issued since it started."""
    return execute(container("acme"), "curl -sf --cacert /srv/acme/ca.pem https://acme:15000/roots/0") + "\n"


def ensure_all() -> None:
    """Have network, images and helper hosts ready; a second call does nothing."""
    images.environment_ready()
    ensure_network()
    images.build_helper()
    ensure_apt_cache()
    ensure_registry()
    ensure_acme()
