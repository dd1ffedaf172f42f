"""Loads Ansible once for many plays: a process that makes a copy of itself (fork) for each of them.

ansible-playbook loads Ansible for half a second of processor before it reads the playbook, and a run of the tests plays
some 250 times. The first play with some settings of Ansible starts a server, `python -m testbed.playserver SOCKET`,
which loads Ansible with them. For this and each further play playclient.py asks the server for a copy, gives it what it
was started with itself (arguments, environment, directory, standard streams), passes its signals on, and ends as the
copy does. What is about the way Ansible starts or ends is played without this: see molecule/shared/bin.

A server ends when its socket has been removed, or when it has had nothing to do for IDLE_SECONDS.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .playclient import CODE, LENGTH

# A run of the tests that was killed leaves the socket behind.
IDLE_SECONDS = 900.0
# How often a server looks for its socket (seconds).
LOOK_EVERY = 2.0
# So long (seconds) a caller may need to say what it wants.
REQUEST_TIMEOUT = 10.0


class Server:
    """Makes a copy of this process for each play, and watches them.

    Raises:
        OSError: when there cannot be a socket at the path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        # Under its name there is only a socket that answers.
        new = path.with_suffix(".new")
        self.listener.bind(str(new))
        self.listener.listen()
        new.rename(path)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ, self.begin)
        # By the file descriptor that tells its end: a copy, and the connection to its caller.
        self.plays: dict[int, tuple[int, socket.socket]] = {}
        self.idle_since = time.monotonic()

    def serve(self) -> bool:
        """Return True in each copy, in its caller's place; False in the server when it is not wanted any more."""
        while self.path.exists() and (self.plays or time.monotonic() - self.idle_since < IDLE_SECONDS):
            for key, _ in self.selector.select(LOOK_EVERY):
                if key.data(key.fd):
                    return True
        self.path.unlink(missing_ok=True)
        for play, _ in self.plays.values():
            os.killpg(play, signal.SIGKILL)
        return False

    def begin(self, _descriptor: int) -> bool:
        """Make a copy for a caller; True in it."""
        caller, _ = self.listener.accept()
        try:
            request, streams = receive(caller)
        except (OSError, ValueError, struct.error):
            caller.close()
            return False
        play = os.fork()
        if play == 0:
            os.setsid()
            self.forget()
            caller.close()
            take_place(request, streams)
            return True
        for stream in streams:
            os.close(stream)
        end = os.pidfd_open(play)
        self.plays[end] = play, caller
        self.selector.register(end, selectors.EVENT_READ, self.ended)
        self.selector.register(caller, selectors.EVENT_READ, lambda _descriptor: self.signalled(end))
        return False

    def forget(self) -> None:
        """In a copy: close what is the server's."""
        self.selector.close()
        self.listener.close()
        for end, (_, caller) in self.plays.items():
            os.close(end)
            caller.close()

    def signalled(self, end: int) -> None:
        """Pass a caller's signals on. A caller that has gone cannot take the result: its play ends."""
        if end not in self.plays:
            return  # both ended at once
        play, caller = self.plays[end]
        try:
            numbers = caller.recv(16)
        except OSError:
            numbers = b""
        for number in numbers:
            os.kill(play, number)
        if not numbers:
            self.selector.unregister(caller)
            os.killpg(play, signal.SIGKILL)

    def ended(self, end: int) -> None:
        """Tell a caller how its play has ended."""
        play, caller = self.plays.pop(end)
        self.selector.unregister(end)
        os.close(end)
        with contextlib.suppress(KeyError):
            self.selector.unregister(caller)
        code = os.waitstatus_to_exitcode(os.waitpid(play, 0)[1])
        with contextlib.suppress(OSError):
            caller.sendall(CODE.pack(code))
        caller.close()
        self.idle_since = time.monotonic()


def receive(caller: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return what a caller says of itself, and its standard streams.

    Raises:
        OSError, ValueError, struct.error: when it does not say it.
    """
    caller.settimeout(REQUEST_TIMEOUT)
    head, streams, _, _ = socket.recv_fds(caller, LENGTH.size, 3)
    with caller.makefile("rb") as rest:
        request: dict[str, Any] = json.loads(rest.read(*LENGTH.unpack(head)))
    caller.settimeout(None)
    return request, streams


def take_place(request: dict[str, Any], streams: list[int]) -> None:
    """Give this process what the caller has."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["directory"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["arguments"]


def load() -> None:
    """Load what every play needs, and nothing that a copy could not have: no connection, no thread, no child."""
    import ansible.cli.inventory  # type: ignore[import-untyped]
    import ansible.cli.playbook  # type: ignore[import-untyped]
    import ansible.cli.scripts  # type: ignore[import-untyped]
    import ansible.executor.process.worker  # type: ignore[import-untyped]
    import ansible.parsing.yaml.dumper  # type: ignore[import-untyped]
    import ansible.playbook.included_file  # type: ignore[import-untyped]
    import ansible.playbook.role_include  # type: ignore[import-untyped]
    from ansible import constants
    from ansible.plugins import loader  # type: ignore[import-untyped]

    loader.init_plugin_loader()
    # Each copy would do it once more, and be warned.
    vars(ansible.cli)["init_plugin_loader"] = lambda *_arguments: None
    for kind, names in {
        loader.action_loader: "assert command copy debug fail file gather_facts include_tasks normal package service "
        "set_fact template uri validate_argument_spec",
        loader.become_loader: "sudo",
        loader.cache_loader: "memory",
        loader.callback_loader: "default",
        loader.connection_loader: "ssh",
        loader.inventory_loader: "host_list script auto yaml ini toml",
        loader.shell_loader: "sh",
        loader.strategy_loader: constants.DEFAULT_STRATEGY,
    }.items():
        for name in names.split():
            kind.get(name, class_only=True)
    loader.filter_loader.get("ansible.builtin.bool")
    loader.test_loader.get("ansible.builtin.success")
    # A copy shares this memory as long as nobody writes to it, and a collection writes to all of it.
    gc.collect()
    gc.freeze()


def be() -> None:
    """Be the program that the caller stands for."""
    from ansible import constants
    from ansible.cli.inventory import InventoryCLI
    from ansible.cli.playbook import PlaybookCLI
    from ansible.utils.path import cleanup_tmp_file  # type: ignore[import-untyped]

    # Ansible has made a directory for temporary files while it was loaded, and removes it when this process ends.
    atexit.unregister(cleanup_tmp_file)
    parent = Path(constants.DEFAULT_LOCAL_TMP).parent
    constants.DEFAULT_LOCAL_TMP = tempfile.mkdtemp(prefix=f"ansible-local-{os.getpid()}", dir=parent)
    atexit.register(cleanup_tmp_file, constants.DEFAULT_LOCAL_TMP, warn=True)
    programs = {"ansible-inventory": InventoryCLI, "ansible-playbook": PlaybookCLI}
    programs[Path(sys.argv[0]).name].cli_executor(sys.argv)


def main() -> None:
    """Load, serve, and be a program in each copy."""
    path = Path(sys.argv[1])
    sys.argv = ["ansible-playbook"]
    load()
    if Server(path).serve():
        be()


if __name__ == "__main__":
    main()
