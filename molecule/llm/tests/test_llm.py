"""The local model: who may ask it, how it answers, and how little of the host it sees."""

from __future__ import annotations

import json
import socket
import time

import pytest

KEY = "testbed-model-0123456789abcdef"
URL = "http://172.30.10.1:8080"
# Runs on the host: prints the seconds from the request to each chunk of the answer that carries text.
STREAM = r"""
import http.client, json, sys, time
asked = time.monotonic()
connection = http.client.HTTPConnection("172.30.10.1", 8080, timeout=60)
connection.request("POST", "/v1/chat/completions", json.dumps({
    "model": "smollm2-135m-instruct", "stream": True, "max_tokens": 60,
    "messages": [{"role": "user", "content": "Tell me a long story about the sea."}],
}), {"Authorization": "Bearer " + sys.argv[1], "Content-Type": "application/json"})
answer = connection.getresponse()
times, text = [], ""
for line in answer:
    if line.startswith(b"data: {"):
        for choice in json.loads(line[6:])["choices"]:
            if choice["delta"].get("content"):
                times.append(round(time.monotonic() - asked, 3))
                text += choice["delta"]["content"]
print(json.dumps({"status": answer.status, "times": times, "text": text}))
"""


def ask(host, key=KEY):
    return json.loads(host.check_output("python3 -c %s %s", STREAM, key))


def status(host, path, key=None):
    program = (
        "import sys, urllib.request, urllib.error\n"
        "request = urllib.request.Request(sys.argv[1], headers={'Authorization': 'Bearer ' + sys.argv[2]})\n"
        "try: print(urllib.request.urlopen(request, timeout=10).status)\n"
        "except urllib.error.HTTPError as error: print(error.code)\n"
        "except OSError: print(0)\n"
    )
    return int(host.check_output("python3 -c %s %s %s", program, URL + path, key or "none"))


def main_pid(host):
    return host.check_output("systemctl show --property=MainPID --value llm")


def wait_until_ready(host, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if status(host, "/v1/models", KEY) == 200:
            return
        time.sleep(0.5)
    pytest.fail(f"the model did not answer within {seconds} s:\n" + host.check_output("journalctl -u llm -n 30"))


def test_answer_streams_token_by_token(host):
    answer = ask(host)
    assert answer["status"] == 200
    assert len(answer["times"]) >= 20
    first, last = answer["times"][0], answer["times"][-1]
    print(f"first token after {first} s, last after {last} s")
    assert first < last / 2, "the first token must come long before the answer is complete"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/slots", "/props", "/metrics", "/"])
def test_nothing_but_the_health_check_answers_without_the_key(host, path):
    assert status(host, path) in (401, 404)
    assert status(host, path, "wrong-key-wrong-key") in (401, 404)


def test_prompts_of_others_cannot_be_read_even_with_the_key(host):
    assert status(host, "/slots", KEY) == 501


def test_listens_on_the_gateway_only(host):
    listening = host.check_output("ss -Hltn 'sport = :8080'").splitlines()
    assert [line.split()[3] for line in listening] == ["172.30.10.1:8080"]
    address = host.ansible.get_variables()["ansible_host"]
    with pytest.raises(OSError), socket.create_connection((address, 8080), timeout=5):
        pass


def test_four_users_are_answered_at_once(host):
    script = f"for n in 1 2 3 4; do python3 -c '{STREAM}' {KEY} & done; wait"
    answers = [json.loads(line) for line in host.check_output(script).splitlines()]
    assert len(answers) == 4
    assert all(answer["status"] == 200 and len(answer["times"]) >= 10 for answer in answers)
    # At the same time, not one after the other: everybody's first token comes before anybody's last one.
    assert max(a["times"][0] for a in answers) < min(a["times"][-1] for a in answers)


def test_memory_is_bounded_and_enough(host):
    shown = host.check_output("systemctl show --property=MemoryMax --property=NRestarts llm")
    values = dict(line.split("=") for line in shown.splitlines())
    assert int(values["MemoryMax"]) == 600 * 1024 * 1024
    resident = host.check_output("awk '/VmRSS/ {print $2}' /proc/%s/status", main_pid(host))
    print(f"{int(resident) // 1024} MB resident")
    assert int(resident) < 550 * 1024


def test_key_is_in_no_command_line_and_no_environment(host):
    pid = main_pid(host)
    assert KEY not in host.check_output("tr '\\0' ' ' < /proc/%s/cmdline", pid)
    assert KEY not in host.check_output("tr '\\0' ' ' < /proc/%s/environ", pid)
    assert host.run("runuser -u nobody -- cat /etc/llm/api-key").rc != 0


def test_sandbox_keeps_the_service_away_from_everything_else(host):
    """Enter the service's namespaces as its user, with its seccomp filter left out: files must be safe."""
    pid = main_pid(host)
    uid, gid = host.check_output("stat -c '%%u %%g' /proc/%s", pid).split()
    assert int(uid) != 0

    def inside(command):
        return host.run(
            f"nsenter --target {pid} --mount setpriv --reuid {uid} --regid {gid} --clear-groups sh -c %s", command
        )

    assert inside("cat /opt/llm/llm-server.py").rc == 0, "the probe itself must work"
    for secret in ("/etc/shadow", "/root/.ssh/authorized_keys", "/etc/ssh/ssh_host_ed25519_key"):
        assert inside(f"cat {secret}").rc != 0, secret
    for directory in ("/var/lib", "/home"):
        assert inside(f"ls {directory}/*").rc != 0, directory
    for place in ("/opt/llm/x", "/etc/x", "/usr/x", "/var/x", "/home/x"):
        assert inside(f"touch {place}").rc != 0, place


def test_sandbox_holds_no_privilege(host):
    lines = host.check_output("cat /proc/%s/status", main_pid(host)).splitlines()
    values = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert {values[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert values["NoNewPrivs"] == "1"
    assert values["Seccomp"] == "2"


def test_systemd_judges_the_sandbox_as_good(host):
    last = host.check_output("systemd-analyze security llm.service --no-pager").splitlines()[-1]
    print(last)
    assert float(last.split("llm.service:")[1].split()[0]) < 2.0


def test_killed_model_is_back(host):
    before = main_pid(host)
    host.check_output("kill -9 %s", before)
    wait_until_ready(host)
    assert main_pid(host) != before
    assert ask(host)["times"]


def test_model_comes_back_with_a_late_network(host):
    """As at boot: the bridge appears after the service was started."""
    host.check_output("systemctl stop llm && ip address del 172.30.10.1/24 dev br-chatbot && systemctl start llm")
    time.sleep(5)
    assert host.check_output("ss -Hltn 'sport = :8080'") == ""
    host.check_output("ip address add 172.30.10.1/24 dev br-chatbot")
    wait_until_ready(host)
