"""The application on its host: what it may do, what brings it back, and what a release looks like to its users."""

import contextlib
import json
import socket

import pytest
from testbed.verify import eventually

ASK = """
import json, sys, time, urllib.request
base, token = sys.argv[1:]
headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
def post(path, body):
    request = urllib.request.Request(base + path, json.dumps(body).encode(), headers)
    return urllib.request.urlopen(request, timeout=60)
conversation = json.load(post("/api/v1/conversations", {}))["id"]
arrivals = []
with post(f"/api/v1/conversations/{conversation}/messages", {"content": "Count."}) as response:
    for line in response:
        if line.startswith(b"event: "):
            arrivals.append([line.split()[1].decode(), time.monotonic()])
print(json.dumps(arrivals))
"""


def run(host, command, *arguments):
    """Run a command on the host, fail the test when it fails, return what it printed."""
    return host.check_output(command, *arguments).strip()


@pytest.fixture(scope="module")
def settings(host):
    return host.ansible.get_variables()


@pytest.fixture
def state(host, settings):
    return json.loads(run(host, "cat %s/state.json", settings["chatbot_release_directory"]))


@pytest.fixture
def container(state):
    return f"chatbot-{state['colour']}"


@pytest.fixture
def port(settings, state):
    return settings[f"chatbot_port_{state['colour']}"]


@pytest.fixture
def ready(host, port):
    """A function: the release that answers as ready, or nothing."""

    def ask():
        answer = host.run("curl --fail --silent --max-time 5 http://127.0.0.1:%s/api/v1/ready", str(port))
        return json.loads(answer.stdout)["release"] if answer.rc == 0 else ""

    return ask


@pytest.fixture(scope="module")
def watched(host):
    """What the users saw during the releases of side_effect.yml."""
    return json.loads(run(host, "cat /root/watch.json"))


def inspect(host, name):
    return json.loads(run(host, "docker inspect %s", name))[0]


def test_no_user_noticed_a_release(watched):
    assert watched["failures"] == []
    assert watched["requests"] > 100
    assert watched["answers"] > 3


def test_each_release_took_over_once(watched, state):
    """Old, then new, never old again: two colours do not answer in turn, and a refused release never answers at all."""
    assert len(watched["releases"]) == 2
    assert watched["releases"] == [state["previous"], state["release"]]


def test_new_settings_of_the_same_release_are_in_force(host, container, state):
    """Two rolls lead from blue over green back to blue."""
    assert state["colour"] == "blue"
    printed = run(host, "docker exec %s python -m chatbot settings", container)
    assert json.loads(printed)["system_prompt"] == "Answer briefly."


@pytest.mark.parametrize(
    ("name", "reason"),
    [("crashing", "becomes ready"), ("without-model", "Answer was streamed to its end: status 50")],
)
def test_bad_release_is_refused_with_its_reason(host, name, reason, state):
    message = run(host, "cat /root/refused-%s", name)
    assert reason in message
    assert f"release {state['release']} on {state['colour']} goes on serving" in message


def test_only_the_active_colour_runs(host, container):
    assert run(host, "docker ps --format '{{.Names}}'").splitlines() == [container]


def test_ways_back_are_kept_and_one_refused_release(host, settings, state):
    kept = {state["release"], state["previous"]}
    images = set(run(host, "docker images --format '{{.Tag}}' chatbot").split())
    assert kept <= images
    sources = set(run(host, "cd %s/releases && ls -d */source", settings["chatbot_release_directory"]).split())
    assert {f"{release}/source" for release in kept} <= sources
    # The last refused release can be looked at.
    assert len(images) <= 3


def test_nobody_outside_reaches_the_application(settings):
    for port in (settings["chatbot_port_blue"], settings["chatbot_port_green"]):
        with contextlib.suppress(OSError), socket.create_connection((settings["ansible_host"], port), timeout=3):
            pytest.fail(f"port {port} answers from outside")


def test_process_has_no_power(host, container, settings):
    """Asked from inside, of the kernel."""
    status = run(host, "docker exec %s cat /proc/self/status", container)
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    assert fields["Uid"].split()[0] == run(host, "id -u chatbot") != "0"
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"].strip() == "1"
    assert host.run("docker exec %s touch /app/x", container).rc != 0
    assert host.run("docker exec %s touch %s/x", container, "/etc/chatbot/secrets").rc != 0
    run(host, "docker exec %s touch %s/x", container, settings["chatbot_data_directory"])
    run(host, "rm %s/x", settings["chatbot_data_directory"])


def test_memory_is_limited(host, container):
    """By the kernel, under control groups of version 2 or 1; and what is used leaves room below the limit."""
    either = "docker exec %s sh -c 'cd /sys/fs/cgroup; cat {} || cat memory/{}' 2>/dev/null"
    limit = int(run(host, either.format("memory.max", "memory.limit_in_bytes"), container))
    used = int(run(host, either.format("memory.current", "memory.usage_in_bytes"), container))
    assert limit == 512 * 1024 * 1024
    assert used < 0.75 * limit


def test_secrets_are_in_files_only(host, container, settings):
    described = json.dumps(inspect(host, container)) + run(host, "docker logs %s 2>&1", container)
    for name in ("secret_key", "database_password", "valkey_password", "model_api_key"):
        assert settings[f"chatbot_{name}"] not in described
        assert host.run("runuser -u nobody -- cat /etc/chatbot/secrets/%s", name).rc != 0


def test_first_administrator_was_made_once(host, container, settings):
    listed = run(
        host, "docker exec %s python -m chatbot account list --search %s", container, settings["chatbot_contact_email"]
    )
    (account,) = [json.loads(line) for line in listed.splitlines()]
    assert (account["email"], account["role"]) == (settings["chatbot_contact_email"], "admin")
    body = {"email": account["email"], "password": settings["chatbot_admin_password"]}
    signed_in = run(
        host,
        "docker exec %s python -c %s %s",
        container,
        "import sys, urllib.request as u; kind = {'Content-Type': 'application/json'}; "
        "request = u.Request('http://127.0.0.1:8000/api/v1/session', sys.argv[1].encode(), kind); "
        "print(u.urlopen(request, timeout=10).status)",
        json.dumps(body),
    )
    assert signed_in == "200"


def test_strangers_may_not_ask(host, port):
    command = (
        "curl --silent --output /dev/null --write-out '%%{http_code}' -X POST http://127.0.0.1:%s/api/v1/conversations"
    )
    assert run(host, command, str(port)) == "401"


def test_answer_is_streamed_token_by_token(host, container, port):
    manage = "docker exec %s python -m chatbot "
    run(host, manage + "account create tests@example.test --if-missing --no-password", container)
    token = run(host, manage + "token create tests@example.test --name tests --scope chat", container)
    arrivals = json.loads(run(host, "python3 -c %s http://127.0.0.1:%s %s", ASK, str(port), token))
    assert arrivals[0][0] == "start" and arrivals[-1][0] == "done"
    deltas = [at for name, at in arrivals if name == "delta"]
    # Twenty numbers in two seconds. Held back until the end they would arrive at once.
    assert len(deltas) > 3
    assert deltas[-1] - deltas[0] > 1


def gunicorn(host, container):
    """The process identifiers of gunicorn's master and workers, as the host sees them."""
    init = str(inspect(host, container)["State"]["Pid"])
    master = run(host, "pgrep --parent %s", init)
    return master, run(host, "pgrep --parent %s", master).split()


def test_killed_master_comes_back(host, container, ready, state):
    before = inspect(host, container)["State"]["StartedAt"]
    master, _ = gunicorn(host, container)
    run(host, "kill -9 %s", master)
    assert eventually(lambda: inspect(host, container)["State"]["StartedAt"] != before)
    assert eventually(lambda: ready() == state["release"])


def test_killed_worker_is_replaced(host, container, ready, state):
    master, workers = gunicorn(host, container)
    run(host, "kill -9 %s", workers[0])
    replaced = eventually(lambda: len(set(gunicorn(host, container)[1]) - {workers[0]}) == len(workers))
    assert replaced
    assert gunicorn(host, container)[0] == master
    assert eventually(lambda: ready() == state["release"])


@pytest.mark.parametrize("service", ["postgresql", "valkey"])
def test_restarted_server_is_found_again(host, container, ready, service, state):
    """The container holds the directory of the socket, so it must find the new socket in it."""
    before = inspect(host, container)["State"]["StartedAt"]
    units = {"postgresql": "'postgresql@*'", "valkey": "'valkey*' 'redis*'"}[service]
    run(host, f"systemctl restart $(systemctl list-units --state=running --plain --no-legend {units} | cut -d' ' -f1)")
    assert eventually(lambda: ready() == state["release"])
    assert inspect(host, container)["State"]["StartedAt"] == before


def test_engine_restart_does_not_stop_it(host, container, ready, state):
    before = inspect(host, container)["State"]["StartedAt"]
    run(host, "systemctl restart docker")
    assert eventually(lambda: ready() == state["release"])
    assert inspect(host, container)["State"]["StartedAt"] == before
