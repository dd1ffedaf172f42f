"""Is the process alive, and may it get traffic?"""

import logging
import threading
from collections.abc import Callable
from typing import cast

from flask import Blueprint, Response, current_app
from sqlalchemy import text
from valkey import Valkey

from chatbot import schemas
from chatbot.bodies import respond
from chatbot.database import Database, SchemaBehindError
from chatbot.identity import anybody
from chatbot.openapi import operation
from chatbot.settings import Settings

log = logging.getLogger(__name__)
blueprint = Blueprint("health", __name__, url_prefix="/api/v1")

# A dependency that takes longer (seconds) counts as down, even one that hangs. Long enough for a small VPS that builds
# the next release at the same time, shorter than the patience of whoever asks (5 s).
CHECK_TIMEOUT = 4.0


@blueprint.get("/health")
@anybody
@operation({200: schemas.Health})
def health() -> Response:
    """Alive: the process answers. Says nothing about what it depends on."""
    return respond(schemas.Health(status="alive", release=_settings().release))


@blueprint.get("/ready")
@anybody
@operation({200: schemas.Readiness, 503: schemas.Readiness})
def ready() -> Response:
    """Ready: names the release and colour; 503 and which check failed unless database, schema and Valkey are fine."""
    database = cast(Database, current_app.extensions["database"])
    valkey = cast("Valkey | None", current_app.extensions["valkey"])

    def ask_database() -> None:
        with database.engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        database.check_schema()

    checks = {"database": _check(ask_database), "valkey": "not configured"}
    if valkey is not None:
        checks["valkey"] = _check(valkey.ping)
    fine = all(result in ("ok", "not configured") for result in checks.values())
    if not fine:
        log.warning("not ready", extra={"checks": checks})
    settings = _settings()
    body = schemas.Readiness(
        status="ready" if fine else "not ready", release=settings.release, colour=settings.colour, checks=checks
    )
    return respond(body, 200 if fine else 503)


def _check(question: Callable[[], object]) -> str:
    """`ok`, or what is wrong in a few words; after CHECK_TIMEOUT at the latest."""
    result = [f"no answer within {CHECK_TIMEOUT:g} s"]

    def ask() -> None:
        try:
            question()
            result[0] = "ok"
        except SchemaBehindError as error:
            result[0] = str(error)
        except Exception as error:  # whatever a driver raises: it means "not ready"
            result[0] = type(error).__name__

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CHECK_TIMEOUT)
    return result[0]


def _settings() -> Settings:
    return cast(Settings, current_app.extensions["settings"])
