"""Releases on two hosts at once, with users on the site all the time: all new or all old, as the last line says."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from conftest import APPLICATION, address, on, served, state
from testbed.docker import docker
from testbed.verify import eventually

pytestmark = pytest.mark.timeout(1800)


def last(output: str) -> str:
    """The last line that a playbook printed."""
    return [line for line in output.splitlines() if line.strip()][-1]


def agreed() -> str:
    """The release that both hosts have agreed on, and serve to nginx."""
    found = served()
    assert len(found) == len(APPLICATION), found
    releases = {state(name)["release"] for name in APPLICATION} | set(found.values())
    assert len(releases) == 1, releases
    assert all(state(name)["run"] is None for name in APPLICATION)
    return str(releases.pop())


def asked_hosts() -> set[str]:
    """The hosts that nginx has lately sent requests to."""
    log = on("edge1", "tail -n 100 /var/log/nginx/access.log")
    return {name for name in APPLICATION if f'"upstream":"{address(name)}:' in log}


@pytest.fixture(scope="module", autouse=True)
def release_lock() -> Any:
    """Whatever fails here, the locks are free in the end."""
    yield
    assert {name: on(name, "ls /run/lock/chatbot-release.json 2>/dev/null || true") for name in APPLICATION} == {
        "app1": "",
        "app2": "",
    }


def test_good_release(crowd, operator, image):
    before = agreed()
    with crowd.event("good release, two hosts") as event:
        played = operator("rolling_update", chatbot_image=image("good"))
    assert played.code == 0, played.output[-3000:]
    assert agreed() != before
    assert last(played.output) == f"RELEASE ALL NEW: {agreed()} serves on 2 of 2 app hosts."
    assert asked_hosts() == set(APPLICATION)
    crowd.assert_unharmed(event)


def test_gate_fails_on_one_host(crowd, operator, image):
    """The second host cannot reach its model: the first one, where all is well, does not switch either."""
    before = agreed()
    with crowd.event("gate fails on one of two") as event:
        played = operator(
            "rolling_update",
            chatbot_image=image("half"),
            chatbot_model_base_url="http://172.30.10.1:{{ 9 if inventory_hostname == 'app2' else 8080 }}/v1",
        )
    assert played.code != 0
    assert last(played.output).startswith(f"RELEASE ALL OLD: {before} serves on 2 of 2 app hosts; ")
    assert re.search("Answer was streamed to its end: status 50[34]", played.words)
    assert "Nothing was switched" in played.words
    assert agreed() == before
    crowd.assert_unharmed(event)


def test_container_of_one_host_dies_in_the_middle(crowd, begin, image):
    """After the switch: the other host goes back as well, and what nginx had for the dead one goes to its neighbour."""
    before, colour = agreed(), "green" if state("app2")["colour"] == "blue" else "blue"
    with crowd.event("container of one host dies") as event:
        running = begin(
            "rolling_update", f"--extra-vars=chatbot_image={image('dying')}", "--extra-vars=chatbot_bake_seconds=60"
        )
        running.reaches("New release is watched while the old one is warm")
        on("app2", f"docker update --restart=no chatbot-{colour} && docker kill chatbot-{colour}")
        running.process.wait(timeout=800)
    output = running.log.read_text()
    assert running.process.returncode != 0
    assert "its metrics did not come" in " ".join(output.split())
    assert re.match(rf"RELEASE ALL OLD: {before} serves on 2 of 2 app hosts; \w+ does not\.$", last(output))
    assert agreed() == before
    # Answers that the dead process wrote go on at another one: their connections broke off, their text did not.
    crowd.assert_only_questions_refused(event)


def test_host_dies_in_the_middle(crowd, begin, operator, image):
    """Its machine stops after the switch. Back again it serves the old release, as the other does, before any run.

    What it was writing is kept as far as it was read.
    """
    before = agreed()
    release = image("lost")
    with crowd.event("host dies in the bake") as event:
        running = begin("rolling_update", f"--extra-vars=chatbot_image={release}")
        running.reaches("New release is watched while the old one is warm")
        docker("kill", "cluster-app2")
        running.process.wait(timeout=800)
    with crowd.event("and comes back", rest=10) as back:
        docker("start", "cluster-app2")
        eventually(lambda: len(served()) == 2, seconds=120)
    output = running.log.read_text()
    assert running.process.returncode != 0
    assert re.match(
        rf"RELEASE ALL OLD: {before} serves on 1 of 2 app hosts; \w+ does not\."
        r" Not reached any more: app2; the next run puts that right\.$",
        last(output),
    )
    assert set(served().values()) == {before}
    for one in (event, back):
        crowd.assert_only_questions_refused(one)
    # The same command again.
    with crowd.event("the same release again") as again:
        played = operator("rolling_update", chatbot_image=release)
    assert played.code == 0, played.output[-3000:]
    assert last(played.output) == f"RELEASE ALL NEW: {agreed()} serves on 2 of 2 app hosts."
    crowd.assert_unharmed(again)
    # Three good releases are kept: the first, "good" and this one. On app2 also "dying", which failed: it was away when
    # "lost" failed and took that one's place, as on app1.
    for name, kept in (("app1", 3), ("app2", 4)):
        images = on(name, "docker image ls --all --format '{{.Repository}} {{.ID}}' | grep chatbot").splitlines()
        assert len({line.split()[1] for line in images}) == kept, images


def test_host_is_dead_for_nginx(crowd):
    """No packet comes back from it, as from a machine without power: requests go on at the other one."""
    table = "inet dead_host"
    with crowd.event("one host is dead, 30 s", rest=8) as event:
        on("edge1", f"nft 'add table {table}; add chain {table} c {{ type filter hook output priority 0; }};"
           f" add rule {table} c ip daddr {address('app2')} drop'")  # fmt: skip
        try:
            time.sleep(30)
        finally:
            on("edge1", f"nft delete table {table}")
    assert event.counts["failed"] == event.counts["broken"] == 0, crowd.failures[-5:]
    # One of them waits five seconds for a connection, then the host is left alone for ten: no more than half the time.
    assert event.counts["requests"] > 30
    assert eventually(lambda: asked_hosts() == set(APPLICATION))
