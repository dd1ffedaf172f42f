"""gunicorn's gevent worker, with answers that outlive their connections."""

import math
import threading
import time

import gevent
from gunicorn.workers.ggevent import GeventWorker

from chatbot.generations import Generations

# So often (seconds) a worker looks for answers whose process has died.
REAP_EVERY = 10.0
# And for files that belong to nothing.
SWEEP_EVERY = 3600.0


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no type information
    """Stops when its connections and its answers have ended; what takes too long is interrupted and saved."""

    def run(self) -> None:
        """Serve until gunicorn says stop, then let everything end."""
        threading.Thread(target=self._reap, name="reaper", daemon=True).start()
        super().run()
        while self._generations().running():
            self.notify()
            gevent.sleep(0.1)

    def handle_exit(self, sig: int, frame: object) -> None:
        """SIGTERM: answers have the time that the settings give them; the rest of gunicorn's patience is for saving."""
        super().handle_exit(sig, frame)
        longest = self.wsgi.extensions["settings"].stream_max_seconds
        gevent.spawn_later((longest + self.cfg.graceful_timeout) / 2, self._generations().interrupt, "shutdown")

    def _reap(self) -> None:
        swept = -math.inf
        while self.alive:
            self._generations().reap_all()
            if time.monotonic() - swept > SWEEP_EVERY:
                swept = time.monotonic()
                self.wsgi.extensions["uploads"].sweep()
            time.sleep(REAP_EVERY)

    def _generations(self) -> Generations:
        generations: Generations = self.wsgi.extensions["generations"]
        return generations
