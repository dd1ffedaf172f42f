"""The runbooks have one form, and somebody runs each of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from repository import shown, text_of, tracked
from test_new_inventory import repository, run
from testbed.runbook import RUNBOOKS, blocks

__all__ = ["repository"]

BOOKS = sorted(path for path in RUNBOOKS.glob("*.md") if path.name != "README.md")
# Its scenario runs each command for itself: see test_commands_of_the_upgrade_are_run.
RUN_BY_COMMAND = {"postgresql-upgrade"}
PARTS = ["Detection", "Decision", "Commands", "Verification", "After-care"]
TESTS = "\n".join(text_of(path) for path in tracked() if re.match(r"molecule/.*/tests/.*\.py$", shown(path)))


@pytest.mark.parametrize("book", BOOKS, ids=shown)
def test_runbook_has_the_five_parts(book: Path) -> None:
    """Others may stand between them, as the way back."""
    headings = re.findall(r"^## (.+)$", text_of(book), re.MULTILINE)
    assert [heading for heading in headings if heading in PARTS] == PARTS


@pytest.mark.parametrize("book", BOOKS, ids=shown)
def test_runbook_is_in_the_list_and_is_run(book: Path) -> None:
    assert f"({book.name})" in text_of(RUNBOOKS / "README.md")
    assert blocks(book.stem), "it has no commands"
    assert f'"{book.stem}"' in TESTS or book.stem in RUN_BY_COMMAND


@pytest.mark.parametrize("book", BOOKS, ids=shown)
def test_every_block_says_where_it_runs(book: Path) -> None:
    assert set(re.findall(r"^ *```(.+)$", text_of(book), re.MULTILINE)) <= {"sh", "sh host"}


def test_commands_of_the_upgrade_are_run() -> None:
    """One by one, in the scenario of that name and those for backups and the site."""
    commands = "".join(block.commands for block in blocks("postgresql-upgrade"))
    playbooks = set(re.findall(r"playbooks/\w+\.yml", commands))
    assert playbooks
    assert {name for name in playbooks if name not in TESTS and f'"{Path(name).stem}' not in TESTS} == set()


def test_new_inventory_of_lost_credentials(repository: Path) -> None:
    """The lost password stays under another name, and the new inventory opens with the new one."""
    (repository / ".vault-password").write_text("nobody knows it any more\n")
    (block,) = [block for block in blocks("lost-credentials") if block.heading == "A new inventory"]
    done = run(repository, "bash", "-euc", block.commands)
    assert done.returncode == 0, done.stderr
    assert (repository / ".vault-password.lost").read_text() == "nobody knows it any more\n"
    opened = run(repository, "ansible-vault", "view", "inventories/prod2/group_vars/all/vault.yml")
    assert "vault_chatbot_backup_password" in opened.stdout
