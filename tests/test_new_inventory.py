"""tools/new-inventory, run as a user runs it, in a copy of the repository's parts that it needs."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
GOOD = {"NAME": "prod", "HOST": "192.0.2.7", "DOMAIN": "chat.company.test"}


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "inventories").mkdir()
    shutil.copytree(ROOT / "inventories/single", tmp_path / "inventories/single")
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    shutil.copy(ROOT / "ansible.cfg", tmp_path)
    (tmp_path / "home/.ssh").mkdir(parents=True)
    (tmp_path / "home/.ssh/id_ed25519.pub").write_text("ssh-ed25519 AAAA test\n")
    return tmp_path


def run(repository, program, *arguments, **environment):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "MODEL_"))}
    return subprocess.run(
        [program, *arguments],
        cwd=repository,
        env=clean | {"PATH": path, "HOME": str(repository / "home"), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def create(repository, **answers):
    return run(repository, "tools/new-inventory", **answers)


def secrets_of(repository, name):
    shown = run(repository, "ansible-vault", "view", f"inventories/{name}/group_vars/all/vault.yml")
    assert shown.returncode == 0, shown.stderr
    return yaml.safe_load(shown.stdout)


def test_values_and_secrets_are_in_place(repository):
    result = create(repository, **GOOD, EMAIL="ops@company.test", MODEL_API_KEY="sk-0123456789abcdef")
    assert result.returncode == 0, result.stderr
    inventory = repository / "inventories/prod"
    listed = run(repository, "ansible-inventory", "-i", "inventories/prod", "--host", "vps", "--yaml")
    assert listed.returncode == 0, listed.stderr
    variables = yaml.safe_load(listed.stdout)
    assert variables["ansible_host"] == "192.0.2.7"
    assert variables["chatbot_domain"] == "chat.company.test"
    assert variables["chatbot_contact_email"] == "ops@company.test"
    vault = inventory / "group_vars/all/vault.yml"
    assert vault.read_text().startswith("$ANSIBLE_VAULT;1.1;AES256")
    secrets = secrets_of(repository, "prod")
    example = yaml.safe_load((ROOT / "inventories/single/group_vars/all/vault.yml").read_text())
    assert secrets.keys() == example.keys()
    assert secrets["vault_chatbot_model_api_key"] == "sk-0123456789abcdef"
    others = [value for key, value in secrets.items() if key != "vault_chatbot_model_api_key"]
    assert len(set(others)) == len(others)
    assert all(len(value) >= 20 and value.isalnum() for value in others)
    assert "CHANGE_ME" not in result.stdout
    assert not any(value in result.stdout for value in others), "secrets are not printed"


def test_vault_password_is_made_once_and_only_for_its_owner(repository):
    assert create(repository, **GOOD).returncode == 0
    password = repository / ".vault-password"
    assert stat.S_IMODE(password.stat().st_mode) == 0o600
    before = password.read_text()
    second = create(repository, **GOOD | {"NAME": "second"})
    assert second.returncode == 0, second.stderr
    assert password.read_text() == before
    assert secrets_of(repository, "prod") != secrets_of(repository, "second")


def test_arguments_do_what_variables_do(repository):
    result = run(repository, "tools/new-inventory", "prod", "2001:db8::7", "chat.company.test")
    assert result.returncode == 0, result.stderr
    assert "ansible_host: 2001:db8::7\n" in (repository / "inventories/prod/hosts.yml").read_text()
    assert "admin@chat.company.test" in (repository / "inventories/prod/group_vars/all/main.yml").read_text()


def test_provider_key_that_is_missing_is_a_next_step_and_stays_a_placeholder(repository):
    result = create(repository, **GOOD)
    assert "ansible-vault edit inventories/prod/group_vars/all/vault.yml" in result.stdout
    assert secrets_of(repository, "prod")["vault_chatbot_model_api_key"] == "CHANGE_ME", "the preflight stops on it"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"DOMAIN": ""}, "DOMAIN missing"),
        ({"NAME": "", "HOST": ""}, "NAME, HOST missing"),
        ({"NAME": "Prod Server"}, "lower-case letters"),
        ({"NAME": "../prod"}, "lower-case letters"),
        ({"NAME": "single"}, "inventories/single exists and is left as it is"),
        ({"HOST": "192.0.2.777"}, "neither an IP address nor a host name"),
        ({"HOST": "root@192.0.2.7"}, "neither an IP address nor a host name"),
        ({"DOMAIN": "https://chat.company.test/"}, "without https://"),
        ({"DOMAIN": "localhost"}, "not a host name"),
        ({"DOMAIN": "chat.example.com"}, "belong to nobody"),
        ({"EMAIL": "nobody"}, "not an e-mail address"),
    ],
)
def test_wrong_input_is_named_and_writes_nothing(repository, change, expected):
    before = sorted(path.relative_to(repository) for path in repository.rglob("*"))
    result = create(repository, **GOOD | change)
    assert result.returncode == 1
    assert expected in result.stderr
    assert "Nothing was written." in result.stderr
    assert sorted(path.relative_to(repository) for path in repository.rglob("*")) == before


def test_existing_inventory_is_left_alone(repository):
    assert create(repository, **GOOD).returncode == 0
    before = (repository / "inventories/prod/group_vars/all/vault.yml").read_text()
    again = create(repository, **GOOD | {"HOST": "192.0.2.8"})
    assert again.returncode == 1
    assert (repository / "inventories/prod/group_vars/all/vault.yml").read_text() == before
