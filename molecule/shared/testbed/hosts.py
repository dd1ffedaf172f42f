"""Test hosts of one scenario: containers with systemd and sshd, and an Ansible inventory that reaches them over SSH."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import application, helpers, images, settled
from .docker import CACHE, REPOSITORY, TestbedError, docker, execute, inspect, lock, run, say, wait_until

GROUPS = ("db", "edge", "app", "monitoring")
FIRST_HOST = 10


@dataclass
class Host:
    """What a scenario asks for.

    Attributes:
        name: inventory name of the host.
        suite: Debian's code name, one of images.SUITES.
        domain: public name of the chat on this host, known to Docker's DNS and to the ACME authority.
        site: the chat that this host is a part of, where that is another host's domain.
        groups: inventory groups.
        publish: ports as docker's --publish takes them, e.g. "127.0.0.1:8443:443".
        memory: memory limit as docker takes it, e.g. "2g"; empty for none.
        user: account that Ansible logs in with; a bare host knows only root.
        package_lists: whether apt's lists are there, as on some providers' images and not on others.
        pulls_image: whether the host gets the application from the registry, by its digest, instead of building it.
        variables: inventory variables of this host beyond those that all test hosts have.
    """

    name: str
    suite: str = "trixie"
    domain: str = ""
    site: str = ""
    groups: list[str] = field(default_factory=lambda: list(GROUPS))
    publish: list[str] = field(default_factory=list)
    memory: str = ""
    user: str = "root"
    package_lists: bool = True
    pulls_image: bool = False
    variables: dict[str, Any] = field(default_factory=dict)

    def image(self) -> str:
        """Return the name of the image for the suite."""
        for image, suite in images.SUITES.items():
            if suite == self.suite:
                return image
        known = ", ".join(images.SUITES.values())
        raise TestbedError(f"host {self.name}: no image for suite {self.suite!r}; known: {known}")


def directory(scenario: str) -> Path:
    """Return the directory of a scenario's inventory."""
    return CACHE / scenario


def private(scenario: str) -> Path:
    """Return the directory of a scenario's keys; hidden, so that Ansible does not read it as inventory."""
    return directory(scenario) / ".private"


def container(scenario: str, host: str) -> str:
    """Return the container name of a test host."""
    return f"{scenario}-{host}"


def _free_address() -> str:
    used = set(helpers.ADDRESSES.values())
    for name in docker("ps", "-aq", "--filter", "label=chatbot-testbed.address").splitlines():
        found = inspect("container", name)
        if found:
            used.add(found["Config"]["Labels"]["chatbot-testbed.address"])
    for number, address in enumerate(ipaddress.ip_network(helpers.SUBNET)):
        if number >= FIRST_HOST and str(address) not in used:
            return str(address)
    raise TestbedError(f"no free address in {helpers.SUBNET}: remove old hosts with `molecule destroy --all`")


def _start(scenario: str, host: Host, *, keep: bool) -> tuple[str, bool]:
    """Return the host's address, and whether it was made anew."""
    name = container(scenario, host.name)
    with lock():
        present = inspect("container", name)
        if keep and present:
            docker("start", name)
            return str(present["Config"]["Labels"]["chatbot-testbed.address"]), False
        images.build_vps(host.image())
        image = settled.build(host.image()) if host.package_lists else images.repository(host.image())
        docker("rm", "-fv", name, check=False)
        address = _free_address()
        docker(
            "create", "--name", name, "--hostname", host.name,
            "--label", f"chatbot-testbed={scenario}", "--label", f"chatbot-testbed.address={address}",
            "--network", helpers.NETWORK, "--ip", address, "--network-alias", host.domain, "--network-alias", name,
            # A VPS has all of these; the machine itself may lack SYS_RESOURCE, so it is left out.
            "--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE", "--security-opt", "seccomp=unconfined",
            *(["--security-opt", "apparmor=unconfined"] if Path("/sys/module/apparmor").exists() else []),
            "--cgroupns", "private", "--env", "container=docker", "--tmpfs", "/run", "--tmpfs", "/tmp",  # noqa: S108
            "--volume", "/var/lib/docker", "--volume", "chatbot-testbed-pip:/root/.cache/pip",
            "--volume", f"chatbot-testbed-code:{images.COMPILED}",
            *(["--memory", host.memory] if host.memory else []),
            *(part for port in host.publish for part in ("--publish", port)),
            image,
        )  # fmt: skip
        docker("start", name)
    return address, True


def _settle(scenario: str, host: Host, public_key: str, *, new: bool) -> str:
    """Make a started host what a provider hands over: systemd up, our key in, its mirror near. Return its host keys."""
    name = container(scenario, host.name)

    def booted() -> bool:
        state = docker("exec", name, "systemctl", "is-system-running", check=False)
        return state in {"running", "degraded"}

    wait_until(f"{name}: systemd", booted, 60)
    keys = "/root/.ssh/authorized_keys"
    script = [
        f"grep -qsxF '{public_key}' {keys} || {{ install -d -m 700 /root/.ssh; echo '{public_key}' > {keys}; }}",
        # A settled image has that already, and a host that is kept has what site.yml has made of it.
        settled.trust_script() if new and not host.package_lists else "",
    ]
    execute(name, "\n".join(script))
    return execute(name, "cat /etc/ssh/ssh_host_*_key.pub")


def _write_inventory(
    scenario: str, found: dict[str, tuple[Host, str]], known_hosts: list[str], image: str = ""
) -> None:
    folder, keys = directory(scenario), private(scenario)
    (keys / "known_hosts").write_text("\n".join(known_hosts) + "\n")
    trust = keys / "authorities"
    shutil.rmtree(trust, ignore_errors=True)
    trust.mkdir()
    for path in images.authorities():
        shutil.copy(path, trust)
    (trust / "testbed.crt").write_text(helpers.acme_authority())
    checked = f"-o UserKnownHostsFile={keys / 'known_hosts'} -o StrictHostKeyChecking=yes"
    hosts: dict[str, dict[str, Any]] = {}
    groups: dict[str, dict[str, dict[str, None]]] = {}
    for name, (host, address) in found.items():
        hosts[name] = {
            "ansible_host": address,
            "ansible_user": host.user,
            "chatbot_domain": host.site or host.domain,
            "chatbot_private_address": address,
            "testbed_container": container(scenario, name),
            "testbed_suite": host.suite,
        }
        if host.pulls_image:
            hosts[name] |= {"chatbot_image": image, "docker_insecure_registries": [application.REGISTRY]}
        hosts[name] |= host.variables
        for group in host.groups:
            groups.setdefault(group, {}).setdefault("hosts", {})[name] = None
    inventory = {
        "all": {
            "vars": {
                "ansible_connection": "ssh",
                "ansible_ssh_private_key_file": str(keys / "id_ed25519"),
                "ansible_ssh_common_args": checked,
                "testbed_directory": str(folder),
                "testbed_mtu": helpers.uplink_mtu(),
            },
            "hosts": hosts,
            "children": groups,
        }
    }
    text = json.dumps(inventory, indent=2)
    (folder / "hosts.yml").write_text(f"---\n# Written by molecule/shared/testbed.\n{text}\n")
    # The tests' commands share a connection of their own: a new one for each costs twelve times as much, and one that
    # Ansible has left would not see what has changed for logins meanwhile.
    (folder / "ssh_config").write_text(f"ControlPath /tmp/testbed-{scenario}-tests-%C\n")
    variables = folder / "group_vars" / "all"
    shutil.rmtree(variables, ignore_errors=True)
    variables.mkdir(parents=True)
    (variables / "1-shared.yml").symlink_to(REPOSITORY / "inventories/single/group_vars/all/main.yml")
    (variables / "2-testbed.yml").symlink_to(REPOSITORY / "molecule/shared/group_vars.yml")
    generated = {
        "chatbot_extra_ca_certificates": sorted(str(path) for path in trust.iterdir()),
        "chatbot_admin_authorized_keys": [(keys / "id_ed25519.pub").read_text().strip()],
    }
    (variables / "3-generated.yml").write_text(f"---\n{json.dumps(generated, indent=2)}\n")


def create(scenario: str, hosts: list[Host], *, keep: bool = False) -> Path:
    """Start the hosts of a scenario and write their inventory; return its directory.

    With keep, hosts that exist already are started and left as they are; without it they are made anew.

    Raises:
        TestbedError: when the engine, an image or a host does not come up.
    """
    with lock():
        helpers.ensure_all()
    folder = directory(scenario)
    private(scenario).mkdir(parents=True, exist_ok=True)
    key = private(scenario) / "id_ed25519"
    if not key.exists():
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"testbed {scenario}", "-f", str(key))
    public = key.with_suffix(".pub").read_text().strip()
    found: dict[str, tuple[Host, str]] = {}
    new: set[str] = set()
    known_hosts: list[str] = []
    for host in hosts:
        host.domain = host.domain or f"{host.name}.{scenario}.example.test"
        address, made = _start(scenario, host, keep=keep)
        found[host.name] = (host, address)
        if made:
            new.add(host.name)
    for name, (host, address) in found.items():
        keys = _settle(scenario, host, public, new=name in new)
        known_hosts += [f"{address} {line.rsplit(' ', 1)[0]}" for line in keys.splitlines()]
        helpers.add_name(host.domain, address)
        say(f"host {name} ({host.suite}) is up at {address}, as {host.domain}")
    image = ""
    if any(host.pulls_image for host in hosts):
        with lock():
            image = application.publish()
    _write_inventory(scenario, found, known_hosts, image)
    return folder


def destroy(scenario: str) -> None:
    """Remove a scenario's hosts, their volumes and its inventory; nothing else."""
    names = docker("ps", "-aq", "--filter", f"label=chatbot-testbed={scenario}").split()
    if names:
        docker("rm", "-fv", *names)
    for socket in Path("/tmp").glob(f"testbed-{scenario}-*"):  # noqa: S108  (see .config/molecule/config.yml)
        socket.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory(scenario))
