"""What the current application is made of, typed, for its views."""

from typing import cast

from flask import current_app

from chatbot.database import Database
from chatbot.drain import Drain
from chatbot.generations import Generations
from chatbot.model import Model
from chatbot.selection import Selection
from chatbot.settings import Settings
from chatbot.streaming import Readers
from chatbot.streamlog import StreamLog
from chatbot.titles import Titles
from chatbot.uploads import Uploads


def database() -> Database:
    """The tables."""
    return cast(Database, current_app.extensions["database"])


def drain() -> Drain:
    """How far the end of this process is."""
    return cast(Drain, current_app.extensions["drain"])


def generations() -> Generations:
    """The answers that this process is writing."""
    return cast(Generations, current_app.extensions["generations"])


def model() -> Model:
    """The configured model."""
    return cast(Model, current_app.extensions["model"])


def readers() -> Readers:
    """Who follows answers in this process."""
    return cast(Readers, current_app.extensions["readers"])


def selection() -> Selection:
    """The models to choose from."""
    return cast(Selection, current_app.extensions["selection"])


def settings() -> Settings:
    """The settings."""
    return cast(Settings, current_app.extensions["settings"])


def stream_log() -> StreamLog:
    """The logs of running answers."""
    return cast(StreamLog, current_app.extensions["stream_log"])


def titles() -> Titles | None:
    """Who asks a model for titles; None where none is configured."""
    return cast("Titles | None", current_app.extensions["titles"])


def uploads() -> Uploads:
    """The uploaded files."""
    return cast(Uploads, current_app.extensions["uploads"])
