"""Command line of the test bed: up, create, destroy, down, root."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from . import application, helpers, hosts, images, settled
from .docker import TestbedError, docker, lock


def _up(_: argparse.Namespace) -> None:
    with lock():
        helpers.ensure_all()
        for name in images.SUITES:
            settled.build(name)
        application.publish()


def _platforms() -> list[dict[str, Any]]:
    """Return what the scenario of the run of Molecule that this is a part of asks for."""
    file = os.environ.get("MOLECULE_FILE")
    if not file:
        raise TestbedError(
            "no hosts are named, and this is no run of Molecule, whose scenario would name some. Name them: "
            """python -m testbed create NAME '[{"name": "debian13", "suite": "trixie"}]'"""
        )
    platforms: list[dict[str, Any]] = yaml.safe_load(Path(file).read_text())["platforms"]
    return platforms


def _create(options: argparse.Namespace) -> None:
    wanted = [hosts.Host(**host) for host in (json.loads(options.hosts) if options.hosts else _platforms())]
    print(hosts.create(options.scenario, wanted, keep=options.keep))


def _destroy(options: argparse.Namespace) -> None:
    hosts.destroy(options.scenario)


def _down(options: argparse.Namespace) -> None:
    with lock():
        names = docker("ps", "-aq", "--filter", "label=chatbot-testbed").split()
        if names:
            docker("rm", "-fv", *names)
        docker("network", "rm", helpers.NETWORK, check=False)
        if options.caches:
            for volume in ("apt", "registry", "pip", "code"):
                docker("volume", "rm", f"chatbot-testbed-{volume}", check=False)
            settled_hosts = (f"{suite}-settled" for suite in images.SUITES)
            for image in (*settled_hosts, *images.SUITES, "helper", "trixie-slim", "application"):
                docker("rmi", images.repository(image), check=False)


def _root(_: argparse.Namespace) -> None:
    print(helpers.issuing_root(), end="")


def main() -> int:
    """Parse the command line, run one command, turn foreseeable errors into one clear message."""
    parser = argparse.ArgumentParser(prog="testbed", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="build the images and start the helper hosts")
    up.set_defaults(call=_up)
    create = commands.add_parser("create", help="start the hosts of a scenario and write its inventory")
    create.add_argument("scenario")
    create.add_argument(
        "hosts",
        nargs="?",
        help='JSON list, e.g. \'[{"name": "debian13", "suite": "trixie"}]\'; without it what $MOLECULE_FILE asks for',
    )
    create.add_argument("--keep", action="store_true", help="leave hosts that exist as they are")
    create.set_defaults(call=_create)
    destroy = commands.add_parser("destroy", help="remove the hosts of a scenario")
    destroy.add_argument("scenario")
    destroy.set_defaults(call=_destroy)
    down = commands.add_parser("down", help="remove every host and the network")
    down.add_argument("--caches", action="store_true", help="remove images and package caches too")
    down.set_defaults(call=_down)
    root = commands.add_parser("root", help="print the root certificate of the ACME authority")
    root.set_defaults(call=_root)
    options = parser.parse_args()
    try:
        options.call(options)
    except TestbedError as error:
        print(f"testbed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
