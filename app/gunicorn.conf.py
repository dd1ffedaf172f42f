# ruff: noqa: E402 - the patch comes first
from gevent import monkey

monkey.patch_all()  # before any other import: gunicorn itself patches only after the fork, too late for psycopg

# gunicorn's configuration. The worker count and time-outs come from the application's settings.
import gc
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from chatbot.logs import LossyHandler, logging_config
from chatbot.settings import SettingsError, load_settings

try:
    _settings = load_settings()
except SettingsError as error:
    sys.exit(f"chatbot: {error}")

# prometheus_client decides on import whether it shares its numbers, and wants the directory then.
_metrics = Path(os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", str(Path(tempfile.gettempdir()) / "chatbot-metrics")))
_metrics.mkdir(parents=True, exist_ok=True)

# Its code is loaded here, once, and shared by the workers: half the memory. Not with preload_app, which would also make
# connections and threads before the workers fork.
import chatbot.factory

if _settings.openid_issuer is not None:
    import chatbot.openid  # noqa: F401

wsgi_app = "chatbot.wsgi:app"
chdir = str(Path(__file__).resolve().parent)
bind = _settings.bind
workers = _settings.workers
worker_class = "chatbot.worker.Worker"
# Streams are cheap: this is a guard against running out of file descriptors. No max_requests: it cuts running streams.
worker_connections = 1000
# A worker whose event loop is stuck for this long is replaced (seconds).
timeout = 60
graceful_timeout = _settings.graceful_timeout
keepalive = 75
limit_request_line = 8190  # a search for 200 characters may need 2400 bytes
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - never a disk that can stall
control_socket_disable = True
logger_class = "chatbot.worker.Log"
logconfig_dict = logging_config(_settings.log_level, LossyHandler)


def on_starting(_server: Any) -> None:
    """Forget the metrics of the previous start. Here and not at module level, which a reload runs again."""
    for file in _metrics.glob("*.db"):
        file.unlink()


def when_ready(_server: Any) -> None:
    """Keep the garbage collector from touching, and so copying, what the workers share."""
    gc.collect()
    gc.freeze()


def child_exit(_server: Any, worker: Any) -> None:
    """Take a dead worker's gauges out of the sums."""
    from prometheus_flask_exporter.multiprocess import GunicornInternalPrometheusMetrics

    GunicornInternalPrometheusMetrics.mark_process_dead_on_child_exit(worker.pid)
