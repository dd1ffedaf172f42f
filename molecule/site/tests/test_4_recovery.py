"""Programs die and machines restart; the chat comes back by itself."""

import time

import pytest
from conftest import chats_again
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
