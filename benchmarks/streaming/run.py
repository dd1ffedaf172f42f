"""Compare the chat with the design it replaces, and print one table. See README.md."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
APP = HERE.parent.parent / "app"
sys.path[:0] = [str(APP), str(APP / "tests")]

from chatbot import accounts  # noqa: E402 - found through the path above
from chatbot.database import CONVERSATIONS, MESSAGES, Database, now  # noqa: E402
from chatbot.migrate import migrate  # noqa: E402
from chatbot.settings import Settings, load_settings  # noqa: E402
from postgresql_server import start_postgresql  # noqa: E402
from sqlalchemy import insert  # noqa: E402
from support import answers, environment, eventually, free_port, process  # noqa: E402
from valkey_server import PASSWORD, start_valkey  # noqa: E402

# As many answers at once as an account may have by default; that many accounts there are.
STREAMS_PER_ACCOUNT = 5
CPU_TICKS = os.sysconf("SC_CLK_TCK")
WORKERS = 2
# So many streams a server has served before the burst.
WARM_UP = 10
# What was said before the question: ten questions, and ten answers like those of `upstream.py`.
HISTORY = [("user", "What makes the tides higher when the moon is new? " * 2), ("assistant", "12345678 " * 100)] * 10
QUESTION = "How do tides work?"
COLUMNS = (
    "streams",
    "server",
    "completed",
    "first token p50 / p95, ms",
    "jitter p95, ms",
    "CPU per token, µs",
    "of PostgreSQL, µs",
    "memory, MB",
)


@dataclass
class Server:
    """What serves the streams: its port, its processes, and what each of those has cost.

    Its streams are paths to ask, each once and with the API token beside it, where it wants one.
    """

    port: int
    processes: dict[str, int]
    streams: list[tuple[str, str | None]]
    body: dict[str, Any] = field(default_factory=lambda: {"content": QUESTION})

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time of each program with all its children."""
        return {name: sum(map(cpu_seconds, family(pid))) for name, pid in self.processes.items()}

    def memory(self) -> float:
        """Memory in MB: the share of each process in what it uses (PSS); the database's does not count."""
        counted = [pid for name, root in self.processes.items() if name != "postgresql" for pid in family(root)]
        return sum(map(proportional_memory, counted))


def family(pid: int) -> list[int]:
    """A process and everything that it has started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += family(int(child))
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, and of its children that have ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended a moment ago
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / CPU_TICKS
    return 0.0


def proportional_memory(pid: int) -> float:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended a moment ago
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))
    return 0.0


@contextlib.contextmanager
def chatbot(model_url: str, streams: int) -> Iterator[Server]:
    """This repository's application, with its database and Valkey, and accounts enough for the streams."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        postgresql = stack.enter_context(start_postgresql())
        valkey = stack.enter_context(start_valkey())
        if postgresql is None or valkey is None:
            raise SystemExit("this needs the servers of PostgreSQL and of Valkey or Redis")
        variables = (
            os.environ
            | environment(
                model_url,
                postgresql,
                valkey_url=valkey.url,
                valkey_password=PASSWORD,
                workers=str(WORKERS),
                bind=f"127.0.0.1:{port}",
                rate_limit="1000000 per minute",
                rate_limit_address="1000000 per minute",
                answers_per_account=str(STREAMS_PER_ACCOUNT),
            )
            | {"PROMETHEUS_MULTIPROC_DIR": str(directory)}
        )
        migrate(load_settings(variables))
        conversations = make_conversations(load_settings(variables), streams)
        log = stack.enter_context((directory / "log").open("w"))
        command = [sys.executable, "-m", "gunicorn"]
        child = stack.enter_context(process(*command, cwd=APP, env=variables, stdout=log, stderr=log))
        eventually(lambda: answers(f"http://127.0.0.1:{port}"), 60)
        database = int((Path(postgresql.rpartition("=")[2]) / "data/postmaster.pid").read_text().split()[0])
        processes = {"app": child.pid, "valkey": valkey.pid, "postgresql": database}
        yield Server(
            port, processes, [(f"/api/v1/conversations/{key}/messages", token) for key, token in conversations]
        )


def make_conversations(settings: Settings, count: int) -> list[tuple[uuid.UUID, str]]:
    """So many conversations, of accounts enough for all to be answered at once; each with its account's API token."""
    database = Database(settings)
    with database.session() as session:
        made = [
            accounts.create(session, f"{number}@localhost") for number in range(math.ceil(count / STREAMS_PER_ACCOUNT))
        ]
        tokens = [accounts.issue_token(session, account.id, "benchmark", ["chat"])[1] for account in made]
    conversations = [
        {"id": uuid.uuid4(), "account_id": made[number % len(made)].id, "title": "Tides"} for number in range(count)
    ]
    begun = now() - timedelta(days=1)
    messages = [
        {
            "id": uuid.UUID(int=conversation["id"].int ^ number + 1),
            "conversation_id": conversation["id"],
            "parent_id": uuid.UUID(int=conversation["id"].int ^ number) if number else None,
            "role": role,
            "status": "complete",
            "content": content,
            "model": "benchmark" if role == "assistant" else None,
            "created_at": begun + timedelta(seconds=number),
        }
        for conversation in conversations
        for number, (role, content) in enumerate(HISTORY)
    ]
    with database.engine.begin() as connection:
        connection.execute(insert(CONVERSATIONS), conversations)
        connection.execute(insert(MESSAGES), messages)
    database.engine.dispose()
    return [(conversation["id"], tokens[number % len(tokens)]) for number, conversation in enumerate(conversations)]


@contextlib.contextmanager
def comparison(model_url: str, streams: int, *, loop: str = "asyncio", http: str = "h11") -> Iterator[Server]:
    """FastAPI, uvicorn and the library's objects; `pip install fastapi uvicorn` brings asyncio and h11."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "comparison:app", "--port", str(port), "--workers", str(WORKERS)]
    options = ["--log-level", "error", "--backlog", "4096", "--loop", loop, "--http", http]
    with process(*command, *options, cwd=HERE, env=os.environ | {"MODEL_URL": model_url}) as child:
        eventually(lambda: answers(f"http://127.0.0.1:{port}"), 60)
        said = [*HISTORY, ("user", QUESTION)]
        body = {"messages": [{"role": role, "content": content} for role, content in said]}
        yield Server(port, {"app": child.pid}, [("/api/v1/messages", None)] * streams, body)


SERVERS = {
    "chatbot": chatbot,
    "comparison": comparison,
    "comparison, uvloop": functools.partial(comparison, loop="uvloop", http="httptools"),
}


@contextlib.contextmanager
def readers(server: Server, which: slice) -> Iterator[subprocess.Popen[str]]:
    """The readers, ready to ask."""
    command = (sys.executable, "client.py", str(server.port))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with process(*command, cwd=HERE, **pipes) as client:
        print(json.dumps({"streams": server.streams[which], "body": server.body}), file=client.stdin, flush=True)
        client.stdout.readline()
        yield client


def ask(client: subprocess.Popen[str]) -> dict[str, float]:
    """Let the readers ask; what arrived."""
    print("go", file=client.stdin, flush=True)
    return json.loads(client.stdout.readline())


def measure(serve: Callable[[str, int], contextlib.AbstractContextManager[Server]], streams: int) -> dict[str, float]:
    """One fresh server, a few streams to make it warm, and one burst of streams."""
    model_port = free_port()
    with (
        process(sys.executable, "upstream.py", str(model_port), cwd=HERE),
        serve(f"http://127.0.0.1:{model_port}/v1", WARM_UP + streams) as server,
    ):
        with readers(server, slice(WARM_UP)) as client:
            ask(client)
        with readers(server, slice(WARM_UP, None)) as client:
            time.sleep(1)
            return watched(server, client)


def watched(server: Server, client: subprocess.Popen[str]) -> dict[str, float]:
    """The burst, and what it cost."""
    before, peak, over = server.cpu_seconds(), [server.memory()], threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            peak.append(server.memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = ask(client)
    over.set()
    watcher.join()
    after = server.cpu_seconds()
    per_token = {name: (after[name] - before[name]) / max(result["tokens"], 1) * 1e6 for name in after}
    database = per_token.pop("postgresql", 0.0)
    return result | {"cpu": sum(per_token.values()), "database": database, "memory": max(peak)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("streams", nargs="*", type=int, default=[50, 200, 500, 1000])
    arguments = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    for streams in arguments.streams:
        for name, serve in SERVERS.items():
            found = measure(serve, streams)
            times = f"{found['first_p50'] * 1000:.0f} / {found['first_p95'] * 1000:.0f}"
            cells = [
                str(streams),
                name,
                f"{found['complete']}/{streams}",
                times,
                f"{found['jitter_p95'] * 1000:.0f}",
                f"{found['cpu']:.0f}",
                f"{found['database']:.0f}",
                f"{found['memory']:.0f}",
            ]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
