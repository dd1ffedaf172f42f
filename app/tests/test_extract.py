"""Files of strangers, read by the confined program."""

import json
import struct
import subprocess
import sys
import zlib
from typing import Any

import pytest
from chatbot import extract
from pdf import bomb, make_pdf

PNG = b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0\0")),
        (b"IEND", b""),
    )
)
WEBP = b"RIFF\x1a\0\0\0WEBPVP8L\r\0\0\0\x2f\0\0\0\x10\x07\x10\x11\x11\x88\x88\xfe\x07\0"
GIF = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff!\xf9\x04\x01\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;"
JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0\xff\xd9"


def read(data: bytes, suffix: str = "") -> Any:
    """What the program says, run as the application runs it."""
    command = [sys.executable, "-I", extract.__file__, suffix]
    done = subprocess.run(command, input=data, capture_output=True, env={}, timeout=240, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {"died": done.returncode}


@pytest.mark.parametrize(
    ("data", "suffix", "kind"),
    [
        (b"plain\n", ".txt", "text/plain"),
        (b"# Title", ".md", "text/markdown"),
        (b"a,b\r\n1,2", ".csv", "text/csv"),
        ("\ufeffGrüße".encode(), ".exe", "text/plain"),
        (b"<script>alert(1)</script>", ".html", "text/plain"),
        (PNG, ".txt", "image/png"),
        (JPEG, "", "image/jpeg"),
        (WEBP, "", "image/webp"),
        (GIF, "", "image/gif"),
        (make_pdf("Hello"), ".txt", "application/pdf"),
    ],
)
def test_the_content_decides_the_type(data: bytes, suffix: str, kind: str) -> None:
    assert read(data, suffix)["type"] == kind


@pytest.mark.parametrize(
    "data",
    [
        b"\x7fELF\x02\x01\x01" + bytes(100),
        b"PK\x03\x04" + bytes(100),
        b"nul\0inside",
        "Grüße".encode("latin-1"),
        "Text".encode("utf-16"),
        b"\x1f\x8b\x08" + bytes(50),
        b"<svg>\x01</svg>",
    ],
)
def test_other_kinds_are_refused(data: bytes) -> None:
    assert read(data, ".txt") == {"error": "type"}


def test_the_text_of_a_pdf() -> None:
    assert read(make_pdf("First page", "Second page")) == {
        "type": "application/pdf",
        "text": "First page\n\nSecond page",
        "pages": 2,
    }


def test_a_byte_order_mark_is_no_text() -> None:
    assert read(b"\xef\xbb\xbfx")["text"] == "x"


def test_long_files_are_cut() -> None:
    assert len(read(b"x" * 2_000_000)["text"]) == extract.MAX_CHARACTERS
    many = read(make_pdf(*(f"p{number}" for number in range(extract.MAX_PAGES + 20))))
    assert many["pages"] == extract.MAX_PAGES + 20
    assert many["text"].endswith(f"p{extract.MAX_PAGES - 1}")


@pytest.mark.parametrize(
    ("data", "errors"),
    [
        (b"%PDF-1.4\n", {"broken"}),
        (make_pdf("x")[:200], {"broken"}),
        (b"%PDF-1.4\n" + bytes(range(256)) * 100, {"broken"}),
        (make_pdf(""), {"empty"}),
        (make_pdf(), {"empty"}),
        # The page tree is its own child.
        (make_pdf("x").replace(b"/Kids [4 0 R]", b"/Kids [2 0 R]"), {"empty", "broken", "too much"}),
        (bomb(30), {"too much", "broken"}),
    ],
    ids=["header", "cut", "noise", "no text", "no page", "circle", "bomb"],
)
def test_hostile_files_are_refused_in_time(data: bytes, errors: set[str]) -> None:
    found = read(data)
    assert found.get("error") in errors or found.get("died")


def test_it_can_open_nothing(tmp_path: Any) -> None:
    program = f"""
import importlib.util, socket, subprocess, sys
spec = importlib.util.spec_from_file_location("extract", {extract.__file__!r})
extract = importlib.util.module_from_spec(spec)
spec.loader.exec_module(extract)
extract.confine()
for attempt in (
    lambda: open("/etc/hostname"),
    lambda: open({str(tmp_path / "new")!r}, "w"),
    lambda: socket.socket(),
    lambda: subprocess.run(["true"]),
    lambda: bytearray(extract.MEMORY),
):
    try:
        attempt()
    except (OSError, MemoryError) as error:
        print(type(error).__name__)
    else:
        print("done")
"""
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["OSError", "OSError", "OSError", "OSError", "MemoryError"], done.stderr
