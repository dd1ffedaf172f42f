"""A new major version of PostgreSQL: a cluster beside the one in use, filled, compared, and only then at its port.

Nobody can write to the old cluster while this happens: every table is locked by a transaction that ends with this
program, or with the old server. So nothing is lost between the dump and the swap, and nothing has to be put back after
a crash before it. The old cluster stays as it was, stopped.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chatbot_backup.common import (
    DISK_FULL,
    DUMP_FAILED,
    NO_BACKUP,
    NOT_AS_RECORDED,
    OTHER,
    STATE,
    USAGE,
    Failure,
    first_line,
    load,
    log,
    megabytes,
    replace,
)
from chatbot_backup.database import TABLES, Moment, Server, program, said
from chatbot_backup.database import copy as copy_database
from chatbot_backup.manifest import compare_tables, named

RECORDS = STATE / "upgrades"
PROGRAMS = Path("/usr/lib/postgresql")
# Where the application, the exporter and the backup look for the database.
PORT = 5432
# The clusters that a cut or undone upgrade has left have this file beside their configuration.
MARK = "chatbot-upgrade"
# Settings in files of this repository: the role's own, and those of the archive, which the new cluster gets as well.
SETTINGS, ARCHIVE = "chatbot.conf", "chatbot-archive.conf"
# Room beside the calculated need, in bytes.
RESERVE = 256 << 20
# Objects of users have at least this number, those of an empty cluster have smaller ones.
FIRST_OF_USERS = 16384
# Both servers shall write a value in the same words.
SAME_WORDS = "SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; SET timezone = 'UTC'; SET bytea_output = 'hex'; "
# The first 60 bits of each row's SHA-256, added up: a row that is missing, doubled or changed changes the sum.
CHECKSUM = """
    SELECT coalesce(sum(('x' || left(encode(sha256(convert_to("-row-"::text, 'UTF8')), 'hex'), 15))::bit(60)::bigint),
        0) FROM ONLY """
ROLES = """
    SELECT rolname, md5(concat_ws(',', rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication,
        rolbypassrls, rolconnlimit, rolpassword, rolvaliduntil, (SELECT string_agg(roleid::regrole::text, ','
            ORDER BY roleid::regrole::text) FROM pg_auth_members WHERE member = pg_authid.oid)))
    FROM pg_authid WHERE rolname !~ '^pg_' ORDER BY 1
"""
SEQUENCES = "SELECT format('%I.%I', schemaname, sequencename), coalesce(last_value, 0) FROM pg_sequences"
# The settings that somebody has made with ALTER SYSTEM, which are in no file that Ansible knows.
ALTERED = "SELECT DISTINCT name FROM pg_file_settings WHERE sourcefile LIKE '%postgresql.auto.conf' ORDER BY 1"


@dataclass(frozen=True)
class Cluster:
    """A cluster as postgresql-common knows it."""

    version: int
    name: str
    port: int
    running: bool
    data: str
    configuration: str

    @property
    def unit(self) -> str:
        """Return systemd's name of it."""
        return f"postgresql@{self.version}-{self.name}.service"

    @property
    def words(self) -> tuple[str, str]:
        """Return what postgresql-common's programs call it."""
        return str(self.version), self.name

    def __str__(self) -> str:
        return f"{self.version}/{self.name}"


def tool(*words: str) -> str:
    """Run a program to its end; return what it printed.

    Raises:
        Failure: when it fails, with its words.
    """
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/")
    if done.returncode:
        raise Failure(OTHER, f"{' '.join(words)} failed: {first_line([done.stderr, done.stdout])}")
    return done.stdout


def clusters() -> list[Cluster]:
    """Return the clusters of this host."""
    return [
        Cluster(
            int(one["version"]),
            one["cluster"],
            int(one["port"]),
            bool(int(one["running"])),
            one["pgdata"],
            one["configdir"],
        )
        for one in json.loads(tool("pg_lsclusters", "--json"))
    ]


def find(version: int, name: str) -> Cluster | None:
    """Return one cluster, if it is there."""
    return next((one for one in clusters() if (one.version, one.name) == (version, name)), None)


def in_use() -> Cluster:
    """Return the cluster at the port where the application looks.

    Raises:
        Failure: when there is none, or it does not run.
    """
    found = [one for one in clusters() if one.port == PORT]
    if len(found) != 1 or not found[0].running:
        raise Failure(
            OTHER,
            f"no PostgreSQL cluster runs at port {PORT}; nothing was changed. pg_lsclusters shows them all; start the "
            "right one with: systemctl start postgresql@<version>-<cluster>",
        )
    return found[0]


# --- Before: can it be done? -----------------------------------------------------------------------------------------


def databases(server: Server) -> dict[str, int]:
    """Return the databases that are taken along, with their sizes in bytes."""
    listed = server.sql(
        "SELECT datname, pg_database_size(oid) FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1"
    )
    return {name: int(size) for name, size in (line.rsplit("|", 1) for line in listed.splitlines())}


def is_empty(cluster: Cluster) -> bool:
    """Tell whether a cluster has nothing but what initdb puts into it, whether or not it runs."""
    base = Path(cluster.data, "base")
    names = [path.name for path in [*base.iterdir(), *base.glob("*/*")]]
    return all(int(name.partition("_")[0].partition(".")[0]) < FIRST_OF_USERS for name in names if name[0].isdigit())


def check_place(old: Cluster, version: int) -> None:
    """Refuse where something is in the new cluster's place that is neither empty nor left over from a try."""
    there = find(version, old.name)
    if there and not Path(there.configuration, MARK).exists() and not is_empty(there):
        raise Failure(
            USAGE,
            f"there is a cluster {there} already, with data in it; nothing was changed. See it (port {there.port}), "
            f"then set it aside: pg_renamecluster {there.version} {there.name} kept",
        )


def plan(version: int) -> dict[str, Any]:
    """See that the cluster in use can be brought to a major version. Changes nothing.

    Raises:
        Failure: when it cannot.
    """
    last = last_record()
    if last and last["state"] == "swapping":
        raise Failure(
            USAGE,
            f"the upgrade of {last['stamp']} was cut in the middle of its swap. Put the old cluster back first: "
            "playbooks/postgresql_upgrade_undo.yml",
        )
    old, server = in_use(), Server()
    about: dict[str, Any] = {"from": old.version, "to": version, "cluster": old.name, "needed": old.version < version}
    if not about["needed"]:
        return about
    check_place(old, version)
    if spaces := server.sql("SELECT spcname FROM pg_tablespace WHERE spcname !~ '^pg_'").splitlines():
        raise Failure(USAGE, f"tablespaces ({named(spaces)}) are not taken along; move their tables back first.")
    found = databases(server)
    need = int(sum(found.values()) * 1.5) + RESERVE
    place = next(path for path in Path(old.data).parents if path.name == "postgresql" or path == Path("/"))
    if (free := shutil.disk_usage(place).free) < need:
        raise Failure(
            DISK_FULL,
            f"the new cluster needs {megabytes(need)} at {place}, but the disk has only {megabytes(free)} free; "
            "nothing was changed. Make room (df -h), for example by dropping old …_before_… databases.",
        )
    closed = server.sql("SELECT datname FROM pg_database WHERE NOT datallowconn AND NOT datistemplate").splitlines()
    files = [each.name for each in Path(old.configuration, "conf.d").glob("*.conf")]
    files = [name for name in files if name not in (SETTINGS, ARCHIVE)]
    return about | {
        "databases": found,
        "left": closed,
        "settings": server.sql(ALTERED).splitlines() + files,
    }


# --- The new cluster -------------------------------------------------------------------------------------------------


def prepare(version: int) -> dict[str, Any]:
    """Make the new cluster, stopped, for the role to configure; an empty or left over one goes first.

    Raises:
        Failure: when that is not possible. The cluster in use is not touched.
    """
    old = in_use()
    check_place(old, version)
    discard(version, old.name)
    locale = ("--encoding", "UTF8", "--locale", "C.UTF-8")
    tool("pg_createcluster", *locale, "--start-conf", "manual", str(version), old.name)
    new = find(version, old.name)
    if new is None:
        raise Failure(OTHER, f"pg_createcluster has made no cluster {version}/{old.name}.")
    Path(new.configuration, MARK).write_text("Made by an upgrade that has not come to its end yet.\n")
    archives = Path(old.configuration, "conf.d", ARCHIVE)
    if archives.exists():
        # So that it need not be started twice. Its segments wait until the archive has been told of the cluster.
        shutil.copy(archives, Path(new.configuration, "conf.d", ARCHIVE))
    # As pg_lsclusters writes it: the role's tasks take it for the one that they manage.
    return next(
        one
        for one in json.loads(tool("pg_lsclusters", "--json"))
        if (int(one["version"]), one["cluster"]) == (version, old.name)
    )


def discard(version: int, name: str) -> None:
    """Drop the cluster in the new one's place, if there is one; `check_place` has looked at it."""
    there = find(version, name)
    if there:
        stop(there)
        tool("pg_dropcluster", *there.words)


def stop(cluster: Cluster) -> None:
    """Stop a server, whoever has started it, if it runs."""
    tool("systemctl", "stop", cluster.unit)
    if cluster.running and (now := find(cluster.version, cluster.name)) and now.running:
        tool("pg_ctlcluster", "--skip-systemctl-redirect", *cluster.words, "stop", "-m", "fast")


@contextmanager
def aside(cluster: Cluster) -> Iterator[Server]:
    """Run the new cluster for as long as the block takes, over its socket only and outside systemd's care.

    It archives nothing: whoever wants its data has the old cluster's until the swap.
    """
    options = "-c listen_addresses='' -c autovacuum=off -c archive_mode=off"
    tool("pg_ctlcluster", "--skip-systemctl-redirect", *cluster.words, "start", "-o", options)
    try:
        yield Server(port=cluster.port)
    finally:
        tool("pg_ctlcluster", "--skip-systemctl-redirect", *cluster.words, "stop", "-m", "fast")


# --- Copying and comparing -------------------------------------------------------------------------------------------


def copy_roles(old: Server, new: Server, programs: Path) -> None:
    """Make the old cluster's roles in the new one, with their passwords and memberships.

    Raises:
        Failure: when one cannot be made, or is not the same there.
    """
    with program(
        [str(programs / "pg_dumpall"), "--roles-only", *old.options()], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as (dumping, errors):
        output, _ = dumping.communicate()
        if dumping.returncode:
            raise Failure(DUMP_FAILED, f"pg_dumpall failed: {said(errors)}")
    # The administrator is there already.
    new.sql(output.decode().replace("\nCREATE ROLE postgres;\n", "\n"))
    before, after = old.sql(ROLES).splitlines(), new.sql(ROLES).splitlines()
    if before != after:
        names = sorted({line.partition("|")[0] for line in set(before) ^ set(after)})
        raise Failure(NOT_AS_RECORDED, f"these roles are not the same in the new cluster: {named(names)}.")


def checksums(server: Server, database: str, tables: list[str]) -> dict[str, str]:
    """Return a checksum of every table's rows, in whatever order they lie."""
    asked = [CHECKSUM + table + ' AS "-row-"' for table in tables]
    return dict(zip(tables, server.sql(SAME_WORDS + ";\n".join(asked), database).splitlines(), strict=True))


def sequences(server: Server, database: str) -> dict[str, int]:
    """Return the last value of every sequence."""
    return {
        name: int(value)
        for name, value in (line.rsplit("|", 1) for line in server.sql(SEQUENCES, database).splitlines())
    }


def compare(moment: Moment, new: Server, known: dict[str, int]) -> None:
    """See that a database is the same in the new cluster: tables, numbers of rows, their contents, sequences.

    Args:
        moment: the database in the old cluster, with its tables locked.
        new: the new server.
        known: the last values of the sequences before the dump; a waiting writer may have advanced them since.

    Raises:
        Failure: when it is not.
    """
    name, tables = moment.database, list(moment.rows)
    if moment.server.sql(TABLES, name).splitlines() != tables:
        raise Failure(NOT_AS_RECORDED, f"somebody has made or dropped tables in {name} meanwhile. Run it again.")
    differences = compare_tables(moment.rows, new.rows(name))
    if not differences:
        before, after = checksums(moment.server, name, tables), checksums(new, name, tables)
        differences = [f"table {table} has another content" for table in tables if before[table] != after[table]]
        there = sequences(new, name)
        differences += [
            f"sequence {one} is at {there.get(one)} instead of {value}"
            for one, value in known.items()
            if there.get(one, -1) < value
        ]
    if differences:
        raise Failure(NOT_AS_RECORDED, f"{name} is not the same in the new cluster: {named(differences)}.")


# --- The swap --------------------------------------------------------------------------------------------------------


def set_start(cluster: Cluster, word: str) -> None:
    """Say whether a cluster starts at boot (auto) or at no time (disabled)."""
    file = Path(cluster.configuration, "start.conf")
    file.write_text(re.sub(r"(?m)^(auto|manual|disabled)[ \t]*$", word, file.read_text()))
    tool("systemctl", "disable" if word == "disabled" else "enable", "--quiet", cluster.unit)


def serve(cluster: Cluster, instead_of: Cluster, port: int) -> None:
    """Let one cluster take the application's port from another, which gets `port` and stays stopped.

    Raises:
        Failure: when it does not come up there.
    """
    stop(instead_of)
    set_start(instead_of, "disabled")
    tool("pg_conftool", *instead_of.words, "set", "port", str(port))
    tool("pg_conftool", *cluster.words, "set", "port", str(PORT))
    set_start(cluster, "auto")
    tool("systemctl", "daemon-reload")
    tool("systemctl", "restart", cluster.unit)
    end = time.monotonic() + 60
    while True:
        try:
            found = Server().version()
            break
        except Failure:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)
    if found != cluster.version:
        raise Failure(OTHER, f"PostgreSQL {found} answers at port {PORT} instead of {cluster.version}.")


def swap(old: Cluster, new: Cluster, stamp: str, about: dict[str, Any]) -> None:
    """Let the new cluster take the old one's place; when it does not come up, the old one is put back.

    Raises:
        Failure: when it did not come up. The old cluster serves again then.
    """
    write_record(about | {"state": "swapping", "stamp": stamp, "old": asdict(old), "new": asdict(new)})
    try:
        serve(new, old, new.port)
    except BaseException as reason:
        log(f"chatbot-backup: {new} did not come up; {old} is put back")
        serve(old, new, new.port)
        write_record(load(RECORDS / f"{stamp}.json") | {"state": "failed"})
        raise Failure(OTHER, f"the new cluster did not come up at port {PORT}: {reason}") from reason
    Path(new.configuration, MARK).unlink()
    write_record(load(RECORDS / f"{stamp}.json") | {"state": "done"})


def run(version: int) -> dict[str, Any]:
    """Fill the prepared cluster from the one in use, compare the two, and swap. Returns what was done.

    Raises:
        Failure: when something is not the same. The cluster in use has not been touched then; the new one is gone.
    """
    begin, old = time.monotonic(), in_use()
    new = find(version, old.name)
    if new is None or not Path(new.configuration, MARK).exists():
        raise Failure(
            USAGE, f"cluster {version}/{old.name} was not prepared; playbooks/postgresql_upgrade.yml does it."
        )
    stamp = datetime.now(UTC).strftime("%Y%m%dt%H%M%S")
    try:
        about = copy(old, new, lambda about: swap(old, new, stamp, about))
    except BaseException as failure:
        discard(version, old.name)
        code = failure.code if isinstance(failure, Failure) else OTHER
        raise Failure(code, f"{failure} Nothing was changed: PostgreSQL {old.version} still serves.") from failure
    return about | {"seconds": round(time.monotonic() - begin, 1), "stamp": stamp}


def copy(old: Cluster, new: Cluster, then: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Copy and compare all databases while nobody can write to the old ones, then go on with the tables locked."""
    source, programs = Server(port=old.port), PROGRAMS / str(new.version) / "bin"
    with ExitStack() as held:
        moments = [held.enter_context(Moment(source, name, locked=True)) for name in databases(source)]
        known = {moment.database: sequences(source, moment.database) for moment in moments}
        with aside(new) as target:
            copy_roles(source, target, programs)
            for moment in moments:
                name = moment.database
                copy_database(moment, target, name, programs, create=name != "postgres")
                compare(moment, target, known[moment.database])
        about = {
            "from": old.version,
            "to": new.version,
            "databases": len(moments),
            "tables": sum(len(moment.rows) for moment in moments),
            "rows": sum(sum(moment.rows.values()) for moment in moments),
        }
        then(about)
    return about


# --- Afterwards ------------------------------------------------------------------------------------------------------


def last_record() -> dict[str, Any]:
    """Return the newest upgrade that is in effect or was cut, or nothing."""
    records = [load(file) for file in sorted(RECORDS.glob("*.json"))]
    return next((one for one in reversed(records) if one.get("state") in ("swapping", "done")), {})


def write_record(record: dict[str, Any]) -> None:
    """Write down how far an upgrade is."""
    RECORDS.mkdir(mode=0o700, exist_ok=True)
    replace(RECORDS / f"{record['stamp']}.json", json.dumps(record) + "\n")


def recorded() -> tuple[dict[str, Any], Cluster, Cluster]:
    """Return the upgrade in effect, and its old and new cluster as they are now.

    Raises:
        Failure: when there is none, or one of the clusters is gone.
    """
    record = last_record()
    if not record:
        raise Failure(NO_BACKUP, "no upgrade of PostgreSQL is in effect on this host; nothing was changed.")
    found = []
    for side in ("old", "new"):
        cluster = find(record[side]["version"], record[side]["name"])
        if cluster is None:
            raise Failure(
                NO_BACKUP,
                f"cluster {record[side]['version']}/{record[side]['name']} is gone; nothing was changed. pg_lsclusters "
                "shows what is there. The state before the upgrade is a backup, too: playbooks/backups.yml",
            )
        found.append(cluster)
    return record, found[0], found[1]


def undo() -> dict[str, Any]:
    """Let the old cluster serve again, with the data of the moment of the upgrade. The new one is kept, renamed.

    Raises:
        Failure: when there is none, or it does not come up; the new one serves on then.
    """
    record, old, new = recorded()
    spare = record["new"]["port"]
    try:
        serve(old, new, spare)
    except Failure as failure:
        serve(new, old, spare)
        raise Failure(failure.code, f"{failure} PostgreSQL {new.version} serves on.") from None
    kept = f"undone{record['stamp']}"
    tool("pg_renamecluster", *new.words, kept)
    record |= {"state": "undone", "kept": kept}
    write_record(record)
    return record


def remove() -> dict[str, Any]:
    """Drop the old cluster, and what undone upgrades have left, after the new one has proven itself.

    Raises:
        Failure: when the new one does not serve, or the old one runs.
    """
    record, old, new = recorded()
    if record["state"] != "done" or in_use() != new or old.running:
        raise Failure(USAGE, f"{new} does not serve, or {old} runs; nothing was dropped. pg_lsclusters shows it.")
    dropped = []
    undone = [load(file) for file in sorted(RECORDS.glob("*.json"))]
    kept = [find(one["new"]["version"], one["kept"]) for one in undone if one.get("state") == "undone"]
    for cluster in [old, *kept]:
        if cluster is not None:
            tool("pg_dropcluster", "--stop", *cluster.words)
            dropped.append(str(cluster))
    record |= {"state": "removed", "dropped": dropped}
    write_record(record)
    return record
