"""Stands for a program of Ansible where a playserver.py does its work; see there.

The programs in molecule/shared/bin call it with Python's -I and -S. It must be quick, so it imports little.
"""

import fcntl
import json
import os
import signal
import socket
import struct
import sys

# Environment variable: the directory for the servers' sockets, made and removed by tools/test.
DIRECTORY = "TESTBED_PLAYSERVERS"
# What a caller says is as long (bytes) as the number before it, and comes as JSON. The streams come with the number.
LENGTH = struct.Struct("!I")
# An exit code; the negative number of a signal where that ended the play.
CODE = struct.Struct("!i")
# What Ansible looks at while it is loaded: with another value of any of these it is another server. At the path for the
# control sockets, each scenario's own, a connection looks when it is made.
SETTINGS = ("ANSIBLE_", "FORCE_COLOR", "HOME", "LANG", "LC_", "NO_COLOR", "PYTHON")
NO_SETTING = "ANSIBLE_SSH_CONTROL_PATH"
PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def path_of_server() -> str:
    """Return the socket's path for this environment."""
    from hashlib import sha256

    settings = sorted(
        f"{name}={value}" for name, value in os.environ.items() if name.startswith(SETTINGS) and name != NO_SETTING
    )
    return f"{os.environ[DIRECTORY]}/{sha256('\n'.join(settings).encode()).hexdigest()[:16]}"


def connect(python: str) -> socket.socket | None:
    """Return a connection to the server for this environment, which is started when it is missing; None without one."""
    path = path_of_server()
    with open(f"{path}.lock", "w") as lock:  # noqa: PTH123 - pathlib takes as long to import as all else here
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(path) and not started(python, path):  # noqa: PTH110
            return None
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(path)
        except OSError:
            return None
        return server


def started(python: str, path: str) -> bool:
    """Start a server and wait until it has loaded; tell whether it has."""
    import subprocess
    import time

    with open(f"{path}.log", "wb") as log:  # noqa: PTH123
        server = subprocess.Popen(
            [python, "-m", "testbed.playserver", path],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    while not os.path.exists(path):  # noqa: PTH110
        if server.poll() is not None:
            return False
        time.sleep(0.02)
    return True


def ask(server: socket.socket, arguments: list[str]) -> int:
    """Have a play made with these arguments and this process's surroundings; return its exit code."""
    umask = os.umask(0)
    os.umask(umask)
    request = {
        "arguments": arguments,
        "directory": os.getcwd(),  # noqa: PTH109
        "environment": dict(os.environ),
        "umask": umask,
    }
    body = json.dumps(request).encode()
    socket.send_fds(server, [LENGTH.pack(len(body))], [0, 1, 2])
    server.sendall(body)
    for number in PASSED_ON:
        signal.signal(number, lambda number, _frame: server.sendall(bytes([number])))
    told = server.recv(CODE.size)
    if len(told) < CODE.size:
        with open(f"{path_of_server()}.log") as log:  # noqa: PTH123
            sys.exit(f"testbed: the process that has Ansible loaded has ended before this play; it said:\n{log.read()}")
    code: int = CODE.unpack(told)[0]
    return code


def main() -> None:
    """Have it played by a server, or by the program itself where there is none: PROGRAM ARGUMENT..."""
    program, *arguments = sys.argv[1:]
    python = f"{os.path.dirname(program)}/python"  # noqa: PTH120
    # A terminal's width and colours are read when Ansible is loaded.
    server = None if os.isatty(1) else connect(python)
    if server is None:
        os.execv(program, [program, *arguments])  # noqa: S606
    code = ask(server, [program, *arguments])
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
