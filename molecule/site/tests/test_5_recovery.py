"""Programs die and machines restart; the chat comes back by itself."""

import http.client
import time

import pytest
from conftest import STORY, chats_again
from testbed.chat import ChatError
from testbed.docker import docker

# What to kill: the oldest process whose command line matches, as root on the host.
VICTIMS = {
    "gunicorn": "pkill -9 -o -f 'gunicorn'",
    "postgresql": "pkill -9 -o -u postgres postgres",
    "nginx": "kill -9 $(cat /run/nginx.pid)",
    "valkey": "pkill -9 -o -u valkey valkey-server",
    "model": "kill -9 $(systemctl show --property MainPID --value llm)",
}


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.timeout(200)
def test_killed_program_is_back(host, chat, victim):
    chats_again(chat, 30)
    host.run_expect([0], VICTIMS[victim])
    time.sleep(1)
    started = time.monotonic()
    chats_again(chat)
    print(f"{victim}: chat works {time.monotonic() - started:.1f} s after the second that followed kill -9")


@pytest.mark.timeout(200)
def test_answer_of_a_killed_application_is_kept_and_continued(host, chat):
    """Its reader comes back, gets all that was written and why it ended, and lets the model go on from there."""
    chats_again(chat, 30)
    answer = chat.ask(STORY)
    text = next(answer) + next(answer)
    host.run_expect([0], "pkill -9 -f '[g]unicorn'")
    with pytest.raises((ChatError, OSError, http.client.HTTPException)):
        for piece in answer:
            text += piece
    text += _rest(chat, 90)
    assert (chat.usage["status"], chat.usage["finish_reason"]) == ("interrupted", "worker_lost")
    assert text == chat.kept()["content"]
    text += "".join(chat.go_on())
    assert text == chat.kept()["content"]


def _rest(chat, seconds):
    """What the last answer has beyond the event that arrived last, asked for until it comes whole."""
    end, text = time.monotonic() + seconds, ""
    while True:
        try:
            for piece in chat.resume():
                text += piece
        except (ChatError, OSError, http.client.HTTPException):
            if time.monotonic() > end:
                raise
            time.sleep(1)
        else:
            return text


@pytest.mark.timeout(300)
def test_reboot_brings_everything_back(chat, variables):
    docker("restart", "--time", "20", variables["testbed_container"])
    chats_again(chat, 180)
    failed = docker(
        "exec", variables["testbed_container"], "systemctl", "list-units", "--failed", "--plain", "--no-legend"
    )
    assert failed == ""
    ruleset = docker("exec", variables["testbed_container"], "nft", "list", "ruleset")
    assert "policy drop" in ruleset
