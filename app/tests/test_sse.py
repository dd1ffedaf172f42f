import random

import pytest
from chatbot.sse import MAX_EVENT_BYTES, DataParser, EventTooLargeError, encode


def parse(pieces: list[bytes]) -> list[bytes]:
    parser = DataParser()
    return [data for piece in pieces for data in parser.feed(piece)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [b"a"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a \n\n", [b" a "]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data\n\n", [b""]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b": comment\n\nevent: x\nid: 1\nretry: 5\ndata: a\n\n\n\n", [b"a"]),
        (b"dataset: a\n\ndat: b\n\n: data: c\n\n", []),
        (b"data: never ended", []),
        (b"data: never ended\n", []),
        (
            b'data: "\xe2\x80\xa8\x0b\x0c\x1c"\n\n',
            [b'"\xe2\x80\xa8\x0b\x0c\x1c"'],
        ),  # line ends of Python's, not of SSE's
    ],
)
def test_what_the_standard_says_at_every_split_point(stream: bytes, events: list[bytes]) -> None:
    assert parse([stream]) == events
    assert parse([stream[n : n + 1] for n in range(len(stream))]) == events
    for split in range(len(stream) + 1):
        assert parse([stream[:split], stream[split:]]) == events


def test_random_streams_in_random_pieces() -> None:
    """A seeded fuzz: whatever the boundaries, the events are the same. The reference splits it whole."""
    chance = random.Random(20261123)  # noqa: S311 - a repeatable test
    alphabet = [b"data", b":", b" ", b"\n", b"\r\n", b"\r", b"x", b"\xc3\xa9", b"event", b"\n\n", b'{"a":1}', b"\x00"]
    for _ in range(1000):
        stream = b"".join(chance.choices(alphabet, k=chance.randrange(40)))
        pieces, rest = [], stream
        while rest:
            size = chance.randrange(0, 8)
            pieces.append(rest[:size])
            rest = rest[size:]
        assert parse(pieces) == reference(stream), pieces


def reference(stream: bytes) -> list[bytes]:
    """The standard's algorithm, line by line."""
    lines = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[:-1]
    events: list[bytes] = []
    data: list[bytes] = []
    for line in lines:
        if not line:
            if data:
                events.append(b"\n".join(data))
            data = []
        else:
            name, colon, value = line.partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" ") if colon else b"")
    return events


@pytest.mark.parametrize("line", [b"x" * 100_000, b"data: " + b"x" * 100_000 + b"\n"])
def test_an_event_without_end_does_not_fill_the_memory(line: bytes) -> None:
    parser = DataParser()
    with pytest.raises(EventTooLargeError):
        for _ in range(MAX_EVENT_BYTES // 90_000):
            parser.feed(line)


def test_an_encoded_event_is_read_as_it_was_written() -> None:
    event = encode("delta", 7, {"text": "a\nb\r\n\u2028\x00"})
    assert event.startswith(b"event: delta\nid: 7\ndata: {")
    assert parse([event]) == ['{"text":"a\\nb\\r\\n\u2028\\u0000"}'.encode()]
