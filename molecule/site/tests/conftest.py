"""What the tests of the whole site share: a client that comes from outside, and a way to run playbooks."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from testbed import helpers
from testbed.chat import ChatClient, ChatError

REPOSITORY = Path(__file__).resolve().parents[3]
INVENTORY = REPOSITORY / ".cache/testbed/site/hosts.yml"


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """The root of the ACME authority, the only one that the client trusts."""
    path = tmp_path_factory.mktemp("authority") / "root.pem"
    path.write_text(helpers.issuing_root())
    return path


@pytest.fixture
def variables(host):
    """Inventory variables of the host under test."""
    return host.ansible.get_variables()


@pytest.fixture
def chat(variables, authority):
    """A client on the control node, which is another machine on the hosts' network."""
    return ChatClient(
        variables["chatbot_domain"],
        address=variables["ansible_host"],
        user="chat",
        password="testbed-access-0123456789abcdef",
        authority=authority,
    )


@pytest.fixture
def playbook(variables):
    """Run a playbook against the host under test; return (exit code, output)."""
    inventory_name = variables["inventory_hostname"]

    def run(path, *arguments):
        command = ["ansible-playbook", f"playbooks/{path}", "-i", str(INVENTORY), "--limit", inventory_name, *arguments]
        environment = os.environ | {"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return run


def chats_again(chat, seconds=90):
    """Wait until the chat answers a question in full; fail with the last error when it does not."""
    end = time.monotonic() + seconds
    while True:
        try:
            text = "".join(chat.ask("Say hello."))
        except (ChatError, OSError) as error:
            if time.monotonic() > end:
                raise AssertionError(f"no answer after {seconds} s: {error}") from error
            time.sleep(1)
        else:
            assert text.strip()
            return
