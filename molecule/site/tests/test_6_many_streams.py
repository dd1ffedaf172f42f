"""Fifty answers at once, and then their worker dies, or the whole container: nothing is lost, nothing comes twice."""

import http.client
import random
import threading
import time
from pathlib import Path

import pytest
from conftest import COLOUR, chats_again, make_account
from testbed.chat import ChatClient, ChatError
from testbed.verify import eventually

# All of it is in the image.
pytestmark = pytest.mark.only_on("debian13")

ACCOUNTS, ANSWERS_EACH = 10, 5
# Forty seconds: the first must still be counting when the last has begun.
NUMBERS, PAUSE = 130, 0.3
# nginx and the application let one address ask so often (seconds).
BETWEEN_QUESTIONS = 0.3
PASSWORD = "fifty-streams-at-the-same-time"
MODEL = (Path(__file__).parents[2] / "shared/counting_model.py").read_text()
WHOLE = "".join(f"{number} " for number in range(NUMBERS))

KILLED = {
    # The youngest process of the application: its elders are the master and the other workers.
    "worker": "pkill -9 -n -f '[g]unicorn'",
    # Its first process, as the kernel does it; `docker kill` would count as somebody's wish and keep it down.
    "container": f"kill -9 $(docker inspect --format '{{{{.State.Pid}}}}' $({COLOUR}))",
}


@pytest.fixture(scope="module")
def counting(host):
    """The counting model at the address where the application expects the local one."""
    address = host.check_output("ss -Hltn 'sport = :8080' | awk '{print $4}' | head -1").rpartition(":")[0]
    host.run_expect([0], "systemctl stop llm")
    try:
        host.check_output("printf '%%s' %s > /run/counting_model.py", MODEL)
        arguments = f"/run/counting_model.py {address} 8080 {NUMBERS} {PAUSE}"
        host.run_expect([0], f"systemd-run --quiet --collect --unit=counting-model python3 {arguments}")
        yield
    finally:
        host.run("systemctl stop counting-model")
        host.run_expect([0], "systemctl start llm")


@pytest.fixture(scope="module")
def accounts(host):
    """Accounts enough for fifty answers, since each may have five at a time."""
    return [make_account(host, PASSWORD) for _ in range(ACCOUNTS)]


class Reader(threading.Thread):
    """Reads one answer to its end, over as many connections as it takes."""

    def __init__(self, client):
        super().__init__(daemon=True)
        self.client, self.text, self.lost, self.error = client, "", 0, None

    def run(self):
        try:
            self._read(self.client.ask("Count."))
        except Exception as error:
            self.error = error

    def _read(self, pieces):
        end, pause = time.monotonic() + 150, 0.5
        while True:
            try:
                for piece in pieces:
                    self.text += piece
            except (ChatError, OSError, http.client.HTTPException):
                if time.monotonic() > end or not self.client.message:
                    raise
                self.lost += 1
                # As the page does: longer each time, and not all of them in the same moment.
                pause = min(15.0, 2.0 * pause)
                time.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - no secret
                pieces = self.client.resume()
            else:
                return


def errors(readers):
    """The different errors that readers ended with."""
    return sorted({f"{type(reader.error).__name__}: {reader.error}"[:200] for reader in readers if reader.error})[:3]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("victim", KILLED)
@pytest.mark.usefixtures("counting")
def test_fifty_answers_survive(host, variables, authority, accounts, chat, victim):
    chats_again(chat, 120)

    def client(email):
        return ChatClient(
            variables["chatbot_domain"],
            address=variables["ansible_host"],
            authority=authority,
            account=(email, PASSWORD),
        )

    for email in accounts:
        assert client(email).call("GET", "/api/v1/account")[0] == 200
    readers = [Reader(client(email)) for email in accounts for _ in range(ANSWERS_EACH)]
    for reader in readers:
        reader.start()
        time.sleep(BETWEEN_QUESTIONS)
    # All of them are in the middle.
    assert eventually(lambda: all(reader.text or reader.error for reader in readers), seconds=30)
    assert errors(readers) == []
    assert all(reader.is_alive() for reader in readers)
    host.run_expect([0], KILLED[victim])
    deadline = time.monotonic() + 180
    for reader in readers:
        reader.join(max(0.0, deadline - time.monotonic()))
    assert errors(readers) == []
    endless = [reader.client.message.rpartition("/")[2] for reader in readers if reader.is_alive()]
    if endless:
        print(host.check_output("journalctl --no-pager --lines 400 CONTAINER_NAME=$(%s)" % COLOUR))  # noqa: UP031
    assert endless == []

    kept = []
    for reader in readers:
        time.sleep(BETWEEN_QUESTIONS / 2)
        kept.append(reader.client.kept())
    ends = [(message["status"], message["finish_reason"]) for message in kept]
    resumed = sum(reader.lost > 0 for reader in readers)
    print(f"{victim}: {len(readers)} answers; {resumed} readers lost their connection and came back;", end=" ")
    print(", ".join(f"{ends.count(end)} {'/'.join(map(str, end))}" for end in sorted(set(ends), key=str)))
    for reader, message in zip(readers, kept, strict=True):
        # What was read is what is kept, and that is the beginning of the count: no token missing, none twice.
        assert reader.text == message["content"]
        assert WHOLE.startswith(message["content"])
        assert (message["content"] == WHOLE) == (message["status"] == "complete")
    assert set(ends) <= {("complete", "stop"), ("interrupted", "worker_lost")}
