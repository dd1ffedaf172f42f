"""The application under its real server: gunicorn with two gevent workers, on PostgreSQL where it is installed."""

import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fake_openai import FakeOpenAI
from support import (
    APP,
    SECRET,
    answers,
    empty_database,
    environment,
    eventually,
    fetch,
    find_program,
    free_port,
    get,
    gunicorn,
)
from test_model import make_certificate


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server keeps its log, metrics and the fake model's certificate."""
    return tmp_path_factory.mktemp("gunicorn")


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, directory: Path) -> Iterator[tuple[str, FakeOpenAI]]:
    """One server with two workers for the whole module. Its model speaks TLS, which gevent has to get right."""
    database = f"sqlite:///{directory}/test.db"
    if find_program("initdb"):
        database = request.getfixturevalue("postgresql_server")
        empty_database(database)
    make_certificate(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    with FakeOpenAI(tls=context) as fake:
        variables = environment(fake.url, database, rate_limit="1000 per minute", rate_limit_address="1000 per minute")
        with gunicorn(variables | {"SSL_CERT_FILE": str(directory / "cert.pem")}, directory) as url:
            yield url, fake


@pytest.fixture
def url(server: tuple[str, FakeOpenAI]) -> str:
    """The server's base URL."""
    return server[0]


@pytest.fixture
def fake(server: tuple[str, FakeOpenAI]) -> FakeOpenAI:
    """The server's model, with its defaults."""
    fake = server[1]
    fake.pieces, fake.between, fake.waits, fake.sent, fake.left = ["Hello", " ", "world"], 0, {}, 0, 0
    return fake


class Reader:
    """Reads a stream as it comes."""

    def __init__(self, url: str, conversation: str | None = None) -> None:
        self.conversation = conversation or fetch(f"{url}/api/v1/conversations", {})["id"]
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        body = json.dumps({"content": "private words"})
        headers = {"Content-Type": "application/json"}
        self.connection.request("POST", f"/api/v1/conversations/{self.conversation}/messages", body, headers)
        self.response = self.connection.getresponse()

    def next(self) -> tuple[str, dict[str, Any]]:
        """The next event, comments skipped."""
        name = ""
        while line := self.response.readline().decode().rstrip("\n"):
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            if line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
        return (name, data) if name else self.next()

    def until(self, wanted: str) -> dict[str, Any]:
        """The data of the next event with that name."""
        while (event := self.next())[0] != wanted:
            pass
        return event[1]

    def leave(self) -> None:
        """Break the connection off."""
        self.response.close()
        self.connection.close()


def answer(url: str, conversation: str) -> dict[str, Any]:
    return dict(fetch(f"{url}/api/v1/conversations/{conversation}")["messages"][1])


def workers(directory: Path) -> set[int]:
    """The workers' process ids, from the log."""
    return {int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", (directory / "gunicorn.log").read_text())}


def metrics(url: str) -> str:
    return get(f"{url}/metrics")


def series(url: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", metrics(url), re.MULTILINE)
    return float(found[1]) if found else 0


def test_the_first_token_arrives_before_the_model_has_finished(url: str, fake: FakeOpenAI) -> None:
    gate = threading.Event()
    fake.waits = {1: lambda: gate.wait(20)}
    reader = Reader(url)
    assert reader.until("delta") == {"text": "Hello"}
    assert fake.sent == 1
    gate.set()
    assert reader.until("done")["status"] == "complete"
    reader.leave()


def test_metrics_are_summed_over_the_workers(url: str, directory: Path) -> None:
    files = {f"counter_{pid}.db" for pid in workers(directory)}
    assert len(files) == 2
    # One after the other, all requests may go to the same worker.
    with ThreadPoolExecutor(16) as pool:
        for _ in range(50):
            list(pool.map(lambda _: fetch(f"{url}/api/v1/health"), range(32)))
            if files == {file.name for file in (directory / "metrics").glob("counter_*.db")}:
                break
        else:
            pytest.fail("one worker got none of 1600 requests")
    name = 'chatbot_requests_total{method="GET",status="200",url_rule="/api/v1/health"}'
    counts = {series(url, name) for _ in range(10)}
    assert len(counts) == 1  # whichever worker is asked
    assert counts.pop() >= 32


def test_a_reader_who_leaves_is_noticed_and_the_text_kept(url: str, fake: FakeOpenAI) -> None:
    fake.pieces, fake.between = ["x"] * 2000, 0.01
    reader = Reader(url)
    reader.until("delta")
    assert series(url, "chatbot_open_streams") == 1
    reader.leave()
    eventually(lambda: answer(url, reader.conversation)["status"] != "streaming")
    kept = answer(url, reader.conversation)
    assert kept["status"] == "interrupted"
    assert kept["content"].startswith("x")
    eventually(lambda: fake.left)
    assert series(url, "chatbot_open_streams") == 0


def test_forty_streams_at_once(url: str, fake: FakeOpenAI) -> None:
    fake.pieces, fake.between = ["x"] * 10, 0.02
    results: list[str] = []

    def read() -> None:
        reader = Reader(url)
        results.append(str(reader.until("done")["status"]))
        reader.leave()

    threads = [threading.Thread(target=read) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == ["complete"] * 40


def status(url: str, body: bytes | Callable[[], Iterator[bytes]], **headers: str) -> tuple[int, dict[str, Any]]:
    """What the server answers to a raw body (chunked where it is a function)."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    chunked = not isinstance(body, bytes)
    connection.request(
        "POST",
        "/api/v1/conversations",
        body() if callable(body) else body,
        {"Content-Type": "application/json"} | headers,
        encode_chunked=chunked,
    )
    response = connection.getresponse()
    result = response.status, json.load(response)
    connection.close()
    return result


def test_wrong_bodies_over_the_wire(url: str) -> None:
    assert status(url, b"{")[0] == 400
    assert status(url, b'{"title": 1}')[0] == 422

    def endless() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 100_000

    for code, problem in (
        status(url, b" " * 1_100_000),
        status(url, endless, **{"Transfer-Encoding": "chunked"}),
    ):
        assert (code, problem["title"]) == (413, "Request Entity Too Large")
    assert fetch(f"{url}/api/v1/ready")["status"] == "ready"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"CHATBOT_MODEL_NAME": ""}, "CHATBOT_MODEL_NAME is not set"),
        ({"CHATBOT_WORKRES": "2"}, "CHATBOT_WORKRES is not a setting"),
    ],
)
def test_wrong_settings_stop_the_start_with_one_line(variables: dict[str, str], message: str) -> None:
    own = environment("http://m/v1", "sqlite://", bind=f"127.0.0.1:{free_port()}")
    command = [sys.executable, "-m", "gunicorn"]
    env = os.environ | own | variables
    result = subprocess.run(command, cwd=APP, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode != 0
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert SECRET not in result.stderr


def test_everything_on_standard_output_is_json(url: str, directory: Path) -> None:
    reader = Reader(url)
    reader.until("done")
    reader.leave()
    log = directory / "gunicorn.log"
    eventually(lambda: "answer ended" in log.read_text())
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"Starting gunicorn 27.0.1", "request", "answer ended"} <= {line["message"] for line in lines}
    assert "private words" not in str(lines)


def test_kill_9_of_a_worker_loses_at_most_a_second(url: str, fake: FakeOpenAI, directory: Path) -> None:
    fake.pieces, fake.between = ["x"] * 2000, 0.01
    reader = Reader(url)
    for _ in range(200):
        reader.until("delta")
    before = workers(directory)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(workers(directory)) == 4, 30)
    reader.leave()
    kept = answer(url, reader.conversation)
    assert kept["status"] == "streaming"  # interrupted, as soon as three heartbeats are missing: see test_conversations
    assert len(kept["content"]) > 50
    fake.pieces, fake.between = ["fine"], 0
    reader = Reader(url)
    assert reader.until("done")["status"] == "complete"
    reader.leave()
    assert series(url, "chatbot_open_streams") == 0


def test_sigterm_lets_streams_finish(url: str, fake: FakeOpenAI, directory: Path) -> None:
    """The last test: the server is gone afterwards."""
    gate = threading.Event()
    fake.waits = {1: lambda: gate.wait(20)}
    reader = Reader(url)
    reader.until("delta")
    os.kill(
        int(re.findall(r"Listening at: \S+ \((\d+)\)", (directory / "gunicorn.log").read_text())[0]), signal.SIGTERM
    )
    time.sleep(1.5)
    gate.set()
    assert reader.until("done")["status"] == "complete"
    reader.leave()
    eventually(lambda: not answers(url))
