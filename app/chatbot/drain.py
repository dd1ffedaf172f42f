"""The end of a process, as its readers and its metrics see it: a release must not cut an answer.

Nothing here knows of gunicorn or of signals: worker.py says when what happens, and in which order.
"""

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from valkey import Valkey
from valkey.exceptions import ValkeyError

from chatbot import metrics
from chatbot.streamlog import Subscription

log = logging.getLogger(__name__)

# What ended processes have counted, for the next one that Prometheus can ask; kept so long (seconds).
CUTS = "chatbot:streams_cut"
CUTS_SECONDS = 3600


class Drain:
    """How far the end of this process is.

    `begun`: it takes no answers over any more. `over`: its readers have to go on at another process.
    """

    def __init__(self) -> None:
        self.begun = False
        self.over = False
        self._subscriptions: set[Subscription] = set()
        self._cuts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def begin(self) -> None:
        """From now on this process only ends."""
        self.begun = True

    def end(self) -> None:
        """Wake all readers, so that they hear of it now and not with their next word."""
        with self._lock:
            self.over = True
            for subscription in self._subscriptions:
                subscription.fail()

    @contextmanager
    def watching(self, subscription: Subscription) -> Iterator[None]:
        """Wake the subscription's reader when the time is over: its `read` raises LogUnavailableError."""
        with self._lock:
            self._subscriptions.add(subscription)
            if self.over:
                subscription.fail()
        try:
            yield
        finally:
            with self._lock:
                self._subscriptions.discard(subscription)

    def count_cut(self, reason: str) -> None:
        """Count a response that has ended before its answer; `reason` is one of metrics.STREAM_CUTS."""
        if self.over and reason == "client":
            reason = "shutdown"  # it has not taken the word that it should go on elsewhere
        if self.begun:
            with self._lock:
                self._cuts[reason] += 1
        else:
            metrics.streams_cut.labels(reason).inc()

    def publish(self, valkey: Valkey | None) -> None:
        """Leave what was counted since `begin` to a process that still listens: nobody asks this one for metrics."""
        with self._lock:
            cuts, self._cuts = self._cuts, Counter()
        if not cuts:
            return
        try:
            if valkey is not None:
                pipeline = valkey.pipeline()
                for reason, count in cuts.items():
                    pipeline.hincrby(CUTS, reason, count)
                pipeline.expire(CUTS, CUTS_SECONDS)
                pipeline.execute()
                return
        except ValkeyError as error:
            log.warning("the streams that were cut are not counted: %s", type(error).__name__)
        for reason, count in cuts.items():  # seen where only this worker ends
            metrics.streams_cut.labels(reason).inc(count)


def collect_cuts(valkey: Valkey | None) -> None:
    """Count what ended processes have left; each of their streams once, whoever comes first."""
    if valkey is None:
        return
    try:
        pipeline = valkey.pipeline()
        pipeline.hgetall(CUTS)
        pipeline.delete(CUTS)
        found, _ = pipeline.execute()
    except ValkeyError:
        return  # the next round, or another process
    for reason, count in found.items():
        if reason.decode() in metrics.STREAM_CUTS:
            metrics.streams_cut.labels(reason.decode()).inc(int(count))
