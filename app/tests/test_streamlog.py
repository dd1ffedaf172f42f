"""One contract for both logs, and what only the one in Valkey has to stand."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chatbot.cache import connect
from chatbot.streamlog import READER_ENTRIES, Entry, LogUnavailableError, MemoryLog, StreamLog, Subscription
from chatbot.valkeylog import PREFIX, ValkeyLog
from support import eventually, make_settings
from valkey_server import PASSWORD, valkey_server


@pytest.fixture(scope="module")
def valkey_url() -> Iterator[str]:
    with valkey_server() as url:
        yield url


def client(url: str) -> Any:
    """A client; its type would say that each answer may be one to wait for."""
    found = connect(make_settings(valkey_url=url, valkey_password=PASSWORD), timeout=5)
    assert found is not None
    return found


@pytest.fixture
def valkey(valkey_url: str) -> Iterator[Any]:
    valkey = client(valkey_url)
    valkey.flushall()
    yield valkey
    eventually(lambda: not any(thread.name.startswith("log-") for thread in threading.enumerate()))
    valkey.connection_pool.disconnect()


@pytest.fixture(params=["memory", "valkey"])
def stream_log(request: pytest.FixtureRequest) -> StreamLog:
    """Both implementations in turn."""
    if request.param == "memory":
        return MemoryLog()
    return ValkeyLog(request.getfixturevalue("valkey"), 100)


def written(stream_log: StreamLog, text: str, size: int = 1) -> None:
    """Write a whole answer in pieces, into a log that is open."""
    for end in range(size, len(text) + 1, size):
        stream_log.append("a", end, text[end - size : end])
    stream_log.close("a", len(text), b'{"how": "well"}')


def read(subscription: Subscription) -> tuple[str, bytes | None]:
    """All text up to the end, and the outcome."""
    text = ""
    while entries := subscription.read(10):
        text += "".join(entry.text for entry in entries)
        if entries[-1].outcome is not None:
            subscription.close()
            return text, entries[-1].outcome
    raise AssertionError(f"no end after {text!r}")


def test_a_reader_gets_what_was_there_and_what_comes(stream_log: StreamLog) -> None:
    stream_log.open("a")
    stream_log.append("a", 3, "Hel")
    subscription = stream_log.subscribe("a", 0)
    assert subscription.read(5) == [Entry(3, "Hel")]
    assert subscription.read(0.05) == []
    stream_log.append("a", 5, "lo")
    stream_log.close("a", 5, b"{}")
    assert read(subscription) == ("lo", b"{}")


@pytest.mark.parametrize("when", ["while it runs", "when it has ended"])
def test_a_reader_continues_at_every_offset(stream_log: StreamLog, when: str) -> None:
    text = "The sea is salt. ¿Qué? 漢字 🦀"
    subscriptions = []
    stream_log.open("a")
    if when == "while it runs":
        subscriptions = [stream_log.subscribe("a", after) for after in range(len(text) + 1)]
    written(stream_log, text)
    if when == "when it has ended":
        eventually(lambda: len(stream_log.tail("a")) == len(text) + 1)
        subscriptions = [stream_log.subscribe("a", after) for after in range(len(text) + 1)]
    for after, subscription in enumerate(subscriptions):
        assert read(subscription) == (text[after:], b'{"how": "well"}')


def test_what_was_trimmed_is_missed(stream_log: StreamLog) -> None:
    stream_log.open("a")
    for end in (1, 2, 3, 4):
        stream_log.append("a", end, "x")
    stream_log.trim("a", 3)
    stream_log.close("a", 4, b"{}")
    eventually(lambda: [entry.end for entry in stream_log.tail("a")] == [3, 4, 4])


def test_a_dropped_log_can_begin_again_behind_its_text(stream_log: StreamLog) -> None:
    stream_log.open("a")
    written(stream_log, "old")
    eventually(lambda: len(stream_log.tail("a")) == 4)
    stream_log.drop("a")
    stream_log.open("a")
    subscription = stream_log.subscribe("a", 3)
    stream_log.append("a", 6, "new")
    stream_log.close("a", 6, b"{}")
    assert read(subscription) == ("new", b"{}")


def test_a_reader_who_does_not_keep_up_costs_no_memory_and_hears_the_end(stream_log: StreamLog) -> None:
    stream_log.open("a")
    subscription = stream_log.subscribe("a", 0)
    stream_log.append("a", 1, "x")
    subscription.read(5)
    for end in range(2, READER_ENTRIES * 3):
        stream_log.append("a", end, "x")
    stream_log.close("a", READER_ENTRIES * 3, b"{}")
    eventually(lambda: stream_log.tail("a")[-1].outcome is not None)
    time.sleep(0.3)
    entries = subscription.read(5)
    subscription.close()
    assert len(entries) <= READER_ENTRIES + 1
    assert entries[-1].outcome == b"{}"


def test_the_writer_hears_requests_to_stop(stream_log: StreamLog) -> None:
    heard: list[str] = []
    stream_log.on_stop(heard.append)
    stream_log.open("a")
    stream_log.append("a", 1, "x")
    stream_log.request_stop("a")
    eventually(lambda: heard == ["a"])
    stream_log.close("a", 1, b"{}")


def test_a_log_of_another_process_is_unavailable_in_memory() -> None:
    stream_log = MemoryLog()
    with pytest.raises(LogUnavailableError):
        stream_log.subscribe("unknown", 0).read(1)
    with pytest.raises(LogUnavailableError):
        stream_log.request_stop("unknown")
    assert stream_log.tail("unknown") == []


def test_ended_logs_in_memory_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    stream_log = MemoryLog()
    stream_log.open("a")
    written(stream_log, "x")
    monkeypatch.setattr("chatbot.streamlog.KEEP_ENDED_SECONDS", 0)
    stream_log.open("b")
    assert stream_log.tail("a") == []


def test_processes_share_the_logs_in_valkey(valkey: Any) -> None:
    one, other = ValkeyLog(valkey, 100), ValkeyLog(valkey, 100)
    heard: list[str] = []
    one.on_stop(heard.append)
    one.open("a")
    subscriptions = [log.subscribe("a", 0) for log in (one, other, other)]
    other.request_stop("a")
    eventually(lambda: heard == ["a"])
    one.append("a", 2, "ab")
    one.append("a", 4, "cd")
    one.close("a", 4, b"{}")
    assert [read(subscription) for subscription in subscriptions] == [("abcd", b"{}")] * 3


def test_readers_who_join_while_it_is_written_get_all_of_it_once(valkey: Any) -> None:
    stream_log, text = ValkeyLog(valkey, 100), "".join(chr(0x4E00 + number) for number in range(120))
    stream_log.open("a")
    subscriptions = []
    for end in range(1, len(text) + 1):
        stream_log.append("a", end, text[end - 1])
        if end % 10 == 0:
            subscriptions += [stream_log.subscribe("a", 0), stream_log.subscribe("a", end)]
        time.sleep(0.005)
    stream_log.close("a", len(text), b"{}")
    for number, subscription in enumerate(subscriptions):
        after = 0 if number % 2 == 0 else (number // 2 + 1) * 10
        assert read(subscription) == (text[after:], b"{}")
    eventually(lambda: not stream_log._written and not stream_log._near)


def test_nobody_reads_what_valkey_did_not_take(tmp_path: Path) -> None:
    valkey = client(f"unix://{tmp_path / 's'}")
    stream_log = ValkeyLog(valkey, 100)
    stream_log.open("a")
    subscription = stream_log.subscribe("a", 0)
    stream_log.append("a", 1, "x")
    with pytest.raises(LogUnavailableError):
        subscription.read(5)
    with pytest.raises(LogUnavailableError):
        subscription.read(5)
    subscription.close()
    stream_log.close("a", 1, b"{}")
    eventually(lambda: not any(thread.name.startswith("log-") for thread in threading.enumerate()))
    assert not stream_log._written


def test_a_new_reader_need_not_wait_for_the_others_streams(valkey: Any) -> None:
    stream_log = ValkeyLog(valkey, 100)
    stream_log.open("silent")
    silent = stream_log.subscribe("silent", 0)
    time.sleep(0.2)  # now it waits for Valkey
    other = ValkeyLog(valkey, 100)
    other.open("a")
    written(other, "abc")
    began = time.monotonic()
    assert read(stream_log.subscribe("a", 0))[0] == "abc"
    assert time.monotonic() - began < 0.6
    silent.close()
    stream_log.close("silent", 0, b"{}")


def test_nothing_stays_in_valkey_for_ever(valkey: Any) -> None:
    stream_log = ValkeyLog(valkey, 100)
    subscription = stream_log.subscribe("a", 0)
    stream_log.open("a")
    stream_log.append("a", 1, "x")
    eventually(lambda: 0 < valkey.ttl(PREFIX + "a") <= 100)
    stream_log.close("a", 1, b"{}")
    read(subscription)
    eventually(lambda: 0 < valkey.ttl(PREFIX + "a") <= 60)
    assert all(valkey.ttl(key) > 0 for key in valkey.keys("chatbot:*") if key != b"chatbot:stops")


def test_a_stream_that_was_evicted_goes_on_with_a_time_to_live(valkey: Any) -> None:
    stream_log = ValkeyLog(valkey, 100)
    stream_log.open("a")
    stream_log.append("a", 1, "x")
    eventually(lambda: valkey.exists(PREFIX + "a"))
    valkey.delete(PREFIX + "a")
    stream_log.append("a", 2, "y")  # is lost, which its offset shows
    eventually(lambda: "a" in stream_log._fresh)
    stream_log.append("a", 3, "z")
    eventually(lambda: [entry.end for entry in stream_log.tail("a")] == [3])
    assert valkey.ttl(PREFIX + "a") > 0
    stream_log.close("a", 3, b"{}")


def test_valkey_that_goes_away_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatbot.valkeylog.PAUSE_AFTER_ERROR", 0.1)
    socket = tmp_path / "s"
    valkey = client(f"unix://{socket}")
    stream_log = ValkeyLog(valkey, 100)
    stream_log.open("a")
    stream_log.append("a", 1, "x")  # nobody is there: it is lost, and the writer does not notice
    subscription = stream_log.subscribe("a", 0)
    with pytest.raises(LogUnavailableError):
        subscription.read(5)
    for refused in (stream_log.tail, stream_log.request_stop, stream_log.drop):
        with pytest.raises(LogUnavailableError):
            refused("a")
    with valkey_server(socket):
        for end in range(2, 30):
            stream_log.append("a", end, "y")
            time.sleep(0.05)
        assert "yyy" in text_of(subscription, lambda text: "yyy" in text)
    stream_log.append("a", 30, "!")
    with pytest.raises(LogUnavailableError):
        while True:
            subscription.read(5)
    subscription.close()
    stream_log.close("a", 30, b"{}")
    eventually(lambda: not any(thread.name.startswith("log-") for thread in threading.enumerate()))
    valkey.connection_pool.disconnect()


def text_of(subscription: Subscription, enough: Callable[[str], bool]) -> str:
    """What is read, whatever fails in between, until it is enough."""
    text, end = "", time.monotonic() + 5
    while not enough(text) and time.monotonic() < end:
        try:
            text += "".join(entry.text for entry in subscription.read(1))
        except LogUnavailableError:
            continue
    return text
