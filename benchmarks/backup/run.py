#!/usr/bin/env python3
"""What a backup and its restore cost, beside the same data dumped and restored by hand: medians and ratios.

    python benchmarks/backup/run.py <container> [--gigabytes 1] [--uploads 2000] [--rounds 3]

The container is a test host with the roles postgresql and backup (`molecule converge -s backup` leaves
`backup-debian13`); its database is filled and must not be needed. Every round takes a new repository, so that nothing
has been stored before. By hand means: `pg_dump | zstd` and `tar | zstd` into files, and out of them into a new database
and directory; no encryption, no deduplication, no checksums, no comparison. `backup again` is the second into the same
repository, of data that has not changed: what every night but the first costs, beside what a day has brought.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time

UPLOADS = "/var/lib/chatbot/uploads"
WORK = "/var/tmp/benchmark"  # noqa: S108 - a directory inside a test host
# Words of a language repeat and numbers do not: about half of each row can be compressed away.
ROW = "n, md5(n::text) || md5((n * 7)::text) || repeat('what was said before is said again, ', 8)"
POSTGRES = "cd / && runuser -u postgres --"
# Bytes of a row with what PostgreSQL adds, measured.
ROW_BYTES = 392


def on(container: str, script: str) -> float:
    """Run a script on the host and return its duration in seconds.

    Raises:
        RuntimeError: with what it said, when it fails.
    """
    begin = time.monotonic()
    done = subprocess.run(
        ["docker", "exec", "-i", container, "bash", "-eu", "-o", "pipefail"],
        input=script, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{script}\n{done.stderr[-2000:]}")
    return time.monotonic() - begin


def fill(container: str, gigabytes: float, uploads: int) -> None:
    """Make the data: one large table, and files of 100 kB that cannot be compressed."""
    rows = int(gigabytes * 2**30 / ROW_BYTES)
    on(container, f"apt-get -qq install -y zstd >/dev/null; rm -rf {WORK}; mkdir -p {WORK}")
    on(container, f"{POSTGRES} psql -Xq chatbot -c 'DROP TABLE IF EXISTS benchmark'")
    statement = f"CREATE TABLE benchmark AS SELECT {ROW} AS text FROM generate_series(1, {rows}) n"  # noqa: S608 - our own words
    on(container, f'{POSTGRES} psql -Xq chatbot -c "{statement}"')
    on(container, f"{POSTGRES} psql -Xq chatbot -c 'ALTER TABLE benchmark OWNER TO chatbot; CHECKPOINT'")
    on(
        container,
        f"mkdir -p {UPLOADS}; cd {UPLOADS}; for n in $(seq {uploads}); do head -c 100k /dev/urandom > b$n; done",
    )


def settings(container: str) -> str:
    """Give the program one repository of its own; return the prefix that makes it read that."""
    read = subprocess.run(
        ["docker", "exec", container, "cat", "/etc/chatbot-backup/settings.json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    known = json.loads(read.stdout)
    place = {"name": "benchmark", "repository": f"{WORK}/repository", "password": "benchmark-0123456789"}
    text = json.dumps(known | {"repositories": [place]})
    on(container, f"umask 077; cat > {WORK}/settings.json <<'EOF'\n{text}\nEOF")
    return f"CHATBOT_BACKUP_SETTINGS={WORK}/settings.json chatbot-backup"


def measure(container: str) -> dict[str, float]:
    """Measure each way once."""
    program = settings(container)
    tidy = POSTGRES + " psql -XAtl | cut -d'|' -f1 | grep '^chatbot_' || true"
    drop = f"for name in $({tidy}); do (cd / && runuser -u postgres -- dropdb $name); done; rm -rf {UPLOADS}.*"
    on(container, f"{drop}; rm -rf {WORK}/repository {WORK}/hand; mkdir {WORK}/hand; {program} init; sync")
    found = {}
    found["backup"] = on(container, f"{program} run; sync")
    found["backup again"] = on(container, f"{program} run; sync")
    found["backup by hand"] = on(
        container,
        f"{POSTGRES} pg_dump --format=custom --compress=0 chatbot | zstd -q -o {WORK}/hand/database.zst;"
        f" tar -C {UPLOADS} -c . | zstd -q -o {WORK}/hand/uploads.zst; sync",
    )
    found["restore"] = on(container, f"{program} restore; sync")
    on(container, drop)
    found["restore by hand"] = on(
        container,
        f"({POSTGRES} createdb chatbot_by_hand); zstd -qdc {WORK}/hand/database.zst"
        f" | ({POSTGRES} pg_restore --exit-on-error -d chatbot_by_hand);"
        f" mkdir {WORK}/hand/uploads; zstd -qdc {WORK}/hand/uploads.zst | tar -C {WORK}/hand/uploads -x; sync",
    )
    on(container, drop)
    return found


def main() -> int:
    """Fill, measure, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("container")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--uploads", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    fill(arguments.container, arguments.gigabytes, arguments.uploads)
    rounds = []
    for number in range(arguments.rounds):
        rounds.append(measure(arguments.container))
        print(f"round {number + 1}: " + ", ".join(f"{name} {value:.1f} s" for name, value in rounds[-1].items()))
    median = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    for what, by_hand in (("backup", "backup"), ("backup again", "backup"), ("restore", "restore")):
        hand = median[f"{by_hand} by hand"]
        print(f"{what}: {median[what]:.1f} s, by hand {hand:.1f} s, ratio {median[what] / hand:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
