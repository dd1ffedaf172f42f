"""The chat page. Everything it does goes through the API."""

from typing import cast

from flask import Blueprint, Response, current_app, make_response, render_template

from chatbot.settings import Settings

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


@blueprint.get("/")
def page() -> Response:
    """The page."""
    response = make_response(render_template("chat.html", settings=cast(Settings, current_app.extensions["settings"])))
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return response
