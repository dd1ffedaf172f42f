"""Somebody follows docs/runbooks to the letter, each on the trouble that it is for. On one host: they are long."""

import re
from pathlib import Path

import pytest
from conftest import chats_again, make_account
from testbed.chat import ChatClient
from testbed.runbook import blocks, perform

# The other host has the long playbooks meanwhile. Whole playbooks run here, beside other scenarios.
pytestmark = [pytest.mark.only_on("debian12"), pytest.mark.timeout(900)]


@pytest.fixture
def follow(host, variables):
    """Run a runbook's blocks, those under the headings that are named; return what each printed."""
    address = variables["ansible_host"]
    stand_for = {
        "-connect chat.your-company.org": f"-connect {address}",
        "chat.your-company.org": variables["chatbot_domain"],
    }

    def run(name, *headings, **replace):
        chosen = [block for block in blocks(name) if not headings or block.heading in headings]
        assert chosen, (name, headings)
        return [perform(host, block, stand_for | replace) for block in chosen]

    return run


def fingerprint(output):
    """What openssl said of a certificate's end."""
    return re.search(r"notAfter=(.*)", output)[1]


def test_full_disk(host, chat, follow):
    """PostgreSQL is down, as a full disk leaves it; nothing is filled here, because the disk is this machine's."""
    host.run_expect([0], "journalctl --rotate && systemctl stop 'postgresql@*'")
    _, commands, started, verified = follow("full-disk")
    assert "Total reclaimed space" in commands
    assert "failed=0" in started
    assert ", 0 FAIL" in verified
    chats_again(chat)


def test_expired_certificate(chat, follow):
    """A certificate that certbot would not renew yet is renewed all the same, and served."""
    before, known, *_, after = follow("expired-certificate")
    assert "Certificate Name" in known
    assert fingerprint(before) != fingerprint(after)
    assert "CN = Pebble" in after or "CN=Pebble" in after
    chats_again(chat)


def test_lost_password_and_rotated_secrets(host, chat, variables, authority, follow):
    email = make_account(host, "known-to-somebody-0123456789")
    printed, *_ = follow("lost-credentials", "A password of the chat", **{"you@your-company.org": email})
    password = re.search(r"^[A-Za-z0-9+/]{24}$", printed, re.MULTILINE)[0]
    client = ChatClient(
        variables["chatbot_domain"], address=variables["ansible_host"], authority=authority, account=(email, password)
    )
    assert client.call("GET", "/api/v1/account")[1]["email"] == email
    (shown,) = follow("lost-credentials", "The vault's password")
    assert f"local: {variables['chatbot_backup_password']}" in shown
    assert variables["chatbot_model_api_key"] in shown
    # What the vault holds is the inventory's from now on.
    mine = Path(variables["testbed_directory"], "host_vars", f"{variables['inventory_hostname']}.yml")
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("---\nchatbot_database_password: rotated-0123456789abcdef\n")
    *_, tokens = follow("lost-credentials", "Rotate a secret")
    assert "Traceback" not in tokens
    chats_again(chat)
    secret = host.check_output("cat /etc/chatbot/secrets/database_password")
    assert secret == "rotated-0123456789abcdef"
    assert ", 0 FAIL" in follow("lost-credentials", "Verification")[0]


def test_model_provider_down(host, chat, follow):
    host.run_expect([0], "systemctl stop llm")
    log, closed, opened, health = follow("model-provider-down")
    assert '"model_base_url"' in log
    assert "failed=0" in closed
    assert "failed=0" in opened
    assert ", 0 FAIL" in health
    chats_again(chat)


def test_break_in_suspected(host, variables, authority, follow):
    follow("break-in-suspected", "Alone")
    stranger = ChatClient(
        variables["chatbot_domain"], address=variables["ansible_host"], authority=authority, timeout=5
    )
    with pytest.raises(OSError, match="timed out"):
        stranger.call("GET", "/api/v1/health")
    follow("break-in-suspected", "Look")
    found = host.check_output(
        "cd ~/evidence && wc --bytes connections processes changed-in-a-week containers entrances"
    )
    assert not re.search(r"^ *0 ", found, re.MULTILINE), found
    assert "sshd" in host.check_output("cat ~/evidence/processes")
    host.run_expect([0], "nft delete table inet quarantine")
    assert ", 0 FAIL" in follow("break-in-suspected", "Verification")[0]


def test_database_corruption(host, chat, follow):
    """What PostgreSQL needs to start is overwritten. The conversation of the last backup is there again."""
    _, conversation = chat.call("POST", "/api/v1/conversations", {"title": "Before the damage"})
    seen, *_ = follow("database-corruption", "Detection")
    assert "online" in seen
    follow("database-corruption", "After-care")
    unit = host.check_output("systemctl list-units --plain --no-legend 'postgresql@*' | cut -d ' ' -f 1")
    host.run_expect([0], f"systemctl stop {unit}")
    host.run_expect([0], "dd if=/dev/urandom of=$(echo /var/lib/postgresql/*/main/global/pg_control) bs=8k count=1")
    assert host.run(f"systemctl start {unit} && sleep 3 && systemctl is-active {unit}").rc != 0
    follow("database-corruption", "A new cluster")
    chats_again(chat)
    status, found = chat.call("GET", f"/api/v1/conversations/{conversation['id']}")
    assert (status, found["title"]) == (200, "Before the damage")
    (restored,) = follow("database-corruption", "One moment back")
    assert restored.count("failed=0") == 2
    chats_again(chat)
    assert ", 0 FAIL" in follow("database-corruption", "Verification")[0]
