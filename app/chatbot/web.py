"""The web client's page and files, built from web/ by `make web`. Everything it does goes through the API."""

from pathlib import Path

from flask import Blueprint, Response, current_app, send_from_directory

blueprint = Blueprint("web", __name__)

# Nothing from elsewhere, nothing inline: text of the model can neither run nor fetch (images leak what they ask for).
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "font-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "worker-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)


# Names of files hold the digest of their content: another content has another name.
FOREVER_SECONDS = 365 * 24 * 3600

NOT_BUILT = "The web client is not built. Run `make web` in the repository's root, then load this page again.\n"


@blueprint.get("/")
@blueprint.get("/c/<uuid:_conversation_id>")
@blueprint.get("/account")
@blueprint.get("/admin")
@blueprint.get("/sign-in")
def page(**_: object) -> Response:
    """The page, the same for all of its addresses."""
    index = _build() / "index.html"
    try:
        response = Response(index.read_bytes(), mimetype="text/html")
    except FileNotFoundError:
        response = Response(NOT_BUILT, 503, mimetype="text/plain")
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response.headers["Cache-Control"] = "no-cache"
    return response


@blueprint.get("/static/web/assets/<path:name>")
def asset(name: str) -> Response:
    """A file that the page loads."""
    response = send_from_directory(_build() / "assets", name, max_age=FOREVER_SECONDS)
    response.cache_control.immutable = True
    return response


def _build() -> Path:
    return Path(str(current_app.static_folder)) / "web"
