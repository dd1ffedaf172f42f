#!/usr/bin/env python3
"""Chromium in a network of its own, from which only one address can be reached: `BROWSER_TARGET=address:port`.

Chromium drops all connections whenever a network interface of its machine comes or goes (ERR_NETWORK_CHANGED), and
containers of other scenarios come and go all the time. So it gets a network namespace with nothing but a loopback
interface, on which this program listens and passes everything on. Playwright starts it in the place of Chromium and
talks to it through the descriptors 3 and 4. Making a namespace takes root; for other users Chromium is just started.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1


def loopback_up() -> None:
    """Switch the loopback interface of this thread's network on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Pass everything on, to the end."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end, how in ((source, socket.SHUT_RD), (sink, socket.SHUT_WR)):
        with contextlib.suppress(OSError):
            end.shutdown(how)


def connect(here: socket.socket, target: tuple[str, int]) -> None:
    """Serve one connection of the browser."""
    with here:
        try:
            there = socket.create_connection(target, 10)
        except OSError:
            return
        there.settimeout(None)
        with there:
            back = threading.Thread(target=pump, args=(there, here), daemon=True)
            back.start()
            pump(here, there)
            back.join()


def main() -> int:
    """Run Chromium to its end."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("there is no chromium: tools/bootstrap --with-browser installs it", file=sys.stderr)
        return 1
    command = [chromium, *sys.argv[1:]]
    if os.geteuid() != 0:
        os.execv(chromium, command)  # noqa: S606 - no shell is wanted
    host, _, port = os.environ["BROWSER_TARGET"].rpartition(":")
    begun = threading.Event()
    inside: list[socket.socket] = []
    browser: list[subprocess.Popen[bytes]] = []

    def begin() -> None:
        # Of this thread only: what it makes is inside, what the others make is outside.
        os.unshare(os.CLONE_NEWNET)
        loopback_up()
        inside.append(socket.create_server(("127.0.0.1", int(port)), backlog=128))
        browser.append(subprocess.Popen(command, pass_fds=(3, 4)))
        begun.set()
        browser[0].wait()
        os._exit(browser[0].returncode & 0xFF)

    threading.Thread(target=begin).start()
    begun.wait()
    signal.signal(signal.SIGTERM, lambda *_: browser[0].terminate())
    while True:
        here, _ = inside[0].accept()
        threading.Thread(target=connect, args=(here, (host, int(port))), daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
