"""Runs on the demo's host: asks the same question of the model, of the application and of nginx, and times the answers.

Reads its parameters as JSON from standard input, prints the measurements as JSON. Standard library only.
"""

import functools
import http.client
import json
import ssl
import sys
import time
from pathlib import Path


def stream(connection, path, body, headers, is_text):
    """Send one request; return (seconds to the first text, seconds to the end, pieces of text)."""
    started = time.monotonic()
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **headers})
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"{path}: HTTP {response.status}: {response.read().decode()}")
    first, pieces = None, 0
    while line := response.readline():
        if is_text(line):
            pieces += 1
            first = first or time.monotonic() - started
    connection.close()
    return first, time.monotonic() - started, pieces


def ask_model(given, key):
    """Ask the model's own API."""
    body = {
        "model": given["model"],
        "stream": True,
        "temperature": 0,
        "max_tokens": given["tokens"],
        "messages": [{"role": "user", "content": given["question"]}],
    }
    # From loopback: Docker changes the source of what the host sends to its own bridge, and the unit refuses that.
    connection = http.client.HTTPConnection(*given["model_address"], source_address=("127.0.0.1", 0))
    headers = {"Authorization": f"Bearer {key}"}
    return stream(connection, "/v1/chat/completions", body, headers, lambda line: b'"content":"' in line)


def sign_in(given, connect):
    """Sign in as a browser does; return the headers of everything that follows."""
    headers = {"Host": given["domain"]}
    connection = connect()
    connection.request(
        "POST", "/api/v1/session", json.dumps(given["account"]), {"Content-Type": "application/json", **headers}
    )
    response = connection.getresponse()
    answer = json.loads(response.read())
    if response.status != 200:
        raise SystemExit(f"cannot sign in: HTTP {response.status}: {answer}")
    cookie = response.getheader("Set-Cookie").partition(";")[0]
    return {**headers, "Cookie": cookie, "X-CSRFToken": answer["csrf_token"]}


def ask_chat(given, headers, connect):
    """Ask through the application's API, in a new conversation."""
    connection = connect()
    connection.request("POST", "/api/v1/conversations", "{}", {"Content-Type": "application/json", **headers})
    conversation = json.loads(connection.getresponse().read())
    path = f"/api/v1/conversations/{conversation['id']}/messages"
    return stream(
        connect(), path, {"content": given["question"]}, headers, lambda line: line.startswith(b'data: {"text"')
    )


def main():
    """Take the three ways in turn, so that whatever else the machine does touches all of them."""
    given = json.load(sys.stdin)
    key = Path("/etc/chatbot/secrets/model_api_key").read_text().strip()
    # The certificate was checked by the demo; here only time counts, and the root is not on this host.
    context = ssl._create_unverified_context()  # noqa: S323
    through_nginx = functools.partial(http.client.HTTPSConnection, given["domain"], 443, context=context)

    directly = functools.partial(http.client.HTTPConnection, "127.0.0.1", given["port"])
    headers = sign_in(given, directly)
    ways = {
        "model (direct)": lambda: ask_model(given, key),
        "through the app": lambda: ask_chat(given, headers, directly),
        "through nginx and app": lambda: ask_chat(given, headers, through_nginx),
    }
    results = {name: [] for name in ways}
    for _ in range(given["rounds"]):
        for name, way in ways.items():
            results[name].append(way())
    json.dump(results, sys.stdout)


main()
