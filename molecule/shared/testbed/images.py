"""Images, built from Debian's archive alone: a bare VPS per suite, the helper host, the hub's debian:trixie-slim."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path

from .docker import CACHE, TestbedError, docker, inspect, run, say

HERE = Path(__file__).resolve().parent
# Where hosts keep what their Python has compiled of Ansible's sources: a volume that all hosts share.
COMPILED = "/var/cache/testbed-code"
AUTHORITIES = Path("/usr/local/share/ca-certificates")

# What a provider's Debian image has before anybody touches it: systemd, sshd, Python for Ansible, little else.
VPS_PACKAGES = (
    "systemd systemd-sysv libpam-systemd dbus openssh-server python3 python3-apt sudo "
    "ca-certificates iproute2 procps netbase"
)
HELPER_PACKAGES = (
    "ca-certificates curl openssl iproute2 openssh-client sshpass netcat-openbsd pebble docker-registry apt-cacher-ng"
)

SUITES = {"debian13": "trixie", "debian12": "bookworm"}


def repository(name: str) -> str:
    """Return the image reference of a test image."""
    return f"chatbot-testbed:{name}"


def mirror() -> tuple[str, str]:
    """Return this machine's own mirrors of Debian and of Debian's security archive.

    Raises:
        TestbedError: when apt's configuration names none.
    """
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    written = [f"{path} {path.stat().st_mtime_ns}" for path in files if path.is_file()]
    kept = CACHE / "mirrors.json"
    # A second of processor on a machine with long package lists, and each scenario asks again.
    if kept.exists() and (known := json.loads(kept.read_text()))["written"] == written:
        return known["main"], known["security"]
    uris = run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", check=False).splitlines()
    uris += re.findall(
        r"(?m)^(?:URIs:|deb)\s+(?:\[.*?\]\s+)?(\S+)",
        "\n".join(path.read_text(errors="replace") for path in files if path.is_file()),
    )
    clean = [uri.rstrip("/") for uri in uris]
    main = next((uri for uri in clean if uri.endswith("/debian")), None)
    if main is None:
        raise TestbedError(
            "no Debian mirror in /etc/apt: the test images are made from this machine's own mirror. "
            "Add one to /etc/apt/sources.list.d, then run `apt-get update`."
        )
    security = next((uri for uri in clean if uri.endswith("/debian-security")), main + "-security")
    CACHE.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"written": written, "main": main, "security": security}))
    return main, security


def sources(suite: str) -> str:
    """Return the sources.list lines of a suite: release, updates, security."""
    main, security = mirror()
    return f"deb {main} {suite} main\ndeb {main} {suite}-updates main\ndeb {security} {suite}-security main\n"


def authorities() -> list[Path]:
    """Return the extra authorities that this machine trusts; its test hosts must trust them too."""
    return sorted(AUTHORITIES.glob("*.crt"))


def _digest(*parts: str) -> str:
    files = [HERE / "vps-init", HERE / "testbed_codecache.py", Path(__file__), *authorities()]
    # Two checkouts on one machine share the images: where this one lies must not count.
    material = "\n".join(parts).replace(str(HERE), "") + "".join(p.read_text(errors="replace") for p in files)
    return hashlib.sha256(material.encode()).hexdigest()[:16]


def _build(name: str, suite: str, packages: str, *, command: str, hooks: list[str]) -> None:
    lines = sources(suite)
    digest = _digest(name, suite, packages, command, lines, *hooks)
    found = inspect("image", repository(name))
    if found and (found["Config"].get("Labels") or {}).get("testbed.digest") == digest:
        return
    say(f"building image {name} ({suite}) from packages, about half a minute")
    with tempfile.TemporaryDirectory() as scratch:
        tar = Path(scratch, "root.tar")
        run(
            "mmdebstrap", "--variant=minbase", *([f"--include={','.join(packages.split())}"] if packages else []),
            *(f"--customize-hook={hook}" for hook in hooks),
            suite, str(tar), "-",
            stdin=lines, timeout=900,
        )  # fmt: skip
        changes = [f"CMD {command}", f"LABEL testbed.digest={digest}"]
        docker("import", *(part for change in changes for part in ("-c", change)), str(tar), repository(name))


def _common_hooks() -> list[str]:
    trust = [f"copy-in {path} {AUTHORITIES}" for path in authorities()]
    return [
        f'mkdir -p "$1{AUTHORITIES}"', *trust,
        'chroot "$1" update-ca-certificates >/dev/null',
        'echo force-unsafe-io > "$1/etc/dpkg/dpkg.cfg.d/testbed-no-fsync"',
    ]  # fmt: skip


def build_vps(name: str) -> None:
    """Build the bare host of a suite (see SUITES) unless the image is current."""
    hooks = [
        *_common_hooks(),
        f"copy-in {HERE / 'vps-init'} /usr/sbin",
        f"copy-in {HERE / 'testbed_codecache.py'} /usr/lib/python3/dist-packages",
        f"echo 'import testbed_codecache; testbed_codecache.keep_in(\"{COMPILED}\")'"
        ' > "$1/usr/lib/python3/dist-packages/testbed-codecache.pth"',
        # A container's kernel has no modules to load, and it has no console to ask for passwords.
        *(
            f'ln -sf /dev/null "$1/etc/systemd/system/{unit}"'
            for unit in (
                "systemd-modules-load.service",
                "systemd-ask-password-console.path",
                "systemd-ask-password-wall.path",
            )
        ),
        # Nor has it encrypted disks or a kernel's command line: each of these would run at every daemon-reload.
        'mkdir -p "$1/etc/systemd/system-generators"',
        *(
            f'ln -sf /dev/null "$1/etc/systemd/system-generators/systemd-{name}-generator"'
            for name in (
                "cryptsetup",
                "debug",
                "gpt-auto",
                "hibernate-resume",
                "integritysetup",
                "run",
                "system-update",
                "veritysetup",
            )
        ),
        # Every host makes its own keys on its first boot.
        'rm -f "$1"/etc/ssh/ssh_host_*',
        ': > "$1/etc/machine-id"',
    ]
    _build(name, SUITES[name], VPS_PACKAGES, command='["/usr/sbin/vps-init"]', hooks=hooks)


def build_helper() -> None:
    """Build the host of the outside parties: ACME authority, DNS, registry, package cache."""
    _build("helper", "trixie", HELPER_PACKAGES, command='["/bin/sleep", "infinity"]', hooks=_common_hooks())


def build_hub_base() -> str:
    """Build debian:trixie-slim as the hub has it, and return its image reference."""
    hooks = [
        'rm -rf "$1"/usr/share/doc/* "$1"/usr/share/man/* "$1"/usr/share/locale/*',
        'echo force-unsafe-io > "$1/etc/dpkg/dpkg.cfg.d/docker-apt-speedup"',
    ]
    _build("trixie-slim", "trixie", "", command='["bash"]', hooks=hooks)
    return repository("trixie-slim")


def environment_ready() -> None:
    """Check what the images need from this machine.

    Raises:
        TestbedError: naming the missing program and the command that installs it.
    """
    for program, package in {"mmdebstrap": "mmdebstrap", "docker": "docker.io", "ssh-keygen": "openssh-client"}.items():
        if not any(Path(folder, program).exists() for folder in os.environ["PATH"].split(":")):
            raise TestbedError(f"{program} is not installed: run `apt-get install {package}` as root")
    if not docker("info", "--format", "{{.ServerVersion}}", check=False):
        raise TestbedError("the Docker engine does not answer: run `tools/bootstrap` (as root it starts one)")
