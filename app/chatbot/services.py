"""What the current application is made of, typed, for its views."""

from typing import cast

from flask import current_app

from chatbot.database import Database
from chatbot.generations import Generations
from chatbot.model import Model
from chatbot.settings import Settings
from chatbot.streaming import Readers
from chatbot.streamlog import StreamLog


def database() -> Database:
    """The tables."""
    return cast(Database, current_app.extensions["database"])


def generations() -> Generations:
    """The answers that this process is writing."""
    return cast(Generations, current_app.extensions["generations"])


def model() -> Model:
    """The configured model."""
    return cast(Model, current_app.extensions["model"])


def readers() -> Readers:
    """Who follows answers in this process."""
    return cast(Readers, current_app.extensions["readers"])


def settings() -> Settings:
    """The settings."""
    return cast(Settings, current_app.extensions["settings"])


def stream_log() -> StreamLog:
    """The logs of running answers."""
    return cast(StreamLog, current_app.extensions["stream_log"])
