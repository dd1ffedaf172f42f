"""What happens to a server in its life, with users on it all the time: none of them may notice anything."""

from __future__ import annotations

import json
import re
import signal
from typing import Any

import pytest
from conftest import SETTINGS
from testbed.runbook import blocks, perform
from testbed.verify import eventually, play

STATE = "cat /opt/chatbot/state.json"
WATCHED = "New release is watched while the old one is warm"
# A task in the middle of each phase of a release, and the one that it comes after: a run that finds a killed one's work
# first puts the old release back in order, where the last of them has a place, too.
PHASES = {
    "stage": ("Staged colour becomes ready as this release", ""),
    "switch": ("Upstream takes effect", ""),
    "bake": (WATCHED, ""),
    "retire": ("Colour has given its last answers", WATCHED),
}


def state(host: Any) -> dict[str, Any]:
    """What the host agrees to serve."""
    found: dict[str, Any] = json.loads(host.check_output(STATE))
    return found


def serving(host: Any) -> str:
    """The release that answers behind nginx."""
    address = host.check_output(r"sed -n 's/^ *server \(.*\);$/\1/p' /etc/nginx/chatbot/upstream.conf")
    answer = host.check_output("curl -sf --max-time 5 http://%s/api/v1/ready", address)
    return str(json.loads(answer)["release"])


def manifest(host: Any, release: str) -> dict[str, Any]:
    """What the books say of a release."""
    found: dict[str, Any] = json.loads(host.check_output("cat /opt/chatbot/releases/%s/manifest.json", release))
    return found


def last(output: str) -> str:
    """The last line that a playbook printed."""
    return [line for line in output.splitlines() if line.strip()][-1]


def succeeded(played: Any) -> None:
    """The playbook ended well; otherwise the end of its output says why."""
    failed = played.code != 0
    assert not failed, played.output[-3000:]


def all_new(played: Any, release: str) -> None:
    succeeded(played)
    assert last(played.output) == f"RELEASE ALL NEW: {release} serves on 1 of 1 app host."


def all_old(host: Any, played: Any, release: str) -> None:
    assert played.code != 0
    assert last(played.output).startswith(f"RELEASE ALL OLD: {release} serves on 1 of 1 app host; ")
    assert serving(host) == state(host)["release"] == release


@pytest.fixture(scope="module", autouse=True)
def release_line(host: Any) -> Any:
    """Whatever fails here, the lock is free in the end."""
    yield
    assert not host.file("/run/lock/chatbot-release.json").exists


@pytest.mark.timeout(1200)
def test_good_release(host, crowd, operator, source):
    with crowd.event("good release") as event:
        played = operator("rolling_update", chatbot_source=source("good"))
    all_new(played, state(host)["release"])
    assert serving(host) == state(host)["release"]
    assert re.search(r"\d+ requests, 0.0 % failed; \d+ answers", played.words), "the bake names its figures"
    crowd.assert_unharmed(event)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("release", "reason"),
    [
        ("crashing", "Staged colour becomes ready as this release"),
        ("unready", "Staged colour becomes ready as this release"),
        ("mute", "Answer was streamed to its end: status 503"),
        ("slow", r"95 % of \d+ answers had their first token within [4-9].\d s, the limit is 2 s"),
    ],
)
def test_bad_release(host, crowd, operator, source, release, reason):
    before = state(host)["release"]
    # What is slow has given few answers by then: its users are still waiting for them, and this machine may be busy.
    watched = ["--extra-vars=chatbot_bake_seconds=40"] if release == "slow" else []
    with crowd.event(f"release: {release}") as event:
        played = operator("rolling_update", *watched, chatbot_source=source(release))
    all_old(host, played, before)
    assert re.search(reason, played.words)
    switched = release == "slow"
    assert ("Requests were switched back" in played.words) == switched
    tried = last(played.output).rpartition("; ")[2].split()[0]
    assert manifest(host, tried)["verdict"] == "rejected"
    assert re.search(reason, manifest(host, tried)["reason"])
    crowd.assert_unharmed(event)


@pytest.mark.timeout(1200)
def test_new_release_dies_while_it_is_watched(host, crowd, begin, source):
    """Its container goes; the old one, which is warm, takes what comes then, and all of it a moment later."""
    before = state(host)
    colour = "green" if before["colour"] == "blue" else "blue"
    with crowd.event("container dies in the bake") as event:
        running = begin(
            "rolling_update",
            f"--extra-vars=chatbot_source={source('dying')}",
            "--extra-vars=chatbot_bake_seconds=60",
            interrupted=False,
        )
        running.reaches(WATCHED)
        host.check_output("docker update --restart=no chatbot-%s && docker kill chatbot-%s", colour, colour)
        running.process.wait(timeout=600)
    output = running.log.read_text()
    assert running.process.returncode != 0
    assert "its metrics did not come" in " ".join(output.split())
    assert last(output).startswith(f"RELEASE ALL OLD: {before['release']} serves on 1 of 1 app host; ")
    assert serving(host) == before["release"]
    crowd.assert_only_questions_refused(event)


@pytest.mark.timeout(1200)
def test_rollback(host, crowd, operator, source):
    """As the runbook for a bad release has it."""
    before = state(host)
    (block,) = [block for block in blocks("bad-release") if block.heading == "Commands"]
    with crowd.event("rollback") as event:
        output = perform(host, block, {".yml -i": f".yml --extra-vars=@{SETTINGS} -i"})
    assert last(output) == f"RELEASE ALL NEW: {before['previous']} serves on 1 of 1 app host."
    assert serving(host) == state(host)["release"] == before["previous"]
    assert manifest(host, before["release"])["verdict"] == "rolled back"
    crowd.assert_unharmed(event)
    listed = operator("releases")
    assert re.search(rf"{before['previous']} .* ACTIVE ", listed.words)
    assert re.search(rf"{before['release']} .* rolled back ", listed.words)
    # Whoever only sets up the server does not bring it back.
    setup = play(host, "molecule/update/converge.yml", chatbot_source=source("good"))
    succeeded(setup)
    assert f"release {before['release']}, which was rolled back here" in setup.words
    assert last(setup.output) == f"RELEASE UNCHANGED: {before['previous']} serves on 1 of 1 app host."
    assert serving(host) == before["previous"]
    # There was none before that one.
    refused = operator("rollback")
    assert refused.code != 0
    assert "There is no earlier good release to go back to" in refused.words
    assert serving(host) == before["previous"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("nginx: new configuration", "touch /etc/nginx/chatbot/live/site.conf && systemctl reload nginx"),
        ("certificate renewal", "certbot renew --force-renewal --no-random-sleep-on-renew"),
        ("firewall reload", "systemctl reload chatbot-firewall"),
        ("Docker restart", "systemctl restart docker"),
    ],
)
def test_what_else_touches_the_road(host, crowd, name, command):
    with crowd.event(name, rest=8) as event:
        host.run_expect([0], command)
    crowd.assert_unharmed(event)


@pytest.mark.timeout(600)
def test_database_restarts(host, crowd):
    """As after a security update. Answers that run go on; who asks just then waits, or is told when to come again."""
    crowd.maintenance = True
    try:
        with crowd.event("PostgreSQL restart", rest=12) as event:
            host.check_output("systemctl restart 'postgresql@*'")
    finally:
        crowd.maintenance = False
    crowd.assert_unharmed(event)


@pytest.mark.timeout(1200)
def test_maintenance(crowd, operator):
    """Answers that run go on to their ends, the health check stays green, new requests get the page."""
    crowd.maintenance = True
    try:
        with crowd.event("maintenance on, 20 s, off", rest=0) as event:
            played = operator("maintenance", state="on")
            succeeded(played)
            again = operator("maintenance", state="on")
            assert "changed=0" in again.words
            kept = operator("rolling_update", "--check")
            succeeded(kept)
            page = crowd.look("/")
            api = crowd.look("/api/v1/account")
            succeeded(operator("maintenance", state="off"))
    finally:
        crowd.maintenance = False
    assert (page[0], page[1]["Retry-After"]) == (503, "300")
    assert "Back soon" in page[2]
    assert (api[0], api[1]["Content-Type"]) == (503, "application/problem+json")
    assert "maintenance" in json.loads(api[2])["detail"]
    assert event.counts["closed"] > 0
    crowd.assert_unharmed(event)
    unsure = operator("maintenance")
    assert unsure.code != 0
    assert "-e state=on (or state=off)" in unsure.words


def took_over(output: str) -> None:
    """A run found the lock of one that was killed, and said so."""
    words = " ".join(output.split())
    assert "Took over the lock of" in words
    assert "that run has ended without giving it back" in words


@pytest.mark.timeout(2400)
def test_killed_control_node(host, crowd, operator, begin, source):
    """SIGKILL in each phase of one release; the same command again takes the lock over, says so, and goes on."""
    release = source("killed")
    logs = []
    for phase, (task, after) in PHASES.items():
        with crowd.event(f"SIGKILL in {phase}") as event:
            running = begin("rolling_update", f"--extra-vars=chatbot_source={release}")
            running.reaches(task, after)
            logs.append(running.ends(signal.SIGKILL))
        crowd.assert_unharmed(event)
    with crowd.event("and run again") as event:
        played = operator("rolling_update", chatbot_source=release)
    succeeded(played)
    for output in [*logs[1:], played.output]:
        took_over(output)
    agreed = state(host)["release"]
    assert re.match(rf"RELEASE (ALL NEW|UNCHANGED): {agreed} serves on 1 of 1 app host\.", last(played.output))
    assert serving(host) == agreed
    assert manifest(host, agreed)["verdict"] == "active"
    assert state(host)["run"] is None
    crowd.assert_unharmed(event)


@pytest.mark.timeout(1200)
def test_second_run_is_refused_and_the_first_is_interrupted(host, crowd, operator, begin, source):
    """Two releases at once: the second is told who is at work. Then Ctrl-C puts the old release back in order."""
    before = state(host)["release"]
    with crowd.event("two at once, Ctrl-C in the bake") as event:
        running = begin("rolling_update", f"--extra-vars=chatbot_source={source('first')}")
        running.reaches("Image is made")
        refused = operator("rolling_update", chatbot_source=source("second"))
        running.reaches(WATCHED)
        output = running.ends(signal.SIGINT)
    assert refused.code != 0
    assert "Another release is under way on" in refused.words
    assert f"(process {running.process.pid}) holds the lock since" in refused.words
    assert "the old release is put back in order" in output
    assert last(output).startswith(f"RELEASE ALL OLD: {before} serves on 1 of 1 app host; ")
    assert not host.file("/run/lock/chatbot-release.json").exists
    assert serving(host) == state(host)["release"] == before
    crowd.assert_unharmed(event)


@pytest.mark.timeout(1200)
def test_image_by_digest(host, crowd, operator):
    """Pulled from a real registry; the digest names the release. A tag is refused before anything happens."""
    built = f"chatbot:{state(host)['previous']}"
    tag = "registry:5000/chatbot:update"
    host.check_output("docker tag %s %s && docker push -q %s", built, tag, tag)
    shown = "docker image inspect --format '{{index .RepoDigests 0}}' %s"
    image = host.check_output(shown, tag)
    host.check_output("docker rmi %s", tag)
    refused = operator("rolling_update", chatbot_image=tag)
    assert refused.code != 0
    assert "which has no digest" in refused.words
    with crowd.event("image from a registry") as event:
        played = operator("rolling_update", chatbot_image=image)
    all_new(played, image.rpartition(":")[2][:12])
    assert serving(host) == state(host)["release"] == image.rpartition(":")[2][:12]
    again = operator("rolling_update", chatbot_image=image)
    assert "changed=0" in again.words
    assert last(again.output).startswith("RELEASE UNCHANGED")
    crowd.assert_unharmed(event)


def test_old_images_and_colours_are_gone(host):
    """After all of that: the one that serves and two ways back, perhaps the last one that was refused."""
    assert eventually(lambda: len(host.check_output("docker ps -q --filter name=chatbot-").split()) == 1)
    images = set(host.check_output("docker images --no-trunc --quiet chatbot").split())
    assert 2 <= len(images) <= 4
    assert host.check_output("docker images --quiet --filter dangling=true") == ""


def test_release_is_a_metric(host):
    metrics = host.check_output("curl -sf http://127.0.0.1:9100/metrics")
    (sample,) = re.findall(r"^chatbot_release_timestamp_seconds\{(.*)\} (\S+)$", metrics, re.MULTILINE)
    assert f'release="{state(host)["release"]}"' in sample[0]
    assert abs(float(sample[1]) - float(host.check_output("date +%s"))) < 3600
