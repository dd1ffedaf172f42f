"""Front ends that are hosted elsewhere: the settings name them, all others stay out."""

from flask import Flask
from flask_cors import CORS

from chatbot.settings import Settings


def init_cors(app: Flask, settings: Settings) -> None:
    """Let scripts of the named origins use the API with the user's cookie."""
    origins = (settings.cors_origins or "").split()
    if not origins:
        return
    CORS(
        app,
        resources=r"/api/*",
        origins=origins,
        supports_credentials=True,
        allow_headers=["Authorization", "Content-Type", "Last-Event-ID", "X-CSRFToken", "X-Request-ID"],
        expose_headers=["Content-Disposition", "Location", "Retry-After", "X-Request-ID"],
        max_age=600,
    )
