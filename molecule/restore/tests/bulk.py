"""As much data as the one who runs the scenario asks for, and how long it took to have it back.

TEST_RESTORE_GIGABYTES and TEST_RESTORE_UPLOADS say how much of it, beside the chat that is always there:

    TEST_RESTORE_GIGABYTES=1 TEST_RESTORE_UPLOADS=2000 tools/test restore
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from conftest import HOST, execute
from testbed.verify import REPOSITORY

GIGABYTES = float(os.environ.get("TEST_RESTORE_GIGABYTES") or 0)
UPLOADS = int(os.environ.get("TEST_RESTORE_UPLOADS") or 0)
# Bytes of a message below on PostgreSQL's disk, indexes not counted. zstd keeps a bit more than a third of it, as of
# a chat; and they are so short that PostgreSQL compresses none.
MESSAGE_BYTES = 1330
MESSAGES = """
-- Yesterday's: a drill reads the newest conversation, which is the test's own.
INSERT INTO conversations (id, account_id, title, created_at, updated_at)
SELECT gen_random_uuid(), (SELECT id FROM accounts ORDER BY created_at LIMIT 1), 'Bulk', now(), now() - interval '1 day'
FROM generate_series(1, :count / 100 + 1);

WITH bulk AS (SELECT id, row_number() OVER () AS number FROM conversations WHERE title = 'Bulk')
INSERT INTO messages (id, conversation_id, role, status, content, created_at, updated_at)
SELECT gen_random_uuid(), bulk.id, CASE n % 2 WHEN 1 THEN 'user' ELSE 'assistant' END, 'complete',
    (SELECT string_agg(md5(n || '-' || k), ' ') FROM generate_series(1, 24) k) || repeat(' and so it goes on', 20),
    now() + n * interval '1 ms', now()
FROM generate_series(1, :count) n JOIN bulk ON bulk.number = (n - 1) / 100 + 1;

ANALYZE;
"""
# Seconds for one step with a gigabyte.
PATIENCE = 1500
TIMES = REPOSITORY / ".cache/logs/restore-times.txt"


def fill() -> None:
    """Add conversations of the first account, and files of 100 kB that cannot be compressed."""
    if GIGABYTES:
        sql(MESSAGES, count=int(GIGABYTES * 2**30 / MESSAGE_BYTES))
    if UPLOADS:
        execute(
            HOST,
            f"cd /var/lib/chatbot/uploads; for n in $(seq {UPLOADS}); do head -c 100k /dev/urandom > bulk-$n; done;"
            " chown chatbot:chatbot bulk-*",
        )


def sql(statements: str, count: int = 0) -> str:
    """Run SQL on the chat's database as PostgreSQL's administrator; `count` is `:count` in it."""
    psql = f"psql -XAtq -v ON_ERROR_STOP=1 -v count={count} chatbot"
    return execute(HOST, f"cd / && runuser -u postgres -- {psql} <<'EOF'\n{statements}\nEOF", PATIENCE)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Write down how long something took, in seconds."""
    begin = time.monotonic()
    yield
    with TIMES.open("a") as times:
        times.write(f"{time.monotonic() - begin:8.1f} s  {what}\n")
