"""Keep of apt's package lists what roles and tests install: one in fifty. Runs on a test host.

Every call of apt reads all of them, a second of processor for each apt-get, and a full run of the tests has hundreds.
What is left is whole: apt chooses the same packages for these as with all lists, if it is told to leave recommended
ones out, as roles and tests do. `apt-get update` leaves the lists alone until the archive has newer ones.
"""

from __future__ import annotations

import re
from pathlib import Path

PRIORITIES = {"required", "important", "standard"}
# What roles and tests install by name; tests/test_server_lists.py compares. And redis-server: what Valkey needs, which
# Debian 12 has from its backports, Redis needs as well.
INSTALLED = """
adduser apparmor apt-utils ca-certificates certbot chrony cron curl docker-cli docker.io fail2ban gpg
gpg-agent iptables libfaketime libgomp1 logrotate nftables nginx nginx-light openssl pgbackrest postgresql
procps prometheus prometheus-alertmanager prometheus-nginx-exporter prometheus-node-exporter
prometheus-postgres-exporter python3 python3-packaging python3-psycopg2 python3-requests python3-systemd
python3-venv rclone redis-server restic ssh-audit sudo unattended-upgrades valkey-server
"""
FOLLOWED = ("Pre-Depends", "Depends")
LISTS = Path("/var/lib/apt/lists")
STATUS = Path("/var/lib/dpkg/status")


def names(relation: str) -> list[str]:
    """Return the packages that a field names, alternatives too: `a (>= 1), b | c`."""
    return re.findall(r"(?:^|[,|])\s*([a-z0-9][a-z0-9+.-]+)", relation)


def kept(packages: list[dict[str, str]], present: set[str]) -> set[str]:
    """Return the names of the packages to keep, from the fields of all and the names of those that the host has."""
    by_name: dict[str, list[dict[str, str]]] = {}
    for fields in packages:
        for name in (fields["Package"], *names(fields.get("Provides", ""))):
            by_name.setdefault(name, []).append(fields)
    waiting = [fields["Package"] for fields in packages if fields.get("Priority") in PRIORITIES]
    waiting += [*present, *INSTALLED.split()]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            for fields in by_name.get(name, ()):
                waiting += [fields["Package"], *(each for field in FOLLOWED for each in names(fields.get(field, "")))]
    return found


def main() -> None:
    """Rewrite the lists."""
    texts = {file: file.read_text().split("\n\n") for file in LISTS.glob("*_Packages")}
    known = {
        file: [
            (text.strip("\n"), dict(re.findall(r"^([A-Za-z-]+): (.*)$", text, re.M)))
            for text in stanzas
            if text.strip()
        ]
        for file, stanzas in texts.items()
    }
    present = set(re.findall(r"^Package: (.*)$", STATUS.read_text(), re.M))
    wanted = kept([fields for stanzas in known.values() for _, fields in stanzas], present)
    for file, stanzas in known.items():
        file.write_text("\n\n".join(text for text, fields in stanzas if fields["Package"] in wanted) + "\n")


if __name__ == "__main__":
    main()
