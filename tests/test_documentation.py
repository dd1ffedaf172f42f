"""What the documents point at is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from repository import ROOT, shown, text_of, tracked

DOCUMENTS = [path for path in tracked() if path.suffix == ".md"]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
TARGET = re.compile(r"(?:^|[;&|])[ $]*(?:sudo )?make ([a-z][a-z-]*)", re.MULTILINE)
# Files of the repository, as prose names them; <…>, …, * and variables stand for something else.
FILE = re.compile(r"(?<![\w./~-])((?:playbooks|roles|inventories|molecule|tools|docs|tests|app|\.ci)/[\w./-]+[\w/])")
PLACEHOLDER = re.compile(r"[<>*$…{}]|inventories/(?!single)")


def anchor(heading: str) -> str:
    """Return the anchor that a heading gets on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def targets() -> set[str]:
    """Return the make targets."""
    return set(re.findall(r"^([a-z][a-z-]*):", text_of(ROOT / "Makefile"), re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=shown)
def test_links_lead_somewhere(document: Path) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", text_of(document))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, fragment = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        if not target.exists():
            broken.append(link)
        elif fragment and target.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", text_of(target), re.MULTILINE)
            if fragment not in map(anchor, headings):
                broken.append(link)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=shown)
def test_named_files_exist(document: Path) -> None:
    text = text_of(document)
    passages = [*CODE.findall(FENCE.sub("", text)), *FENCE.findall(text)]
    named = {
        name
        for passage in passages
        for word in passage.split()
        if not PLACEHOLDER.search(word)
        for name in FILE.findall(word)
    }
    # A document in a folder may name files as seen from there.
    assert sorted(n for n in named if not (ROOT / n).exists() and not (document.parent / n).exists()) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=shown)
def test_make_targets_exist(document: Path) -> None:
    text = text_of(document)
    named = {name for passage in [*CODE.findall(text), *FENCE.findall(text)] for name in TARGET.findall(passage)}
    assert sorted(named - targets()) == []


def test_make_lists_its_targets_with_a_description() -> None:
    makefile = text_of(ROOT / "Makefile")
    described = set(re.findall(r"^([a-z][a-z-]*):.*## \S", makefile, re.MULTILINE))
    assert targets() == described
    assert targets() >= {"demo", "demo-down", "test", "test-fast", "lint", "inventory", "benchmark"}


def test_programs_behind_make_targets_exist() -> None:
    named = set(re.findall(r"^\t@(tools/[\w-]+)", text_of(ROOT / "Makefile"), re.MULTILINE))
    assert sorted(name for name in named if not (ROOT / name).is_file()) == []
