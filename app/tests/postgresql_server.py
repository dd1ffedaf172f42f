"""A real PostgreSQL server on a Unix socket, for tests and benchmarks."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError
from support import eventually, find_program, process


@contextlib.contextmanager
def start_postgresql() -> Iterator[str | None]:
    """Gives the URL of an empty database; None where the server's programs are not installed."""
    initdb, postgres = find_program("initdb"), find_program("postgres")
    if not initdb or not postgres:
        yield None
        return
    directory = tempfile.mkdtemp(prefix="pg-")  # short: a socket's path may have 107 characters
    user: dict[str, object] = {}
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.chown(directory, "nobody", "nogroup")
    data = f"{directory}/data"
    subprocess.run(
        [initdb, "--auth=trust", "--username=chatbot", "--no-sync", "--encoding=UTF8", "--locale=C", "-D", data],
        check=True, capture_output=True, cwd=directory, **user,  # type: ignore[call-overload]
    )  # fmt: skip
    options = {"listen_addresses": "", "unix_socket_directories": directory}
    # Its data need not outlive the machine.
    options |= dict.fromkeys(("fsync", "synchronous_commit", "full_page_writes"), "off")
    arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": directory}
    with process(postgres, "-D", data, *arguments, **quiet, **user):
        url = f"postgresql+psycopg://chatbot@/postgres?host={directory}"
        eventually(lambda: _accepts(url), 30)
        yield url
    shutil.rmtree(directory)


def _accepts(url: str) -> bool:
    """Whether the server takes connections."""
    engine = create_engine(url)
    try:
        engine.connect().close()
    except OperationalError:
        return False
    finally:
        engine.dispose()
    return True
