"""tools/vault-password: the right password passes, a wrong or missing one is a clear sentence before any play."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def run(repository, *command, password=""):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    environment |= {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "ANSIBLE_VAULT_PASSWORD": password}
    return subprocess.run(
        command,
        cwd=repository,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository with two inventories: `prod` is encrypted with "right", `open` is not encrypted."""
    root = tmp_path_factory.mktemp("repository")
    (root / "tools").mkdir()
    shutil.copy(ROOT / "tools/vault-password", root / "tools")
    (root / "ansible.cfg").write_text(
        "[defaults]\ninventory = inventories/open\nvault_password_file = tools/vault-password\n"
    )
    for name in ("prod", "open"):
        (root / f"inventories/{name}/group_vars/all").mkdir(parents=True)
        (root / f"inventories/{name}/hosts.yml").write_text("all: {hosts: {localhost: {ansible_connection: local}}}\n")
        (root / f"inventories/{name}/group_vars/all/vault.yml").write_text("vault_word: it is readable\n")
    encrypted = run(root, "ansible-vault", "encrypt", "inventories/prod/group_vars/all/vault.yml", password="right")
    assert encrypted.returncode == 0, encrypted.stderr
    return root


def ask(repository, inventory, *more, password=""):
    return run(
        repository,
        "ansible",
        "localhost",
        "-i",
        inventory,
        "-m",
        "ansible.builtin.debug",
        "-a",
        "var=vault_word",
        *more,
        password=password,
    )


@pytest.mark.parametrize("inventory", ["inventories/prod", "inventories/prod/hosts.yml"])
def test_right_password_opens_the_secrets(repository, inventory):
    result = ask(repository, inventory, password="right")
    assert result.returncode == 0, result.stderr
    assert "it is readable" in result.stdout


@pytest.mark.parametrize("inventory", ["inventories/prod", "inventories/prod/hosts.yml"])
def test_wrong_password_stops_with_cause_and_remedy(repository, inventory):
    result = ask(repository, inventory, password="wrong")
    assert result.returncode != 0
    vault = "inventories/prod/group_vars/all/vault.yml"
    assert f"The vault password in $ANSIBLE_VAULT_PASSWORD does not open {vault}. Nothing was done." in result.stderr
    assert f"ansible-vault view {vault}" in result.stderr
    assert "wrong" not in result.stderr
    assert "it is readable" not in result.stdout


def test_password_is_taken_from_the_file(repository):
    (repository / ".vault-password").write_text("right\n")
    try:
        assert ask(repository, "inventories/prod").returncode == 0
        (repository / ".vault-password").write_text("wrong\n")
        assert "The vault password in .vault-password does not open" in ask(repository, "inventories/prod").stderr
    finally:
        (repository / ".vault-password").unlink()


def test_missing_password_stops_only_where_something_is_encrypted(repository):
    result = ask(repository, "inventories/prod")
    assert result.returncode != 0
    assert "there is no vault password on this machine" in result.stderr
    assert ask(repository, "inventories/open").returncode == 0


def test_other_ways_to_give_a_password_are_left_alone(repository):
    (repository / "other").write_text("right\n")
    result = ask(repository, "inventories/prod", "--vault-password-file", "other")
    assert result.returncode == 0, result.stderr


def test_nothing_is_encrypted_with_a_public_word(repository):
    result = run(repository, "ansible-vault", "encrypt_string", "secret")
    assert result.returncode != 0
    assert "There is no vault password" in result.stderr


def test_it_is_quick(repository):
    started = time.monotonic()
    assert run(repository, "tools/vault-password", password="any").returncode == 0
    assert time.monotonic() - started < 2, "0.05 s on an idle machine"
