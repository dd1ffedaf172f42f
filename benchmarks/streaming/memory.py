"""What the application's memory does over many messages: `python memory.py [messages]`, 10,000 by default.

One server of two workers, twenty readers who ask one question after the other, each in a conversation of twenty
questions. Prints the memory of the application (the sum of its processes' proportional shares, PSS) and of Valkey at
the start, after every tenth of the messages, and half a minute after the last. See README.md.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent / "app"), str(HERE.parent.parent / "app/tests")]

from fake_openai import FakeOpenAI  # noqa: E402 - found through the path above
from run import Server, chatbot, family, proportional_memory  # noqa: E402

READERS, QUESTIONS_EACH = 20, 20
PIECES = ["The tides follow the moon. " * 4] * 10


class Readers:
    """Twenty threads that share a number of questions."""

    def __init__(self, server: Server, messages: int) -> None:
        self._server, self._left, self._lock = server, messages, threading.Lock()
        self.answered = self.failed = 0

    def run(self, token: str) -> None:
        """Ask until no question is left."""
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=60)
            connection.request("POST", "/api/v1/conversations", "{}", headers)
            path = f"/api/v1/conversations/{json.loads(connection.getresponse().read())['id']}/messages"
            for _ in range(QUESTIONS_EACH):
                with self._lock:
                    if self._left == 0:
                        return
                    self._left -= 1
                connection.request("POST", path, json.dumps({"content": "How do tides work?"}), headers)
                good = b"event: done" in connection.getresponse().read()
                with self._lock:
                    self.answered += good
                    self.failed += not good
            connection.close()


def memory(server: Server) -> str:
    """The application's and Valkey's memory, in MB."""
    shares = {
        name: sum(map(proportional_memory, family(pid)))
        for name, pid in server.processes.items()
        if name != "postgresql"
    }
    return " | ".join(f"{share:.0f}" for share in shares.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("messages", nargs="?", type=int, default=10_000)
    messages = parser.parse_args().messages
    with FakeOpenAI() as model, chatbot(model.url, READERS) as server:
        model.pieces = PIECES
        time.sleep(3)
        print("| messages | application, MB | Valkey, MB |\n|---|---|---|")
        print(f"| 0 | {memory(server)} |", flush=True)
        readers = Readers(server, messages)
        threads = [threading.Thread(target=readers.run, args=(token,), daemon=True) for _, token in server.streams]
        for thread in threads:
            thread.start()
        shown = 0
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.5)
            if readers.answered - shown >= messages // 10:
                shown = readers.answered
                print(f"| {shown} | {memory(server)} |", flush=True)
        time.sleep(30)
        print(f"| {readers.answered}, and half a minute later | {memory(server)} |")
        if readers.failed:
            sys.exit(f"{readers.failed} answers did not come to their end")


if __name__ == "__main__":
    main()
