"""One server takes over from another in the middle of long answers, as in a release. Both are the real gunicorn."""

import contextlib
import http.client
import os
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from chatbot.database import Message, Usage
from fake_openai import FakeOpenAI
from sqlalchemy import create_engine, select
from support import environment, eventually, gunicorn
from test_gunicorn import Reader, answer, series, words
from valkey_server import PASSWORD, valkey_server

# Long enough to be at its middle when all readers are there, also on a busy machine: twenty seconds.
COUNT = words(250)
WHOLE = "".join(COUNT)
# What "private words" counts for where the model has not said it: 13 characters, 3 a token.
ESTIMATED_PROMPT = 5

pytestmark = pytest.mark.server


@dataclass
class Colour:
    """A running server."""

    url: str
    directory: Path

    @property
    def log(self) -> str:
        return (self.directory / "gunicorn.log").read_text()

    @property
    def pid(self) -> int:
        return int(re.findall(r"Listening at: \S+ \((\d+)\)", self.log)[0])

    @property
    def workers(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", self.log)]


@dataclass
class Fleet:
    """Two colours on one PostgreSQL, one Valkey and one model, which continues where an answer ends."""

    old: Colour
    new: Colour
    model: FakeOpenAI
    database_url: str


@pytest.fixture
def fleet(postgresql_url: str, tmp_path: Path) -> Iterator[Fleet]:
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(FakeOpenAI(pieces=COUNT, between=0.08, continues=True))
        valkey = stack.enter_context(valkey_server(tmp_path / "valkey"))
        more = {"rate_limit": "1000 per minute", "rate_limit_address": "1000 per minute", "answers_per_account": "100"}
        more |= {"drain_seconds": "2", "graceful_timeout": "32", "valkey_url": valkey, "valkey_password": PASSWORD}
        colours = []
        for colour in ("blue", "green"):
            directory = tmp_path / colour
            directory.mkdir()
            variables = environment(model.url, postgresql_url, colour=colour, **more)
            colours.append(Colour(stack.enter_context(gunicorn(variables, directory)), directory))
        yield Fleet(colours[0], colours[1], model, postgresql_url)


def to_the_end(fleet: Fleet, reader: Reader) -> tuple[str, list[str]]:
    """What a reader gets who does as the server says: the text, and the names of the other events."""
    text, names = "", list[str]()
    while True:
        name, data = reader.next()
        if name == "delta":
            text += data["text"]
            continue
        names.append(name)
        if name != "resume":
            reader.leave()
            return text, names
        assert (data["message_id"], str(data["position"])) == (reader.message, reader.last_event_id)
        reader.leave()
        reader = Reader(fleet.new.url, reader, reader.last_event_id)


def follow_all(fleet: Fleet, readers: list[Reader]) -> dict[str, tuple[str, list[str]]]:
    """The same for many at once, by message."""
    results: dict[str, tuple[str, list[str]]] = {}

    def follow(reader: Reader) -> None:
        results[reader.message] = to_the_end(fleet, reader)

    threads = [threading.Thread(target=follow, args=(reader,)) for reader in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def saved(fleet: Fleet) -> tuple[list[Message], Usage]:
    """The answers as the database has them, and what the account has used."""
    engine = create_engine(fleet.database_url)
    with engine.connect() as connection:
        messages: Any = connection.execute(select(Message.__table__).where(Message.role == "assistant")).all()
        used: Any = connection.execute(select(Usage.__table__)).one()
    engine.dispose()
    return messages, used


def alive(pid: int) -> bool:
    """Whether the server still runs: as this process's child it stays a zombie until somebody waits for it."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_long_answers_go_on_in_the_next_release(fleet: Fleet) -> None:
    idle = http.client.HTTPConnection(urlsplit(fleet.old.url).netloc, timeout=30)  # as nginx keeps them
    idle.request("GET", "/api/v1/health")
    assert idle.getresponse().read()
    assert idle.sock is not None
    readers = [Reader(fleet.old.url) for _ in range(8)]
    for reader in readers:
        reader.until("delta")
        reader.last_event_id = "0"
    left = Reader(fleet.old.url)  # nobody reads this one
    left.until("delta")
    left.leave()
    again = [Reader(fleet.old.url, reader, "0") for reader in readers]
    for reader in readers:
        reader.leave()
    os.kill(fleet.old.pid, signal.SIGTERM)

    def insist() -> None:
        for pid in (fleet.old.pid, *fleet.old.workers):  # a second SIGTERM hurries nobody
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    threading.Timer(0.5, insist).start()
    results = follow_all(fleet, again)
    assert results == {reader.message: (WHOLE, ["resume", "done"]) for reader in readers}
    eventually(lambda: answer(fleet.new.url, left.conversation)["status"] == "complete")
    messages, used = saved(fleet)
    assert [(message.content, message.status, message.finish_reason) for message in messages] == [
        (WHOLE, "complete", "stop")
    ] * 9
    # Each answer was written by two processes, and no token of it counted by both.
    assert len(fleet.model.requests) == 2 * 9
    assert {message.completion_tokens for message in messages} == {len(COUNT)}
    assert (used.prompt_tokens, used.completion_tokens) == (9 * (ESTIMATED_PROMPT + 7), 9 * len(COUNT))
    # Neither gunicorn's patience (32 s) nor that of the idle connection (75 s) has decided.
    eventually(lambda: not alive(fleet.old.pid))
    assert idle.sock.recv(1) == b""
    idle.close()
    assert fleet.old.log.count("answer handed over") == fleet.new.log.count("answer taken over") == 9
    assert "Traceback" not in fleet.old.log + fleet.new.log
    # The old process counts the nine who left before its end as they leave; those it sent on are counted by the new.
    eventually(lambda: series(fleet.new.url, 'chatbot_streams_cut_total{reason="drain"}') == 8, 20)
    eventually(lambda: series(fleet.new.url, "chatbot_open_streams") == 0)
