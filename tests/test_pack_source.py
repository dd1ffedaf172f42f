"""The archive that names a release: what of the application's directory goes into it, and what does not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "roles/chatbot/files/pack_source.py"


def pack(source: Path, target: Path) -> tuple[str, set[str]]:
    """Return the release's name and the names in its archive."""
    command = [sys.executable, str(PROGRAM), str(source), str(target)]
    release = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    with tarfile.open(target / f"{release}.tar") as archive:
        return release, set(archive.getnames())


def write(source: Path, *names: str) -> None:
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)


def test_application_is_packed_as_docker_would_be_sent_it(tmp_path: Path) -> None:
    _, names = pack(ROOT / "app", tmp_path)
    assert {
        "Dockerfile",
        "gunicorn.conf.py",
        "ca/.gitignore",
        "chatbot/wsgi.py",
        "chatbot/static/web/index.html",
    } <= names
    files = {"Dockerfile", ".dockerignore", "alembic.ini", "gunicorn.conf.py", "healthcheck.py", "requirements.txt"}
    assert {name.split("/")[0] for name in names} == files | {"ca", "chatbot", "migrations"}
    assert not [name for name in names if "__pycache__" in name]


@pytest.mark.parametrize(
    ("rules", "packed"),
    [
        ("", {"a", "below/b", "below/deep/c", "below/deep/d.txt"}),
        ("below", {"a"}),
        ("*\n!a", {"a"}),
        # What a line brings back is found, however deep, and also by a pattern; a later line decides.
        ("*\n!below/deep/c", {"below/deep/c"}),
        ("*\n!**/*.txt", {"below/deep/d.txt"}),
        ("below/*\n!below/d*", {"a", "below/deep/c", "below/deep/d.txt"}),
        ("*\n!below\nbelow/deep", {"below/b"}),
        ("# below\n\n*/deep", {"a", "below/b"}),
    ],
)
def test_dockerignore_decides(tmp_path: Path, rules: str, packed: set[str]) -> None:
    write(tmp_path / "app", "Dockerfile", "a", "below/b", "below/deep/c", "below/deep/d.txt")
    (tmp_path / "app/.dockerignore").write_text(rules)
    _, names = pack(tmp_path / "app", tmp_path)
    assert names - {"Dockerfile", ".dockerignore"} == packed


def test_what_is_left_out_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("pack_source", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    write(tmp_path, "Dockerfile", "ca/one.crt", "web/node_modules/module/index.js")
    (tmp_path / ".dockerignore").write_text("*\n!ca/*.crt")
    looked: list[str] = []
    scan = os.scandir

    def scandir(path: str) -> Any:
        looked.append(os.path.relpath(path, tmp_path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert {name for name, _ in program.source_files(tmp_path)} == {"Dockerfile", ".dockerignore", "ca/one.crt"}
    assert sorted(looked) == [".", "ca"]


def test_name_depends_on_what_is_packed_alone(tmp_path: Path) -> None:
    source = tmp_path / "app"
    write(source, "Dockerfile", "chatbot/wsgi.py", "web/node_modules/module/index.js")
    (source / ".dockerignore").write_text("web")
    first, _ = pack(source, tmp_path)
    write(source, "web/another.js")
    os.utime(source / "chatbot/wsgi.py", (1, 1))
    assert pack(source, tmp_path)[0] == first
    (source / "chatbot/wsgi.py").write_text("changed")
    assert pack(source, tmp_path)[0] != first
