"""The application under its real server: gunicorn with two gevent workers, on PostgreSQL where it is installed."""

import contextlib
import fcntl
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
from urllib.error import HTTPError
from urllib.parse import urlsplit

import pytest
from fake_openai import FakeOpenAI
from support import (
    APP,
    EMAIL,
    SECRET,
    TOKEN,
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
from support import PASSWORD as ACCOUNT_PASSWORD
from test_model import make_certificate
from valkey_server import PASSWORD, valkey_server

pytestmark = pytest.mark.server


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
    with FakeOpenAI(tls=context) as fake, valkey_server(directory / "valkey") as valkey:
        limits = {"rate_limit": "1000 per minute", "rate_limit_address": "1000 per minute"}
        limits |= {"answers_per_account": "100", "streams_per_account": "100"}
        variables = environment(fake.url, database, valkey_url=valkey, valkey_password=PASSWORD, **limits)
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
    """Reads a stream as it comes: of a new question, or of an answer that was asked for before."""

    message: str

    def __init__(self, url: str, resumed: "Reader | None" = None, last_event_id: str = "0") -> None:
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        if resumed is None:
            self.conversation = str(fetch(f"{url}/api/v1/conversations", {})["id"])
            body = json.dumps({"content": "private words"})
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
            self.connection.request("POST", f"/api/v1/conversations/{self.conversation}/messages", body, headers)
        else:
            self.conversation = resumed.conversation
            path = f"/api/v1/conversations/{self.conversation}/messages/{resumed.message}/stream"
            self.connection.request(
                "GET", path, headers={"Last-Event-ID": last_event_id, "Authorization": f"Bearer {TOKEN}"}
            )
        self.response = self.connection.getresponse()
        self.last_event_id = last_event_id
        self.message = str(self.until("start")["message_id"])

    def rest(self) -> tuple[str, str]:
        """The text to come, and the status at the end."""
        text = ""
        while True:
            name, data = self.next()
            if name == "delta":
                text += data["text"]
            else:
                self.leave()
                return text, str(data.get("status"))

    def next(self) -> tuple[str, dict[str, Any]]:
        """The next event, comments skipped. EOFError when the connection has ended."""
        name, data = "", dict[str, Any]()
        while line := self.response.readline().decode():
            line = line.rstrip("\n")
            if not line:
                if name:
                    return name, data
                continue
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            if line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
            if line.startswith("id: "):
                self.last_event_id = line.removeprefix("id: ")
        raise EOFError

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


def words(count: int) -> list[str]:
    """Pieces that tell which of them is missing or doubled."""
    return [f"w{number} " for number in range(count)]


def test_a_reload_loses_and_doubles_nothing(url: str, fake: FakeOpenAI) -> None:
    """Readers leave after each event in turn and come back, to whichever worker takes them."""
    fake.pieces, fake.between = words(60), 0.03
    first = Reader(url)
    resumed = series(url, "chatbot_resumed_streams_total")
    text, status, reader, visits = "", "", first, 0
    while not status:
        name, data = reader.next()
        if name == "delta":
            text += data["text"]
            reader.leave()
            reader, visits = Reader(url, first, reader.last_event_id), visits + 1
        else:
            status = data["status"]
    reader.leave()
    assert (text, status) == ("".join(fake.pieces), "complete")
    assert visits > 10
    assert series(url, "chatbot_resumed_streams_total") == resumed + visits
    for after in range(0, len(text) + 1, 7):  # and long after the end, from every place
        assert Reader(url, first, str(after)).rest() == (text[after:], "complete")
    assert answer(url, first.conversation)["content"] == text
    eventually(lambda: series(url, "chatbot_open_streams") == 0)


def test_tabs_see_the_same(url: str, fake: FakeOpenAI) -> None:
    fake.pieces, fake.between = words(40), 0.02
    first = Reader(url)
    tabs = [first, *(Reader(url, first) for _ in range(5))]
    results: list[tuple[str, str]] = []
    threads = [threading.Thread(target=lambda tab=tab: results.append(tab.rest())) for tab in tabs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [("".join(fake.pieces), "complete")] * 6


def test_stop_works_from_every_worker(url: str, fake: FakeOpenAI) -> None:
    fake.pieces, fake.between = words(2000), 0.02
    readers = [Reader(url) for _ in range(6)]
    for reader in readers:
        reader.until("delta")
        path = f"{url}/api/v1/conversations/{reader.conversation}/messages/{reader.message}/stop"
        assert fetch(path, {}) == {"message_id": reader.message, "status": "stopped"}
        assert reader.rest()[1] == "stopped"
        assert answer(url, reader.conversation)["content"].startswith("w0 w1 ")
    eventually(lambda: fake.left == 6)
    cut = 'chatbot_cut_answers_total{model="test-model",reason="stopped"}'
    assert series(url, cut) == 6
    eventually(lambda: series(url, "chatbot_running_generations") == 0)


def test_valkey_that_goes_away_costs_no_text(directory: Path) -> None:
    """A second server, so that it can be killed: readers go on from the database."""
    socket = directory / "second"
    socket.mkdir()
    with FakeOpenAI(pieces=words(100), between=0.04) as model, contextlib.ExitStack() as stack:
        valkey = contextlib.ExitStack()
        valkey.enter_context(valkey_server(socket / "valkey"))
        variables = environment(
            model.url,
            f"sqlite:///{socket}/test.db",
            valkey_url=f"unix://{socket}/valkey",
            valkey_password=PASSWORD,
        )
        second = stack.enter_context(gunicorn(variables, socket))
        reader = Reader(second)
        reader.until("delta")
        valkey.close()
        text, status = reader.rest()
        assert status == "complete"
        assert answer(second, reader.conversation)["content"] == "".join(model.pieces)
        assert Reader(second, reader).rest() == ("".join(model.pieces), "complete")
        assert "".join(model.pieces).endswith(text)
        model.between = 0
        assert Reader(second).rest() == ("".join(model.pieces), "complete")  # without Valkey from the beginning


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
        {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"} | headers,
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
    assert "gunicorn.access" not in {line["logger"] for line in lines}, "one line for each request is enough"


def test_a_log_that_nobody_reads_stops_nobody(tmp_path: Path) -> None:
    """As when Docker's engine is down, which a container's log goes to."""
    here, there = os.pipe()
    fcntl.fcntl(there, fcntl.F_SETPIPE_SZ, 4096)
    variables = environment("http://127.0.0.1:9/v1", f"sqlite:///{tmp_path}/test.db", workers="2")
    with os.fdopen(here, "rb", buffering=0) as log, gunicorn(variables, tmp_path, there) as second:
        os.close(there)
        codes = [status(second, b"{}")[0] for _ in range(60)]
        # It is read again.
        text = log.read(65536)
        while b"had no room" not in text:
            codes.append(status(second, b"{}")[0])
            text += log.read(65536)
    assert set(codes) == {201}
    lines = [json.loads(line) for line in text.splitlines()]
    # Each worker counts its own.
    assert all(line["lines"] > 0 for line in lines if "had no room" in line["message"])
    assert "request" in {line["message"] for line in lines}


def test_signing_in_over_the_wire(url: str, directory: Path) -> None:
    """Each worker hashes with gevent's threads; a failure is the line that fail2ban looks for."""
    for _ in range(4):
        assert (
            fetch(f"{url}/api/v1/session", {"email": EMAIL, "password": ACCOUNT_PASSWORD})["account"]["email"] == EMAIL
        )
    with pytest.raises(HTTPError, match="401") as refused:
        fetch(f"{url}/api/v1/session", {"email": EMAIL, "password": "wrong"})
    refused.value.close()
    (pattern,) = re.findall(r"^`(\^.*<HOST>.*)` finds it", (APP / "README.md").read_text(), re.MULTILINE)
    failures = re.compile(pattern.replace("<HOST>", "127.0.0.1"), re.MULTILINE)
    log = directory / "gunicorn.log"
    eventually(lambda: failures.search(log.read_text()))
    assert ACCOUNT_PASSWORD not in log.read_text()


def test_kill_9_of_a_worker_in_the_middle_of_twenty_answers(url: str, fake: FakeOpenAI, directory: Path) -> None:
    fake.pieces, fake.between = words(300), 0.03
    readers = [Reader(url) for _ in range(20)]
    seen = {reader: "".join(reader.until("delta")["text"] for _ in range(20)) for reader in readers}
    before = workers(directory)
    os.kill(min(before), signal.SIGKILL)
    eventually(lambda: len(workers(directory)) == 3, 30)
    results: dict[Reader, tuple[str, str]] = {}

    def read_on(reader: Reader) -> None:
        name = ""
        with contextlib.suppress(OSError, http.client.HTTPException, EOFError):
            while name != "done":
                name, data = reader.next()
                seen[reader] += data.get("text", "")
        reader.leave()
        text, status = Reader(url, reader, reader.last_event_id).rest()
        results[reader] = seen[reader] + text, status

    threads = [threading.Thread(target=read_on, args=(reader,)) for reader in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    whole = "".join(fake.pieces)
    assert {status for _, status in results.values()} == {"complete", "interrupted"}
    assert len(results) == 20
    for reader, (text, status) in results.items():
        kept = answer(url, reader.conversation)
        assert (kept["content"], kept["status"]) == (text, status)
        assert text == whole if status == "complete" else whole.startswith(text)
        assert len(text) > 20 * 3
        assert kept["finish_reason"] == ("stop" if status == "complete" else "worker_lost")
    lost = sum(status == "interrupted" for _, status in results.values())
    assert series(url, 'chatbot_cut_answers_total{model="test-model",reason="worker_lost"}') == lost


def test_sigterm_lets_answers_finish_with_and_without_readers(url: str, fake: FakeOpenAI, directory: Path) -> None:
    """The last test: the server is gone afterwards."""
    gate = threading.Event()
    fake.waits = {1: lambda: gate.wait(20)}
    reader, left = Reader(url), Reader(url)
    for each in (reader, left):
        each.until("delta")
    left.leave()
    log = directory / "gunicorn.log"
    ended = log.read_text().count("answer ended")
    os.kill(int(re.findall(r"Listening at: \S+ \((\d+)\)", log.read_text())[0]), signal.SIGTERM)
    time.sleep(1.5)
    gate.set()
    assert reader.until("done")["status"] == "complete"
    reader.leave()
    eventually(lambda: not answers(url))
    eventually(lambda: log.read_text().count("answer ended") == ended + 2)
    assert "shutdown" not in log.read_text()
