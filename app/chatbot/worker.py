"""gunicorn's gevent worker, with answers that outlive their connections, and a release.

The end of a worker, in its order. Each time is longer than the one before it; settings.py compares those of 2 and 5.

1. SIGTERM. No new connections (gunicorn's part); no answer of another process is taken over any more.
2. Until CHATBOT_DRAIN_SECONDS have passed, streams and answers go on to their ends. CHATBOT_STREAM_MAX_SECONDS limits
   one answer; where that is the shorter time, all of them end here. Who has nothing left to do goes on to 4.
3. Then answers that are still being written are handed over (handover.py), and readers are told to resume. Both go to
   the processes of the new colour; where there are none, the answers are marked as interrupted after their lease.
4. Idle connections are closed, and after LEAVE_WITHIN those of readers who took no notice. What was counted is passed
   on to a process that Prometheus can still ask.
5. CHATBOT_GRACEFUL_TIMEOUT after SIGTERM gunicorn's master kills what is left. The role makes it 30 seconds more than
   the time of 2, for the last saves.
6. The container's stop time-out kills the master. The role makes it 60 seconds more than the time of 2.

A second SIGTERM changes nothing. SIGINT and SIGQUIT end a worker at once: its answers then count as a dead one's.
"""

import contextlib
import logging
import math
import socket
import threading
import time
from typing import Any

import gevent
from gunicorn.glogging import Logger
from gunicorn.workers.ggevent import GeventWorker
from sqlalchemy.exc import SQLAlchemyError

from chatbot.drain import Drain, collect_cuts
from chatbot.generations import Generations
from chatbot.handover import take_over

log = logging.getLogger(__name__)

# So often (seconds) a worker looks for answers whose process has died.
REAP_EVERY = 10.0
# For files that belong to nothing.
SWEEP_EVERY = 3600.0
# And for answers that were handed over: their readers wait. The pause after an error is longer.
TAKE_OVER_EVERY = 0.5
# gunicorn notices SIGTERM within a second; until then (seconds) there may be new connections.
ACCEPTING_FOR = 1.5
# A reader who was told to resume has left by then (seconds).
LEAVE_WITHIN = 5.0


class Log(Logger):  # type: ignore[misc]  # gunicorn has no type information
    """gunicorn's messages. Of each request the application writes a line of its own; these would repeat it."""

    access_log_enabled = False


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no type information
    """Stops when its connections and its answers have ended; what takes too long goes on in another process."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._connections: dict[socket.socket, bool] = {}  # with whether there is a request on it

    def run(self) -> None:
        """Serve until gunicorn says stop, then let everything end."""
        for name, work in (("reaper", self._reap), ("successor", self._take_over), ("end", self._end)):
            threading.Thread(target=work, name=name, daemon=True).start()
        super().run()
        while self._generations().running():
            self.notify()
            gevent.sleep(0.1)
        self._drain().publish(self.wsgi.extensions["valkey"])

    def handle(self, listener: socket.socket, client: socket.socket, address: object) -> None:
        """Serve one connection."""
        self._connections[client] = False
        try:
            super().handle(listener, client, address)
        finally:
            self._connections.pop(client, None)

    def handle_request(self, listener: object, request: object, client: socket.socket, address: object) -> None:
        """Serve one request of a connection."""
        self._connections[client] = True
        try:
            super().handle_request(listener, request, client, address)
        finally:
            if client in self._connections:
                self._connections[client] = False

    def _end(self) -> None:
        """What the head of this file calls 1 to 4."""
        while self.alive:
            time.sleep(0.2)
        told = time.monotonic()
        drain, generations = self._drain(), self._generations()
        drain.begin()
        end = told + self.wsgi.extensions["settings"].drain_seconds
        while time.monotonic() < end and (time.monotonic() - told < ACCEPTING_FOR or self._busy()):
            time.sleep(0.1)
        ended = time.monotonic()
        drain.end()
        while True:  # until there is no process any more
            generations.hand_over()  # also those that have only just begun
            self._close_connections(idle_only=time.monotonic() - ended < LEAVE_WITHIN)
            time.sleep(0.1)

    def _busy(self) -> bool:
        return any(self._connections.values()) or self._generations().running() > 0

    def _close_connections(self, *, idle_only: bool) -> None:
        """End them as if their clients had: an idle one as soon as it is read from, so what has arrived is served."""
        for client, busy in list(self._connections.items()):
            if not busy or not idle_only:
                with contextlib.suppress(OSError, AttributeError):  # closed meanwhile
                    # Not gevent's own, which raises in whoever reads there instead of letting it come to the end.
                    client._sock.shutdown(socket.SHUT_RDWR if busy else socket.SHUT_RD)  # type: ignore[attr-defined]

    def _reap(self) -> None:
        swept = -math.inf
        while self.alive:
            self._generations().reap_all()
            collect_cuts(self.wsgi.extensions["valkey"])
            if time.monotonic() - swept > SWEEP_EVERY:
                swept = time.monotonic()
                self.wsgi.extensions["uploads"].sweep()
            time.sleep(REAP_EVERY)

    def _take_over(self) -> None:
        pause = TAKE_OVER_EVERY
        while self.alive:
            time.sleep(pause)
            pause = TAKE_OVER_EVERY
            try:
                take_over(self.wsgi)
            except SQLAlchemyError as failure:
                log.warning("could not look for answers to take over: %s", type(failure).__name__)
                pause = REAP_EVERY / 2
            except Exception:  # one answer that cannot be continued is no reason to leave all others
                log.exception("could not take an answer over")

    def _generations(self) -> Generations:
        generations: Generations = self.wsgi.extensions["generations"]
        return generations

    def _drain(self) -> Drain:
        drain: Drain = self.wsgi.extensions["drain"]
        return drain
