"""Use the chat all the time, as its users do, and write down everything that went wrong and which releases answered.

watch.py <base address> <result file>: runs until <result file>, with the ending .stop, exists; with .token it
is an API token. It runs on the host, so standard library only.
"""

import json
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

base, result = sys.argv[1], Path(sys.argv[2])
stop = result.with_suffix(".stop")
token = result.with_suffix(".token").read_text().strip()
stop.unlink(missing_ok=True)
result.unlink(missing_ok=True)
failures: list[str] = []
releases: list[str] = []
requests = answers = 0
# What the counting model of prepare.yml answers.
WHOLE = "".join(f"{number} " for number in range(20))


def call(path, body=None):
    """Return the open response; an empty body is a POST as well."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(base + path, data, headers)  # noqa: S310 - the address is the scenario's own
    return urllib.request.urlopen(request, timeout=120)  # noqa: S310


def ask():
    """Ask for the release twice a second."""
    global requests
    while not stop.exists():
        try:
            with call("/api/v1/ready") as response:
                release = json.load(response)["release"]
            requests += 1
            if not releases or releases[-1] != release:
                releases.append(release)
        except urllib.error.HTTPError as error:
            failures.append(f"ready: {error.code} {error.read().decode()}")
        except Exception as error:
            failures.append(f"ready: {error!r}")
        time.sleep(0.5)


def chat():
    """Have one answer streamed after the other, with a little time to read it."""
    global answers
    while not stop.exists():
        try:
            with call("/api/v1/conversations", {}) as response:
                conversation = json.load(response)["id"]
            question = {"content": "Count."}
            with call(f"/api/v1/conversations/{conversation}/messages", question) as response:
                events = response.read().decode()
            data = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: ")]
            if "".join(event.get("text", "") for event in data) != WHOLE or "event: done" not in events:
                failures.append(f"chat: not the whole count: {events[-200:]!r}")
            answers += 1
        except Exception as error:
            failures.append(f"chat: {error!r}")
        time.sleep(2)


threads = [threading.Thread(target=ask), threading.Thread(target=chat)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
staged = result.with_suffix(".new")
staged.write_text(json.dumps({"requests": requests, "answers": answers, "releases": releases, "failures": failures}))
staged.replace(result)
