"""A restore and a drill with the chat itself: what its users see, and what the drill reads as one of them."""

import json
import re

import pytest
from testbed.verify import eventually, play

pytestmark = pytest.mark.timeout(900)

EMAIL = "reader@example.test"
# The site answers to its name only, which nobody but this host needs to know here.
NAME = """
import socket
known = socket.getaddrinfo
socket.getaddrinfo = lambda host, *more, **options: known("127.0.0.1", *more, **options)
"""
# Asks the site as a browser does; prints the status and what came.
CALL = (
    NAME
    + """
import json, ssl, sys, urllib.error, urllib.request
method, path, token, body = sys.argv[1:]
request = urllib.request.Request("https://chat.localhost" + path, body.encode() or None, method=method, headers={
    "Authorization": f"Bearer {token}", "Content-Type": "application/json"})
try:
    answer = urllib.request.urlopen(request, timeout=60, context=ssl._create_unverified_context())
except urllib.error.HTTPError as error:
    answer = error
print(json.dumps([answer.status, answer.read().decode()]))
"""
)


@pytest.fixture(scope="module")
def container(host):
    return "chatbot-" + json.loads(host.check_output("cat /opt/chatbot/state.json"))["colour"]


@pytest.fixture(scope="module")
def token(host, container):
    command = "docker exec %s python -m chatbot token create %s --name tests --scope chat --new-account"
    return host.check_output(command, container, EMAIL).split()[-1]


@pytest.fixture
def call(host, token):
    def ask(method: str, path: str, body: object = None) -> tuple[int, str]:
        text = "" if body is None else json.dumps(body)
        status, content = json.loads(host.check_output("python3 -c %s %s %s %s %s", CALL, method, path, token, text))
        return status, content

    return ask


@pytest.fixture
def conversation(call):
    """A conversation with a message; its answer is an error, because no model is there."""
    status, content = call("POST", "/api/v1/conversations", {"title": "Kept in a backup"})
    assert status == 201, content
    path = f"/api/v1/conversations/{json.loads(content)['id']}"
    call("POST", f"{path}/messages", {"content": "What is kept for ever?"})
    eventually(lambda: "What is kept for ever?" in call("GET", path)[1])
    return path


def test_drill_reads_a_conversation_as_its_owner(host, call, container, conversation):
    assert play(host, "playbooks/backup.yml").code == 0
    messages = len(json.loads(call("GET", conversation)[1])["messages"])
    started = host.check_output("docker inspect --format %s %s", "{{.State.StartedAt}}", container)
    result = play(host, "playbooks/restore_drill.yml")
    assert result.code == 0, result.output
    assert f"{messages} messages of conversation {conversation.rpartition('/')[2]}" in result.words
    # Nobody noticed, and nothing is left.
    assert host.check_output("docker inspect --format %s %s", "{{.State.StartedAt}}", container) == started
    assert "chatbot-drill" not in host.check_output("docker ps --all --format %s", "{{.Names}}")
    assert host.check_output("ls -A /var/lib/chatbot-drill") == ""
    metrics = host.check_output("cat /var/lib/prometheus/node-exporter/chatbot_backup_drill.prom")
    assert re.search(r"^backup_drill_success\S* 1$", metrics, re.MULTILINE)


def test_drill_finds_a_chat_that_cannot_read_its_data(host, conversation):
    """The backup is as recorded, and yet no use: the drill asks the application, not only the database."""
    assert conversation
    host.check_output("cd / && runuser -u postgres -- psql -Xq chatbot -c 'ALTER TABLE messages RENAME TO letters'")
    try:
        host.check_output("chatbot-backup run --repository offsite")
    finally:
        host.check_output("cd / && runuser -u postgres -- psql -Xq chatbot -c 'ALTER TABLE letters RENAME TO messages'")
    result = host.run("chatbot-backup drill")
    assert result.rc == 21, result.stderr
    assert "the application does not work with the restored data" in result.stderr
    host.check_output("chatbot-backup run --repository offsite")


def test_deleted_conversation_comes_back_behind_the_maintenance_page(host, call, container, conversation, looking):
    host.check_output("systemctl start chatbot-backup")
    before = call("GET", conversation)[1]
    assert call("DELETE", conversation)[0] == 204
    started = host.check_output("docker inspect --format %s %s", "{{.State.StartedAt}}", container)
    with looking:
        result = play(host, "playbooks/restore.yml")
    assert result.code == 0, result.output
    status, after = call("GET", conversation)
    assert (status, json.loads(after)["messages"]) == (200, json.loads(before)["messages"])
    assert looking.seen == [200, 503, 200]
    assert host.check_output("docker inspect --format %s %s", "{{.State.StartedAt}}", container) == started

    assert play(host, "playbooks/restore_undo.yml").code == 0
    assert call("GET", conversation)[0] == 404
    for name in host.check_output(
        "cd / && runuser -u postgres -- psql -XAtc %s",
        "SELECT datname FROM pg_database WHERE datname LIKE 'chatbot\\_%'",
    ).split():
        host.check_output("cd / && runuser -u postgres -- dropdb %s", name)
