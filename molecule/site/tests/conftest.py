"""What the tests of the whole site share: a client that comes from outside, and a way to run playbooks."""

import re
import shlex
import time
import uuid

import pytest
from testbed import helpers, restic_keys
from testbed.chat import ChatClient, ChatError
from testbed.verify import command_of, run_as_operator

# A question with a long answer, whatever model answers it.
STORY = "Write a long story about a lighthouse keeper, in at least ten sentences."


# What the host has to say about a failed test; nothing of it is there any more when somebody reads the result.
SAID = (
    "uptime; free -m; docker ps -a --format '{{.Names}} {{.Status}}'; tail -n 20 /var/log/nginx/error.log; "
    "journalctl --quiet --no-pager --since -3min --lines 60 --output cat"
    " CONTAINER_NAME=chatbot-blue + CONTAINER_NAME=chatbot-green"
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Keep what the host says beside the traceback."""
    report = yield
    if report.when == "call" and report.failed and (host := item.funcargs.get("host")):
        try:
            said = host.run(f"timeout 30 sh -c {shlex.quote(SAID)}").stdout
        except Exception as error:
            said = f"nothing: {error!r}"
        report.sections.append(("What the host says", said))
    return report


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
