"""The drill: the newest backup of the off-site repository, restored where nobody notices, and used as people would.

It touches nothing that is in use: PostgreSQL is a server of its own for these minutes, on a socket of its own, and the
application runs from the image that serves, without a network. What it measures are the recovery time and the recovery
point that a real restore from this backup would have had.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chatbot_backup import catalogue, point_in_time
from chatbot_backup.books import ARCHIVE, publish_drill
from chatbot_backup.catalogue import Backup
from chatbot_backup.common import (
    DISK_FULL,
    NOT_AS_RECORDED,
    OTHER,
    Failure,
    Settings,
    first_line,
    load,
    log,
    megabytes,
)
from chatbot_backup.database import Server, literal, quoted
from chatbot_backup.manifest import compare_files, named
from chatbot_backup.restic import Repository
from chatbot_backup.restore import RESERVE, fill, read_manifest
from chatbot_backup.scratch import Scratch

PLACE = Path("/var/lib/chatbot-drill")
SOCKET = Path("/run/chatbot-drill")
SCRATCH = Scratch(PLACE, SOCKET)
CONTAINER = "chatbot-drill"
# Starts of Python and of the application, in seconds; a small VPS needs a third of it.
READY_SECONDS = 180
# The newest conversation that somebody can open, and how many messages it has.
CONVERSATION = """
    SELECT json_build_object('id', c.id, 'title', c.title, 'email', a.email,
                             'messages', (SELECT count(*) FROM messages m WHERE m.conversation_id = c.id))
    FROM conversations c JOIN accounts a ON a.id = c.account_id
    WHERE NOT a.disabled ORDER BY c.updated_at DESC LIMIT 1
"""
# Runs in the container: signs in as people do and reads the conversation. Prints what it got.
VISIT = """
import http.cookiejar, json, sys, urllib.request
given = json.load(sys.stdin)
web = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
def call(path, body=None, token=""):
    headers = {"Content-Type": "application/json", "X-CSRFToken": token, "Host": "127.0.0.1"}
    data = None if body is None else json.dumps(body).encode()
    with web.open(urllib.request.Request("http://127.0.0.1:8000/api/v1" + path, data, headers), timeout=30) as answer:
        return json.load(answer)
token = call("/session")["csrf_token"]
call("/session", {"email": given["email"], "password": given["password"]}, token)
found = call("/conversations/" + given["id"])
print(json.dumps({"title": found["title"], "messages": len(found["messages"])}))
"""


def run(settings: Settings, source: str = "") -> dict[str, Any]:
    """Restore the newest backup of a repository (the last one by default) and prove it; return the figures.

    Raises:
        Failure: when the backup could not be used. The metrics say so, too.
    """
    place = settings.repository(source or settings.repositories[-1].name)
    return told(settings, place.name, lambda: prove(settings, Repository(place, settings), time.time()))


def run_archive(settings: Settings) -> dict[str, Any]:
    """Prove that the archive brings the database to the present moment; return the figures.

    Raises:
        Failure: when it does not. The metrics say so, too.
    """
    return told(settings, ARCHIVE, lambda: point_in_time.prove(settings))


def told(settings: Settings, name: str, proof: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do a drill, and let the metrics know how it went."""
    try:
        figures = proof()
    except Failure as failure:
        publish_drill(settings, name, {"end": time.time(), "success": 0, "code": failure.code})
        raise
    end = time.time()
    publish_drill(settings, name, figures | {"end": end, "verified": end, "success": 1, "code": 0})
    return figures


def prove(settings: Settings, repository: Repository, begin: float) -> dict[str, Any]:
    """Do what the drill is."""
    known = catalogue.backups(repository.open_to_read())
    backup = catalogue.choose("latest", known, f"repository {repository.name}")
    manifest = read_manifest(repository, backup)
    figures: dict[str, Any] = {
        "backup": backup.name,
        "repository": repository.name,
        "rpo": round(begin - backup.begun.timestamp(), 1),
        "bytes": 0,
        "rows": 0,
        "conversation": "",
    }
    with scratch(manifest):
        check_uploads(settings, repository, backup, manifest)
        figures["uploads"] = len(manifest["files"]["uploads"]["sha256"])
        if manifest["database"]:
            with server(settings) as (scratch_server, password):
                name = settings.database or manifest["database"]["name"]
                fill(repository, backup, manifest, scratch_server, name, settings.database_owner)
                figures["bytes"] = manifest["database"]["dump_bytes"]
                figures["rows"] = sum(manifest["database"]["rows"].values())
                figures["conversation"] = visit(settings, scratch_server, name, password)
        figures["rto"] = round(time.time() - begin, 1)
    return figures


@contextmanager
def scratch(manifest: dict[str, Any]) -> Iterator[None]:
    """Provide the drill's directory, empty and with room; nothing of it is left afterwards.

    Raises:
        Failure: when there is no room.
    """
    clean()
    PLACE.mkdir(mode=0o711, exist_ok=True)
    PLACE.chmod(0o711)
    need = manifest["files"]["uploads"]["bytes"] + int((manifest["database"] or {"bytes": 0})["bytes"] * 1.5) + RESERVE
    free = shutil.disk_usage(PLACE).free
    if free < need:
        raise Failure(
            DISK_FULL,
            f"the drill needs {megabytes(need)} at {PLACE}, but the disk has only {megabytes(free)} free. Make room "
            "(df -h), or run the drill on another host.",
        )
    try:
        yield
    finally:
        clean()


def clean() -> None:
    """End and remove what a drill, also a killed one, has made."""
    if shutil.which("docker"):
        subprocess.run(["docker", "rm", "--force", CONTAINER], capture_output=True, check=False)
    SCRATCH.clean()


def check_uploads(settings: Settings, repository: Repository, backup: Backup, manifest: dict[str, Any]) -> None:
    """Restore the uploads where the application of the drill will see them, and compare them with the manifest."""
    if str(settings.uploads) not in manifest["files"]["paths"]:
        return
    repository.run(
        "restore", backup.parts["files"], "--target", str(PLACE / "files"), "--include", str(settings.uploads)
    )
    differences = compare_files(manifest["files"]["uploads"], PLACE / "files" / settings.uploads.relative_to("/"))
    if differences:
        raise Failure(
            NOT_AS_RECORDED,
            f"the uploads of backup {backup.name} are not what its manifest says: {named(differences)}.",
        )


@contextmanager
def server(settings: Settings) -> Iterator[tuple[Server, str]]:
    """Run a PostgreSQL for the drill alone; yield it and the password of the application's role in it."""
    SCRATCH.make()
    data = str(SCRATCH.data)
    SCRATCH.run("initdb", "--pgdata", data, "--encoding=UTF8", "--locale=C.UTF-8", "--auth=peer", "--no-sync")
    SCRATCH.write(
        "pg_hba.conf", f"local all postgres peer\nlocal all {quoted(settings.database_owner)} scram-sha-256\n"
    )
    SCRATCH.start("-c wal_level=minimal -c max_wal_senders=0")
    password = secrets.token_urlsafe(24)
    try:
        made = SCRATCH.server
        made.sql(f"CREATE ROLE {quoted(settings.database_owner)} LOGIN PASSWORD {literal(password)}")
        for role in roles_in_use(settings):
            made.sql(f"CREATE ROLE {quoted(role)}")
        yield made, password
    finally:
        SCRATCH.stop()


def roles_in_use(settings: Settings) -> list[str]:
    """Return the roles that site.yml has made on this host: on a rebuilt one they would be there as well."""
    try:
        listed = Server().sql("SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_'").splitlines()
    except Failure:
        return []  # the drill does not need this host's own server
    return [role for role in listed if role not in ("postgres", settings.database_owner)]


def docker(*arguments: str, text: str = "", seconds: float = 120) -> str:
    """Run docker; return its output.

    Raises:
        Failure: when it fails, with its words.
    """
    try:
        done = subprocess.run(
            ["docker", *arguments], input=text, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise Failure(
            OTHER, f"docker {arguments[0]} did not end in {seconds:.0f} s. See: systemctl status docker"
        ) from None
    if done.returncode:
        raise Failure(OTHER, f"docker {arguments[0]} failed: {first_line([done.stderr, done.stdout])}")
    return done.stdout


def visit(settings: Settings, scratch_server: Server, database: str, password: str) -> str:
    """Let the application serve the restored data, sign in and read a conversation; return what was read.

    On a host that runs no release there is no application to do it with: then the database alone is proven.

    Raises:
        Failure: when the application does not get ready, or shows something else than the database holds.
    """
    colour = load(settings.release_state).get("colour", "")
    if not colour or not shutil.which("docker"):
        log("this host runs no release: the database and the uploads are proven, the application was not started")
        return "none: this host runs no release"
    serving = json.loads(docker("inspect", f"chatbot-{colour}"))[0]
    options = container(settings, serving, database, password)
    try:
        # The backup may be older than the last release.
        docker("run", "--rm", *options, serving["Image"], "python", "-m", "chatbot", "migrate", seconds=600)
        docker("run", "--detach", *options, serving["Image"])
        wait_until_ready()
        found = scratch_server.sql(CONVERSATION, database)
        if not found:
            return "none: nobody has written one yet"
        expected = json.loads(found)
        secret = secrets.token_urlsafe(18)
        account = [
            CONTAINER,
            "python",
            "-m",
            "chatbot",
            "account",
            "set-password",
            expected["email"],
            "--password-file",
            "-",
        ]
        docker("exec", "--interactive", *account, text=secret)
        asked = json.dumps({"email": expected["email"], "password": secret, "id": expected["id"]})
        seen = json.loads(docker("exec", "--interactive", CONTAINER, "python", "-c", VISIT, text=asked))
    except Failure as failure:
        raise Failure(NOT_AS_RECORDED, f"the application does not work with the restored data: {failure}") from None
    if seen != {"title": expected["title"], "messages": expected["messages"]}:
        raise Failure(
            NOT_AS_RECORDED,
            f"the application shows {seen['messages']} messages of conversation {expected['id']}, the database holds "
            f"{expected['messages']}, or another title.",
        )
    return f"{expected['messages']} messages of conversation {expected['id']}"


def container(settings: Settings, serving: dict[str, Any], database: str, password: str) -> list[str]:
    """Return the options of a container like the one that serves, with the drill's data, no network and no Valkey."""
    environment = dict(entry.partition("=")[::2] for entry in serving["Config"]["Env"])
    for name in ("CHATBOT_VALKEY_URL", "CHATBOT_VALKEY_PASSWORD_FILE"):
        environment.pop(name, None)
    owner = serving["Config"]["User"] or "10001:10001"
    secret = PLACE / "database_password"
    secret.write_text(password)
    user, _, group = owner.partition(":")
    os.chown(secret, int(user), int(group or user))
    secret.chmod(0o400)
    environment |= {
        "CHATBOT_DATABASE_URL": f"postgresql+psycopg://{settings.database_owner}@/{database}?host={SOCKET}",
        "CHATBOT_DATABASE_PASSWORD_FILE": "/run/drill/database_password",
        "CHATBOT_WORKERS": "1",
    }
    data = PLACE / "files" / settings.uploads.parent.relative_to("/")
    data.mkdir(parents=True, exist_ok=True)
    os.chown(data, int(user), int(group or user))
    for directory in (PLACE / "files", *data.relative_to(PLACE / "files").parents):
        (PLACE / "files" / directory).chmod(0o711)
    mounts = [
        (SOCKET, SOCKET, "ro"),
        (secret, Path("/run/drill/database_password"), "ro"),
        (data, settings.uploads.parent, "rw"),
    ]
    # The application's other secrets are read where it reads them always: a key that was lost would be noticed here.
    taken = {str(target) for _, target, _ in mounts}
    mounts += [
        (Path(each["Source"]), Path(each["Destination"]), "ro")
        for each in serving["Mounts"]
        if each["Type"] == "bind" and each["Destination"] not in taken and "/secrets" in each["Destination"]
    ]
    environment_file = PLACE / "environment"
    environment_file.write_text("".join(f"{name}={value}\n" for name, value in environment.items()))
    environment_file.chmod(0o600)
    groups = serving["HostConfig"]["GroupAdd"] or []
    return [
        "--name", CONTAINER, "--network", "none", "--user", owner, "--init", "--read-only",
        "--tmpfs", "/tmp:rw,nosuid,nodev,noexec,size=64m,mode=1777", "--cap-drop", "ALL",  # noqa: S108 - the container's
        "--security-opt", "no-new-privileges", "--memory", str(serving["HostConfig"]["Memory"] or "1g"),
        "--pids-limit", "256", "--no-healthcheck", "--env-file", str(environment_file),
        *(word for group in groups for word in ("--group-add", group)),
        *(word for source, target, mode in mounts for word in ("--volume", f"{source}:{target}:{mode}")),
    ]  # fmt: skip


def wait_until_ready() -> None:
    """Wait for the application to say that it is ready.

    Raises:
        Failure: when it does not in time; the last lines of its log are in the message.
    """
    asking = "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/api/v1/ready', timeout=5)"
    end = time.monotonic() + READY_SECONDS
    while True:
        done = subprocess.run(
            ["docker", "exec", CONTAINER, "python", "-c", asking], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return
        if time.monotonic() > end:
            logged = subprocess.run(
                ["docker", "logs", "--tail", "3", CONTAINER],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            words = " / ".join(logged.stdout.strip().splitlines()) or done.stderr.strip()[-200:]
            raise Failure(OTHER, f"it was not ready after {READY_SECONDS} s; its last words: {words}")
        time.sleep(1)
