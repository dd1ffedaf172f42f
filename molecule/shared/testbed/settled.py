"""Images of hosts that have settled in the test bed: they trust its authorities and know its packages."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

from . import helpers, images
from .docker import docker, inspect, say

# What PostgreSQL brings beside itself: four fifths of what is unpacked for it, on half of all hosts. Some of it is in
# providers' images as well.
LIBRARIES = {
    "debian13": "libicu76 libllvm19 libperl5.40 locales perl",
    "debian12": "libicu72 libllvm14 libperl5.36 locales perl",
}


def trust_script() -> str:
    """Return the script by which a host trusts this machine's authorities and the test bed's, and uses its cache."""
    trust = {path.name: path.read_text() for path in images.authorities()} | {"testbed.crt": helpers.acme_authority()}
    return "\n".join(
        [
            "echo 'Acquire::http::Proxy \"http://apt-cache:3142\";' > /etc/apt/apt.conf.d/01testbed-cache",
            # Every call of apt-get reads all descriptions again when a package has come: four tenths of what it reads.
            "echo 'Acquire::Languages \"none\";' >> /etc/apt/apt.conf.d/01testbed-cache",
            "rm -f /var/lib/apt/lists/*Translation*",
            *(f"cat > /usr/local/share/ca-certificates/{file} <<'EOF'\n{text}\nEOF" for file, text in trust.items()),
            "update-ca-certificates >/dev/null 2>&1",
        ]
    )


def build(name: str) -> str:
    """Build the image of a suite's settled host unless it is there, and return its reference; made anew every day.

    What every host of a scenario would do again for itself costs each of them some seconds of processor, fetching
    package lists above all. Yesterday's lists may name packages that the archive no longer has.

    Raises:
        TestbedError: when the engine or the package cache does not do its part.
    """
    images.build_vps(name)
    bare = inspect("image", images.repository(name)) or {}
    shorten = f"python3 - <<'EOF'\n{Path(__file__).with_name('server_lists.py').read_text()}EOF"
    script = "\n".join(
        [
            trust_script(),
            "apt-get -qq --error-on=any update",
            # A test host need not survive a power failure, which dpkg would wait for the disk for at each file.
            "echo force-unsafe-io > /etc/dpkg/dpkg.cfg.d/testbed",
            "export DEBIAN_FRONTEND=noninteractive",
            f"apt-get -qq install --no-install-recommends {LIBRARIES[name]} >/dev/null",
            "apt-get clean",
            shorten,
            "apt-cache gencaches",
            # Half a second to several of processor each, as luck has it; the other keys each host makes itself.
            "ssh-keygen -q -t rsa -N '' -f /etc/ssh/ssh_host_rsa_key",
        ]
    )
    digest = hashlib.sha256(f"{bare['Id']} {datetime.now(UTC).date()} {script}".encode()).hexdigest()[:16]
    settled = images.repository(f"{name}-settled")
    found = inspect("image", settled)
    if found is None or (found["Config"].get("Labels") or {}).get("testbed.settled") != digest:
        say(f"preparing image {name} with authorities and package lists")
        container = docker("create", "--network", helpers.NETWORK, images.repository(name), "sh", "-euc", script)
        try:
            docker("start", "--attach", container)
            changes = [f"CMD {json.dumps(bare['Config']['Cmd'])}", f"LABEL testbed.settled={digest}"]
            docker("commit", *(part for change in changes for part in ("-c", change)), container, settled)
        finally:
            docker("rm", "-fv", container)
    return settled
