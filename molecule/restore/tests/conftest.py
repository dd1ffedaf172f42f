"""What the tests of whole restores share: the administrator as a client, and what the live data is."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testbed import helpers
from testbed.chat import ChatClient
from testbed.docker import execute
from testbed.verify import eventually

HOST, OBJECTS = "restore-vps", "restore-objects"
DOMAIN = "chat.localhost"
ADMINISTRATOR = ("operator@example.test", "testbed-admin-0123456789abcdef")
# Every table of the application, row by row, and every upload.
CHECKSUMS = r"""
cd /
tables="SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
for table in $(runuser -u postgres -- psql -XAtq chatbot -c "$tables"); do
  runuser -u postgres -- psql -XAtq chatbot -c \
    "SELECT '$table', count(*), md5(coalesce(string_agg(md5(t::text), '' ORDER BY md5(t::text)), '')) FROM $table t"
done
cd /var/lib/chatbot && find uploads -type f | sort | xargs -r sha256sum
"""


def address() -> str:
    """The address at which the chat's host is reached."""
    return execute(HOST, "hostname -i").split()[0]


def data() -> str:
    """The live data, in checksums."""
    return execute(HOST, CHECKSUMS, 1500)


def settings(**changes: Any) -> str:
    """Copy the backup's settings on the host with some changed; return the prefix that makes the program read the copy.

    With `only`, the copy has that repository alone.
    """
    known = json.loads(execute(HOST, "cat /etc/chatbot-backup/settings.json"))
    if only := changes.pop("only", ""):
        known["repositories"] = [place for place in known["repositories"] if place["name"] == only]
    text = json.dumps(known | changes)
    execute(HOST, f"umask 077; cat > /root/settings.json <<'EOF'\n{text}\nEOF")
    return "CHATBOT_BACKUP_SETTINGS=/root/settings.json"


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of the ACME authority, the only one that the client trusts."""
    path = tmp_path_factory.mktemp("authority") / "root.pem"
    path.write_text(helpers.issuing_root())
    return path


@pytest.fixture
def administrator(authority: Path) -> ChatClient:
    """The administrator, on another machine, who signs in anew."""
    ChatClient._sessions.clear()
    return ChatClient(DOMAIN, address=address(), authority=authority, account=ADMINISTRATOR)


class Looking:
    """Somebody who looks at the page all the time; `seen` has each status once it has changed."""

    def __init__(self, client: ChatClient) -> None:
        self.client = client
        self.seen: list[int | str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def now(self) -> int | str:
        """The status of one look."""
        try:
            return self.client.call("GET", "/")[0]
        except OSError as error:
            return str(error)

    def _look(self) -> None:
        while not self._over.wait(0.2):
            if (status := self.now()) not in self.seen[-1:]:
                self.seen.append(status)

    def __enter__(self) -> Looking:
        self._thread.start()
        eventually(lambda: self.seen)
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(1)
        self._over.set()
        self._thread.join(30)


@pytest.fixture
def looking(authority: Path) -> Looking:
    """Somebody without an account, on another machine."""
    return Looking(ChatClient(DOMAIN, address=address(), authority=authority))


@pytest.fixture
def untouched() -> Iterator[None]:
    """Whatever a test does: the live data is the same after it."""
    before = data()
    yield
    assert data() == before
