"""The application's image in the test bed's registry, for hosts that pull it by its digest instead of building it."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

from . import helpers, images
from .docker import REPOSITORY, TestbedError, docker, run, say

PACK = REPOSITORY / "roles/chatbot/files/pack_source.py"
HUB_BASE = "FROM debian:trixie-slim"
# As the test hosts call it; it speaks plain HTTP.
REGISTRY = "registry:5000"


def _here() -> str:
    """Return the registry's address on this machine, host:port."""
    return docker("port", helpers.container("registry"), "5000/tcp").splitlines()[0]


def publish(source: Path = REPOSITORY / "app") -> str:
    """Build the application, push it, and return its name for a test host: registry:5000/chatbot@sha256:…

    The engine keeps the layers: a second call takes seconds, and so does a source that differs in its last lines.

    Raises:
        TestbedError: when the engine or the registry does not do its part.
    """
    built = images.repository("application")
    with tempfile.TemporaryDirectory() as scratch:
        context = Path(scratch, "source")
        context.mkdir()
        authorities = [f"--authority={path}" for path in images.authorities()]
        release = run(sys.executable, str(PACK), str(source), scratch, *authorities)
        run("tar", "-xf", f"{scratch}/{release}.tar", "-C", str(context))
        dockerfile = context / "Dockerfile"
        # This machine's engine does not know the test bed's mirror of the hub.
        base = images.build_hub_base()
        text = dockerfile.read_text()
        if HUB_BASE not in text:
            raise TestbedError(f"{source}/Dockerfile is not made {HUB_BASE}: the test bed has no other base")
        dockerfile.write_text(text.replace(HUB_BASE, f"FROM {base}"))
        say(f"building the application's image, release {release}")
        # The network of the package cache: BuildKit builds in none but the host's and its own.
        run(
            "docker", "build", "--quiet", "--network", helpers.NETWORK, "--build-arg", "http_proxy=http://apt-cache:3142",
            "--label", f"org.opencontainers.image.revision={release}", "--tag", built, str(context),
            environment=os.environ | {"DOCKER_BUILDKIT": "0"}, timeout=1200,
        )  # fmt: skip
    reference = f"{_here()}/chatbot:{release}"
    docker("tag", built, reference)
    pushed = docker("push", reference)
    docker("rmi", reference)
    digest = re.search(r"digest: (sha256:[0-9a-f]{64})", pushed)
    if digest is None:
        raise TestbedError(f"the registry named no digest for {reference}:\n{pushed}")
    return f"{REGISTRY}/chatbot@{digest[1]}"
