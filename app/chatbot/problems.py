"""Errors as problem documents (RFC 9457): type, title, status and a detail that a person can act on."""

import logging
from typing import Any

import orjson
from flask import Flask, Response, g, request
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import HTTPException

from chatbot.database import SchemaBehindError

log = logging.getLogger(__name__)


class Problem(Exception):  # noqa: N818 - RFC 9457 calls it so
    """An answer that is an error. `retry_after` is in seconds; `extra` becomes further members of the document."""

    def __init__(
        self, status: int, title: str, detail: str, *, retry_after: int | None = None, **extra: object
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.title = title
        self.detail = detail
        self.retry_after = retry_after
        self.extra = extra

    def document(self) -> dict[str, Any]:
        """The problem document, as JSON types."""
        return {"type": "about:blank", "title": self.title, "status": self.status, "detail": self.detail} | self.extra

    def response(self) -> Response:
        """The document as a response, with the request's identifier for whoever looks into the logs."""
        document = self.document() | {"request_id": g.get("request_id")}
        response = Response(orjson.dumps(document, default=str), self.status, content_type="application/problem+json")
        if self.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        if self.retry_after is not None:
            response.headers["Retry-After"] = str(self.retry_after)
        return response


def model_problem(status: int, detail: str, *, retry_after: int | None = None, **extra: object) -> Problem:
    """What a reader is told when the model gives no answer."""
    return Problem(status, "The model did not answer", detail, retry_after=retry_after, **extra)


def init_problems(app: Flask) -> None:
    """Make every error of the application a problem document."""
    app.register_error_handler(Problem, Problem.response)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(SchemaBehindError, _schema_behind)
    for error in (OperationalError, InterfaceError, PoolTimeout):
        app.register_error_handler(error, _database_down)
    app.register_error_handler(Exception, _unexpected)


def _http_error(error: HTTPException) -> Response:
    if error.response is not None or error.code is None or error.code < 400:
        return error.get_response()  # type: ignore[return-value]  # werkzeug's own redirect, which Flask passes on
    details = {
        404: f"There is nothing at {request.path}.",
        405: f"{request.path} does not answer {request.method}.",
        413: f"The request's body is larger than {request.max_content_length} bytes.",
        429: f"At most {error.description}; try again later.",
    }
    problem = Problem(
        error.code,
        error.name,
        details.get(error.code, error.description or error.name),
        retry_after=g.get("retry_after"),
        **({"type": "urn:chatbot:rate-limited"} if error.code == 429 else {}),
    )
    response = problem.response()
    if error.code == 405:
        response.headers["Allow"] = dict(error.get_headers()).get("Allow", "")
    return response


def _schema_behind(error: SchemaBehindError) -> Response:
    log.error("schema is behind: %s", error)
    return Problem(
        503, "Service unavailable", "The service is being upgraded; try again in a minute.", retry_after=30
    ).response()


def _database_down(error: Exception) -> Response:
    # The driver's text may quote rows; its type says enough.
    log.error("database unavailable: %s", type(getattr(error, "orig", None) or error).__name__)
    return Problem(
        503, "Service unavailable", "The database does not answer; try again in a moment.", retry_after=5
    ).response()


def _unexpected(error: Exception) -> Response:
    log.exception("unexpected error", exc_info=error)
    return Problem(
        500, "Internal server error", "This should not have happened; the request's identifier leads to the log entry."
    ).response()
