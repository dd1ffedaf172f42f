import json
import logging
import sys

from chatbot.logs import JsonFormatter, logging_config
from flask import Flask, g


def line(**extra: object) -> dict[str, object]:
    record = logging.getLogger("test").makeRecord(
        "test", logging.WARNING, "file", 1, "said %s", ("ünicode\n",), None, extra=extra
    )
    text = JsonFormatter().format(record)
    assert "\n" not in text
    return dict(json.loads(text))


def test_a_record_is_one_line_of_json() -> None:
    entry = line(milliseconds=1.5, odd={1, 2} and object)
    assert entry["message"] == "said ünicode\n"
    assert (entry["level"], entry["logger"], entry["milliseconds"]) == ("warning", "test", 1.5)
    assert str(entry["time"]).endswith("Z")
    assert "request_id" not in entry


def test_the_request_is_named() -> None:
    with Flask("test").test_request_context():
        g.request_id = "abc"
        assert line()["request_id"] == "abc"


def test_an_exception_is_in_the_line() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        record = logging.getLogger("test").makeRecord("test", logging.ERROR, "file", 1, "oh", (), sys.exc_info())
    assert "ValueError: broken" in json.loads(JsonFormatter().format(record))["exception"]


def test_the_configuration_silences_what_repeats() -> None:
    loggers = logging_config("debug")["loggers"]
    assert loggers["gunicorn.error"]["level"] == "DEBUG"
    assert loggers["httpx2"]["level"] == "WARNING"
