"""Puts the application together."""

import logging
import re
import time
import uuid

from flask import Blueprint, Flask, Response, g, request
from werkzeug.middleware.proxy_fix import ProxyFix

from chatbot import (
    account,
    admin,
    attachments,
    conversations,
    health,
    messages,
    models,
    openapi,
    signin,
    tokens,
    web,
)
from chatbot.cache import LOG_TIMEOUT_SECONDS, connect
from chatbot.cors import init_cors
from chatbot.database import Database
from chatbot.drain import Drain
from chatbot.generations import Generations
from chatbot.guessing import init_guard
from chatbot.identity import init_identity
from chatbot.metrics import init_metrics
from chatbot.model import Model
from chatbot.problems import init_problems
from chatbot.ratelimits import init_rate_limits
from chatbot.selection import Selection
from chatbot.sessions import ActiveSessions, init_sessions
from chatbot.settings import Settings
from chatbot.streaming import Readers
from chatbot.streamlog import KEEP_ENDED_SECONDS, MemoryLog, StreamLog
from chatbot.titles import Titles
from chatbot.uploads import Uploads
from chatbot.valkeylog import ValkeyLog

log = logging.getLogger(__name__)

# Polled every few seconds by machines: not worth a log line each.
QUIET = frozenset({"health.health", "health.ready", "prometheus_metrics", "static", "web.asset"})

BLUEPRINTS: tuple[Blueprint, ...] = (
    signin.blueprint,
    account.blueprint,
    tokens.blueprint,
    admin.blueprint,
    conversations.blueprint,
    messages.blueprint,
    attachments.blueprint,
    models.blueprint,
    openapi.blueprint,
    health.blueprint,
    web.blueprint,
)


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
        "readers": Readers(),
        "drain": Drain(),
        "selection": Selection(settings, model),
        "titles": Titles(database, model, settings.title_model) if settings.title_model else None,
        "uploads": Uploads(settings, database),
    }

    _log_requests(app)
    init_metrics(app, settings, sessions)
    init_problems(app)
    init_sessions(app, settings)
    init_cors(app, settings)

    @app.before_request
    def refuse_stale_schema() -> None:
        if request.path.startswith("/api/") and request.blueprint not in (None, health.blueprint.name):
            database.check_schema()

    init_identity(app)
    init_guard(app, settings, valkey)
    for blueprint in BLUEPRINTS:
        app.register_blueprint(blueprint)
    if settings.openid_issuer is not None:
        from chatbot.openid import init_openid  # its libraries need 16 MB

        init_openid(app, settings)
    init_rate_limits(app, settings, valkey, (*messages.GENERATING, "attachments.upload"))

    @app.after_request
    def note_session(response: Response) -> Response:
        asking = g.get("principal")
        if asking is not None and asking.sign_in_id is not None:
            sessions.touch(asking.sign_in_id.hex)
        return response

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
