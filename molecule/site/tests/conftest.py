"""What the tests of the whole site share: a client that comes from outside, and a way to run playbooks."""

import re
import time
import uuid

import pytest
from testbed import helpers, restic_keys
from testbed.chat import ChatClient, ChatError
from testbed.said import pytest_runtest_makereport  # noqa: F401 - a hook
from testbed.verify import command_of, run_as_operator

# A question with a long answer, whatever model answers it.
STORY = "Write a long story about a lighthouse keeper, in at least ten sentences."


@pytest.fixture(scope="module", autouse=True)
def _repositories_open_quickly(host):
    restic_keys.make_quick(host)


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
        authority=authority,
        account=("operator@example.test", "testbed-admin-0123456789abcdef"),
    )


@pytest.fixture
def stranger(variables, authority):
    """The same for somebody who has no account."""
    return ChatClient(variables["chatbot_domain"], address=variables["ansible_host"], authority=authority)


@pytest.fixture
def playbook(host):
    """Run a playbook against the host under test; return (exit code, output)."""

    def run(name, *arguments):
        return run_as_operator(command_of(host, f"playbooks/{name}", *arguments))

    return run


def recap(output):
    """What a playbook's recap counts for its host."""
    return {word: int(number) for word, number in re.findall(r"(changed|failed|unreachable)=(\d+)", output)}


# Prints the name of the container that serves.
COLOUR = "docker ps --format '{{.Names}}' | grep -E '^chatbot-(blue|green)$'"


def make_account(host, password):
    """Make a new account as the application's README says; return its e-mail address."""
    email = f"{uuid.uuid4().hex[:8]}@example.org"
    command = f"docker exec -i $({COLOUR}) python -m chatbot account create {email} --password-file -"
    host.run_expect([0], f"echo {password} | {command}")
    return email


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
