"""The browser's cookie, and how many sessions are active: browsers that are signed in and made a request in the last
five minutes. Programs with API tokens have none.
"""

import logging
import math
import threading
import time
from datetime import timedelta

from flask import Flask, request
from flask.sessions import SecureCookieSessionInterface
from valkey import Valkey
from valkey.exceptions import ValkeyError

from chatbot.settings import Settings

log = logging.getLogger(__name__)

ACTIVE_SECONDS = 300
# A session is written at most this often by a worker, and a failing Valkey is left alone this long (seconds).
TOUCH_EVERY = 30
PAUSE_AFTER_ERROR = 5
KEY = "chatbot:active_sessions"


class _SessionInterface(SecureCookieSessionInterface):
    """Marks the cookie Secure exactly when the browser came over HTTPS (nginx says so in X-Forwarded-Proto).

    Foreign sites get it sent only where the settings name such a site: then the CSRF token alone keeps others out.
    """

    def get_cookie_secure(self, _app: Flask) -> bool:
        return request.is_secure

    def get_cookie_samesite(self, app: Flask) -> str:
        return "None" if request.is_secure and app.extensions["settings"].cors_origins else "Lax"


def init_sessions(app: Flask, settings: Settings) -> None:
    """Configure the cookie."""
    app.session_interface = _SessionInterface()
    app.config.update(
        SESSION_COOKIE_NAME="chatbot_session",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_REFRESH_EACH_REQUEST=False,
        PERMANENT_SESSION_LIFETIME=timedelta(days=settings.session_days),
    )


class ActiveSessions:
    """Counts the active sessions of all workers and hosts in Valkey, or of this process where none is configured."""

    def __init__(self, valkey: "Valkey | None") -> None:
        self._valkey = valkey
        self._seen: dict[str, float] = {}
        self._lock = threading.Lock()
        self._paused_until = 0.0

    def touch(self, identifier: str) -> None:
        """Note that the session just made a request. Never fails; costs nothing when it was noted a moment ago."""
        clock = time.monotonic()
        with self._lock:
            if clock - self._seen.get(identifier, -math.inf) < TOUCH_EVERY or clock < self._paused_until:
                return
            self._seen[identifier] = clock
            if len(self._seen) > 10_000:
                self._forget_before(clock - ACTIVE_SECONDS)
        if self._valkey is None:
            return
        try:
            self._valkey.zadd(KEY, {identifier: time.time()})
        except ValkeyError as error:
            self._paused_until = clock + PAUSE_AFTER_ERROR
            log.warning("active sessions are not counted: %s", type(error).__name__)

    def count(self) -> float:
        """The number of active sessions; NaN when Valkey does not answer, since a guess would look like a fact."""
        if self._valkey is None:
            with self._lock:
                self._forget_before(time.monotonic() - ACTIVE_SECONDS)
                return len(self._seen)
        try:
            with self._valkey.pipeline() as pipeline:
                pipeline.zremrangebyscore(KEY, "-inf", time.time() - ACTIVE_SECONDS)
                pipeline.zcard(KEY)
                return float(pipeline.execute()[1])
        except ValkeyError:
            return math.nan

    def _forget_before(self, clock: float) -> None:
        self._seen = {identifier: seen for identifier, seen in self._seen.items() if seen >= clock}
