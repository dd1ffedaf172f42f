import logging
import ssl
import subprocess
from pathlib import Path

import pytest
from chatbot.model import Chunk, Model, ModelError
from chatbot.transport import Transport
from fake_openai import FakeOpenAI
from support import eventually, make_settings, watched_turns

TURNS = [{"role": "user", "content": "private words"}]


def ask(url: str, **more: str) -> list[Chunk]:
    return list(Model(make_settings(url, **more)).answer(TURNS))  # type: ignore[arg-type]


def text(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatbot.model.RETRY_PAUSE", 0)


def test_the_answer_comes_in_pieces_with_its_usage(fake: FakeOpenAI) -> None:
    chunks = ask(fake.url)
    assert text(chunks) == "Hello world"
    assert sum(chunk.pieces for chunk in chunks) == 3
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]
    assert (chunks[-1].prompt_tokens, chunks[-1].completion_tokens) == (7, 3)


def test_what_the_server_is_sent(fake: FakeOpenAI) -> None:
    ask(fake.url, model_api_key="sk-1", model_max_tokens="99")
    assert fake.requests == [
        {
            "model": "test-model",
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 99,
            "messages": TURNS,
        }
    ]
    assert fake.keys == ["Bearer sk-1"]
    ask(fake.url, model_temperature="0.25")
    assert fake.requests[1]["temperature"] == 0.25


def test_the_question_is_not_kept_while_its_answer_is_read(fake: FakeOpenAI) -> None:
    with watched_turns() as (turns, kept):
        answer = Model(make_settings(fake.url)).answer(turns.pop())
        assert kept() is None
    assert answer._response.request.content == b""
    assert text(list(answer)) == "Hello world"


def test_openai_itself_gets_its_own_name_of_the_limit() -> None:
    parameters = Model(make_settings("https://api.openai.com/v1"))._parameters
    assert "max_completion_tokens" in parameters
    assert "max_tokens" not in parameters


@pytest.mark.parametrize(
    ("status", "shown", "words"),
    [
        (400, 502, "refused the question"),
        (401, 502, "administrator"),
        (403, 502, "administrator"),
        (404, 502, "does not know this model"),
        (429, 503, "limiting"),
        (500, 502, "failed"),
    ],
)
def test_errors_are_explained(
    fake: FakeOpenAI, caplog: pytest.LogCaptureFixture, status: int, shown: int, words: str
) -> None:
    fake.status = status
    with pytest.raises(ModelError, match=words) as error:
        ask(fake.url)
    assert error.value.status == shown
    assert len(fake.requests) == 1
    assert "secret text" not in error.value.detail + caplog.text
    assert caplog.records[-1].__dict__["model_status"] == status


def test_the_providers_pause_is_passed_on(fake: FakeOpenAI) -> None:
    fake.status, fake.headers = 429, {"Retry-After": "42"}
    with pytest.raises(ModelError) as error:
        ask(fake.url)
    assert error.value.retry_after == 42


def test_a_server_that_is_loading_is_asked_again(fake: FakeOpenAI) -> None:
    fake.failures = [503, 503]
    assert text(ask(fake.url)) == "Hello world"


def test_an_unreachable_server(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ModelError, match="cannot be reached") as error:
        ask("http://127.0.0.1:9/v1")
    assert (error.value.status, error.value.retry_after) == (503, 5)
    assert "private words" not in caplog.text


def test_a_silent_server(fake: FakeOpenAI) -> None:
    fake.before_headers = 0.5
    with pytest.raises(ModelError, match="in time") as error:
        ask(fake.url, model_timeout="0.1")
    assert error.value.status == 504


def test_a_server_that_falls_silent(fake: FakeOpenAI) -> None:
    fake.between = 0.5
    with pytest.raises(ModelError, match="in time"):
        ask(fake.url, model_timeout="0.1")


def test_a_connection_that_breaks(fake: FakeOpenAI) -> None:
    fake.cut = True
    with pytest.raises(ModelError, match="cannot be reached"):
        ask(fake.url)


@pytest.mark.parametrize(
    "raw",
    [
        b"data: {broken\n\n",
        b"data: [1]\n\n",
        b'data: {"choices": [{"delta": {"content": 1}}]}\n\n',
        b'data: {"choices": 1}\n\n',
    ],
)
def test_rubbish(fake: FakeOpenAI, raw: bytes) -> None:
    fake.raw = raw
    with pytest.raises(ModelError, match="cannot be read"):
        ask(fake.url)


def test_an_error_inside_the_stream(fake: FakeOpenAI) -> None:
    fake.raw = b'data: {"error": {"message": "secret text"}}\n\n'
    with pytest.raises(ModelError, match="failed"):
        ask(fake.url)


def test_nul_is_dropped_since_postgresql_cannot_store_it(fake: FakeOpenAI) -> None:
    fake.pieces = ["a\x00b", "\x00"]
    assert text(ask(fake.url)) == "ab"


def test_leaving_early_stops_the_server(fake: FakeOpenAI) -> None:
    fake.pieces, fake.between = ["x"] * 1000, 0.01
    answer = Model(make_settings(fake.url)).answer(TURNS)  # type: ignore[arg-type]
    next(iter(answer))
    answer.close()
    eventually(lambda: fake.left)
    assert fake.sent < 100


def test_what_comes_together_is_one_chunk(fake: FakeOpenAI) -> None:
    fake.pieces, fake.between = ["x"] * 100, 0.005
    chunks = [chunk for chunk in ask(fake.url) if chunk.text]
    assert text(chunks) == "x" * 100
    assert len(chunks) < 40  # 40 ms hold eight of them


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(Model(make_settings("https://m.test/v1"))._client._client._transport, Transport)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert not isinstance(Model(make_settings("https://m.test/v1"))._client._client._transport, Transport)
    monkeypatch.setenv("NO_PROXY", "m.test")
    assert isinstance(Model(make_settings("https://m.test/v1"))._client._client._transport, Transport)


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    """A server certificate for 127.0.0.1 that is its own authority, in tmp_path/cert.pem."""
    make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    return context


def make_certificate(directory: Path) -> None:
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    extensions = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "keyUsage=critical,digitalSignature,keyCertSign"]
    files = ["-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")]
    subprocess.run([*command.split(), *extensions, *files], check=True, capture_output=True)


def test_tls_is_checked_against_the_systems_authorities(
    tls: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logging.getLogger("httpcore2").setLevel(logging.WARNING)
    with FakeOpenAI(tls=tls) as fake:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert text(ask(fake.url)) == "Hello world"
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(ModelError, match="cannot be reached"):
            ask(fake.url)
