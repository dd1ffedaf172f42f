"""Puts the application together."""

import logging
import re
import time
import uuid

from flask import Flask, Response, g, request
from werkzeug.middleware.proxy_fix import ProxyFix

from chatbot import conversations, health, messages, web
from chatbot.cache import LOG_TIMEOUT_SECONDS, connect
from chatbot.database import Database
from chatbot.generations import Generations
from chatbot.metrics import init_metrics
from chatbot.model import Model
from chatbot.problems import init_problems
from chatbot.ratelimits import init_rate_limits
from chatbot.sessions import ActiveSessions, init_sessions, session_id
from chatbot.settings import Settings
from chatbot.streamlog import KEEP_ENDED_SECONDS, MemoryLog, StreamLog
from chatbot.valkeylog import ValkeyLog

log = logging.getLogger(__name__)

# Polled every few seconds by machines: not worth a log line each.
QUIET = frozenset({"health.health", "health.ready", "prometheus_metrics", "static", "web.asset"})


def create_app(settings: Settings) -> Flask:
    """The application for these settings. Connects to nothing yet: PostgreSQL and Valkey may still be down."""
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY=settings.secret_key.get_secret_value(),
        MAX_CONTENT_LENGTH=settings.max_body_bytes,
        SEND_FILE_MAX_AGE_DEFAULT=3600,
    )
    app.json.sort_keys = False  # type: ignore[attr-defined]
    # Exactly one proxy, nginx: the last address it appended is the client.
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1)  # type: ignore[method-assign]

    valkey = connect(settings)
    database = Database(settings)
    sessions = ActiveSessions(valkey)
    model, stream_log = Model(settings), _stream_log(settings)
    app.extensions |= {
        "settings": settings,
        "database": database,
        "valkey": valkey,
        "model": model,
        "stream_log": stream_log,
        "generations": Generations(database, model, stream_log, settings.stream_max_seconds),
    }

    _log_requests(app)
    init_metrics(app, settings, sessions)
    init_problems(app)
    init_sessions(app)
    for blueprint in (conversations.blueprint, messages.blueprint, health.blueprint, web.blueprint):
        app.register_blueprint(blueprint)
    init_rate_limits(app, settings, valkey, messages.GENERATING)

    @app.before_request
    def note_session() -> None:
        if request.endpoint not in QUIET and (identifier := session_id()) is not None:
            sessions.touch(identifier)

    @app.before_request
    def refuse_stale_schema() -> None:
        if request.blueprint in (conversations.blueprint.name, messages.blueprint.name):
            database.check_schema()

    @app.after_request
    def keep_out_of_caches(response: Response) -> Response:
        if request.path.startswith("/api/"):
            response.headers.setdefault("Cache-Control", "no-store")
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        return response

    return app


def _stream_log(settings: Settings) -> StreamLog:
    valkey = connect(settings, timeout=LOG_TIMEOUT_SECONDS)
    if valkey is None:
        return MemoryLog()
    return ValkeyLog(valkey, settings.stream_max_seconds + KEEP_ENDED_SECONDS)


def _log_requests(app: Flask) -> None:
    """Give every request an identifier (nginx's, where it sends one) and a line in the log."""

    @app.before_request
    def identify() -> None:
        given = request.headers.get("X-Request-ID", "")
        g.request_id = given if re.fullmatch(r"[A-Za-z0-9._-]{8,64}", given) else uuid.uuid4().hex
        g.began = time.perf_counter()

    @app.after_request
    def report(response: Response) -> Response:
        response.headers["X-Request-ID"] = g.request_id
        if request.endpoint not in QUIET:
            log.info(
                "request",
                extra={
                    "method": request.method,
                    "path": request.path,
                    "status": response.status_code,
                    "milliseconds": round((time.perf_counter() - g.began) * 1000, 1),
                    "address": request.remote_addr,
                },
            )
        return response
