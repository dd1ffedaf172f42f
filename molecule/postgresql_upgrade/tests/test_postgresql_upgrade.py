"""A host that came from Debian 12 gets Debian 13's PostgreSQL, back, and again. The tests follow one another."""

import json
import re

import pytest
from testbed.verify import Played, eventually, play

pytestmark = pytest.mark.timeout(900)

UPGRADE, UNDO = "playbooks/postgresql_upgrade.yml", "playbooks/postgresql_upgrade_undo.yml"
REMOVE, ROLE = "playbooks/postgresql_upgrade_remove.yml", "molecule/postgresql_upgrade/role.yml"
NOBODY = "setpriv --reuid=nobody --regid=nogroup --clear-groups"
# Kinds of values that two versions, or a dump, could write differently; an odd name; a sequence.
DATA = """
    CREATE TABLE messages (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text, at timestamptz DEFAULT now(),
        score double precision, tags text[], extra jsonb, size int GENERATED ALWAYS AS (length(body)) STORED);
    INSERT INTO messages (body, score, tags, extra)
        SELECT repeat('a sentence with ümlauts ', n % 50), n / 7.0, ARRAY['a', NULL], jsonb_build_object('n', n)
        FROM generate_series(1, 2000) n;
    CREATE TABLE files (id int PRIMARY KEY, content bytea);
    INSERT INTO files SELECT n, sha256(n::text::bytea) FROM generate_series(1, 50) n;
    CREATE TABLE "Odd Name" (t text);
    INSERT INTO "Odd Name" VALUES ('x'), (NULL);
    CREATE TABLE written (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
"""
CONTENT = """
    SELECT md5(string_agg(m::text, '' ORDER BY id)) FROM messages m;
    SELECT md5(string_agg(f::text, '' ORDER BY id)) FROM files f;
    SELECT count(*), count(t) FROM "Odd Name"
"""
LOCKED = ("SET lock_timeout = '1s'", "INSERT INTO written DEFAULT VALUES")
# Writes one row after the other as the application does, and notes those that PostgreSQL has confirmed.
WRITER = """
while [ -e /run/writing ]; do
    psql -XAtqw -h /run/postgresql -U chatbot -d chatbot -c 'INSERT INTO written DEFAULT VALUES RETURNING id' \
        >> /root/confirmed 2>> /root/refused || true
    sleep 0.2
done
"""


@pytest.fixture(scope="module")
def password(host):
    return host.ansible.get_variables()["chatbot_database_password"]


@pytest.fixture(scope="module")
def as_app(host, password):
    """Run SQL as the application does: over the socket, with its password, as an unrelated system user."""

    def run(sql: str, **connection: str) -> str:
        known = {"user": "chatbot", "database": "chatbot", "password": password} | connection
        return host.check_output(
            f"{NOBODY} env PGPASSWORD=%s psql -XAtqw -v ON_ERROR_STOP=1 -h /run/postgresql -U %s -d %s -c %s",
            known["password"],
            known["user"],
            known["database"],
            sql,
        ).strip()

    return run


@pytest.fixture(scope="module")
def as_admin(host):
    def run(sql: str, database: str = "postgres") -> str:
        command = "cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -d %s -c %s"
        return host.check_output(command, database, sql).strip()

    return run


@pytest.fixture(scope="module", autouse=True)
def content(host, as_app, as_admin):
    """What the application has written, and a colleague's account and database beside it."""
    as_app(DATA)
    as_admin("CREATE ROLE analyst LOGIN PASSWORD 'a password of hers' IN ROLE pg_read_all_data")
    as_admin("ALTER ROLE analyst SET work_mem = '5MB'")
    as_admin("CREATE DATABASE reports OWNER analyst")
    as_admin("CREATE TABLE figures AS SELECT n FROM generate_series(1, 7) n", "reports")
    as_admin("ALTER SYSTEM SET log_statement = 'ddl'")
    host.check_output("sleep 1 && date +%FT%T%:z > /root/written")
    return as_app(CONTENT)


def run(host, playbook: str, *arguments: str, **variables: object) -> Played:
    """Run a playbook with the memory and the archive that this host was made with, as an inventory would have it."""
    return play(host, playbook, *arguments, postgresql_memory_mb=256, backup_point_in_time=True, **variables)


def clusters(host) -> dict[str, tuple[str, str]]:
    """Each cluster with its port and whether it runs."""
    lines = host.check_output("pg_lsclusters --no-header").splitlines()
    return {f"{one[0]}/{one[1]}": (one[2], one[3]) for one in map(str.split, lines)}


def archived(host) -> str:
    """The version of the cluster whose changes the archive takes, as seen in the newest base backup of it."""
    (about,) = json.loads(host.check_output("cd / && runuser -u postgres -- pgbackrest info --output=json"))
    last = max(about["db"], key=lambda one: one["id"])
    newest = max(about["backup"], key=lambda one: one["timestamp"]["stop"])
    assert newest["database"]["id"] == last["id"], "no base backup of it"
    host.check_output("cd / && runuser -u postgres -- pgbackrest --stanza=chatbot check")
    return str(last["version"])


def version(as_app) -> int:
    return int(as_app("SHOW server_version_num")) // 10000


def test_packages_of_the_new_release_make_no_cluster_of_their_own(host):
    """What an upgrade of the distribution does to the packages."""
    host.check_output("apt-get install -qy --no-install-recommends postgresql")
    assert host.file("/usr/lib/postgresql/17/bin/postgres").exists
    assert clusters(host) == {"15/main": ("5432", "online")}


def test_role_names_the_way_instead_of_leaving_an_old_version_unsaid(host):
    played = run(host, ROLE)
    assert played.code != 0
    assert "playbooks/postgresql_upgrade.yml" in played.words
    assert "changed=0" in played.words


def test_check_mode_says_that_it_can_be_done_and_does_nothing(host):
    played = run(host, UPGRADE, "--check")
    assert played.code == 0, played.output
    assert "go from PostgreSQL 15 to 17" in played.words
    assert clusters(host) == {"15/main": ("5432", "online")}


def test_cluster_with_data_in_the_new_ones_place_is_left_alone(host):
    host.check_output("pg_createcluster 17 main --start")
    host.check_output("cd / && runuser -u postgres -- createdb --port 5433 precious")
    host.check_output("pg_ctlcluster 17 main stop")
    refused = host.run("chatbot-backup upgrade-plan --version 17")
    assert refused.rc == 2
    assert "17/main already, with data in it" in refused.stderr
    host.check_output("pg_ctlcluster 17 main start && cd / && runuser -u postgres -- dropdb --port 5433 precious")
    # As it is now, the packages of an older state of this repository have left it: running, and empty.
    assert host.run("chatbot-backup upgrade-plan --version 17").rc == 0


def test_failure_before_the_swap_leaves_all_as_it_was(host, as_app, as_admin, content):
    """An extension that the new version does not have any more: only the restore can find that out."""
    as_admin("CREATE EXTENSION adminpack", "chatbot")
    played = run(host, UPGRADE, safety=False)
    as_admin("DROP EXTENSION adminpack", "chatbot")
    assert played.code != 0
    assert "adminpack" in played.words
    assert "Nothing was changed: PostgreSQL 15 still serves" in played.words
    assert clusters(host) == {"15/main": ("5432", "online")}
    assert as_app(CONTENT) == content


def test_killed_upgrade_holds_nobody_up(host, as_app, as_admin, content):
    """kill -9 while the new cluster is filled: nothing of the old one is locked any more, and a next run cleans up."""
    as_admin("CREATE TABLE slow AS SELECT 1 AS n", "reports")
    as_admin(
        "CREATE FUNCTION slowly(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_sleep(current_setting(''port'')::int % 2 * 60); RETURN n; END'; "
        "CREATE INDEX ON slow (slowly(n))",
        "reports",
    )
    host.check_output("chatbot-backup upgrade-prepare --version 17")
    start = "systemd-run --unit=cut --property=KillMode=process chatbot-backup upgrade-run --version 17"
    host.check_output(start)
    try:
        asked = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX slow%'"
        command = "cd / && runuser -u postgres -- psql -XAtq --port 5433 -d postgres -c %s"
        eventually(lambda: host.run(command, asked).stdout.strip() == "1")
        waiting = host.run("cd / && runuser -u postgres -- psql -d chatbot -c %s -c %s", *LOCKED)
        assert "lock timeout" in waiting.stderr
    finally:
        host.check_output("systemctl kill --signal=KILL --kill-whom=main cut")
    eventually(lambda: not host.service("cut").is_running)
    assert as_app("INSERT INTO written DEFAULT VALUES RETURNING id")
    assert as_app(CONTENT) == content
    assert clusters(host)["15/main"] == ("5432", "online")
    as_admin("DROP TABLE slow; DROP FUNCTION slowly", "reports")


def test_upgrade_loses_no_confirmed_row(host, as_app, content, password):
    host.check_output("touch /run/writing")
    host.check_output("systemd-run --unit=writer --setenv=PGPASSWORD=%s bash -c %s", password, WRITER)
    try:
        played = run(host, UPGRADE)
        assert played.code == 0, played.output
        swapped = len(host.check_output("cat /root/confirmed").split())
        eventually(lambda: len(host.check_output("cat /root/confirmed").split()) > swapped + 2)
    finally:
        host.check_output("rm /run/writing")
    eventually(lambda: not host.service("writer").is_running)
    confirmed = {int(line) for line in host.check_output("cat /root/confirmed").split()}
    assert confirmed <= {int(line) for line in as_app("SELECT id FROM written").split()}
    assert version(as_app) == 17
    assert as_app(CONTENT) == content
    assert clusters(host) == {"15/main": ("5433", "down"), "17/main": ("5432", "online")}
    assert re.search(r"PostgreSQL 17 serves instead of 15, after [\d.]+ s without writers: 3 databases", played.words)
    assert "put it into postgresql_settings: log_statement" in played.words


def test_colleagues_account_and_database_came_along(as_app, as_admin):
    hers = {"user": "analyst", "database": "reports", "password": "a password of hers"}
    assert as_admin("SELECT rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolname = 'analyst'") == "t"
    assert as_admin("SELECT setconfig FROM pg_db_role_setting WHERE setrole = 'analyst'::regrole") == "{work_mem=5MB}"
    assert as_admin("SELECT sum(n) FROM figures", "reports") == "28"
    assert as_admin("SELECT pg_has_role('analyst', 'pg_read_all_data', 'member')") == "t"
    with pytest.raises(AssertionError):
        as_app("SELECT 1", **hers)  # pg_hba.conf is the role's in the new cluster, too


def test_archive_goes_on_with_the_new_one_and_has_the_old_ones_moments(host, as_app, content):
    assert archived(host) == "17"
    as_app("DELETE FROM messages")
    host.check_output("chatbot-backup restore --what database --at $(cat /root/written)")
    assert as_app(CONTENT) == content


def test_new_cluster_alone_starts_at_boot(host):
    host.check_output("systemctl restart postgresql")
    eventually(lambda: host.service("postgresql@17-main").is_running)
    assert clusters(host) == {"15/main": ("5433", "down"), "17/main": ("5432", "online")}
    assert host.service("postgresql@17-main").is_enabled
    assert not host.service("postgresql@15-main").is_enabled


@pytest.mark.parametrize("playbook", [UPGRADE, ROLE])
def test_second_run_changes_nothing(host, playbook):
    played = run(host, playbook)
    assert played.code == 0, played.output
    assert re.search(r"changed=0 .*failed=0", played.words), played.output


def test_exporter_and_backup_find_the_new_one(host):
    host.check_output("chatbot-backup run")
    listed = json.loads(host.check_output("chatbot-backup list --json"))
    assert listed[-1]["purpose"] == "chatbot"
    read = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9187/metrics').read().decode())"
    eventually(lambda: "\npg_up 1" in host.check_output("python3 -c %s", read))


def test_undo_brings_the_old_one_back_and_keeps_what_came_since(host, as_app, content):
    as_app("CREATE TABLE since AS SELECT 'written after the upgrade' AS text")
    played = run(host, UNDO)
    assert played.code == 0, played.output
    assert version(as_app) == 15
    assert as_app(CONTENT) == content
    assert as_app("SELECT to_regclass('since') IS NULL") == "t"
    assert as_app("INSERT INTO written DEFAULT VALUES RETURNING id")
    assert archived(host) == "15"
    kept = next(name for name in clusters(host) if "undone" in name)
    assert kept in played.words
    (major, name), port = kept.split("/"), clusters(host)[kept][0]
    host.check_output("sed -i s/disabled/manual/ %s", f"/etc/postgresql/{kept}/start.conf")
    host.check_output("pg_ctlcluster %s %s start", major, name)
    command = "cd / && runuser -u postgres -- psql -XAtq --port %s -d chatbot -c 'SELECT text FROM since'"
    assert host.check_output(command, port).strip() == "written after the upgrade"
    host.check_output("pg_ctlcluster %s %s stop", major, name)


def test_nothing_is_left_to_undo_then(host):
    refused = host.run("chatbot-backup upgrade-undo")
    assert refused.rc == 30
    assert "no upgrade of PostgreSQL is in effect" in refused.stderr


def test_upgrade_again_then_the_old_one_goes(host, as_app, content):
    played = run(host, UPGRADE, safety=False)
    assert played.code == 0, played.output
    assert version(as_app) == 17
    assert as_app(CONTENT) == content
    played = run(host, REMOVE)
    assert played.code == 0, played.output
    assert clusters(host) == {"17/main": ("5432", "online")}
    assert not host.file("/usr/lib/postgresql/15").exists
    assert as_app(CONTENT) == content
    assert archived(host) == "17"
    plan = host.run("chatbot-backup plan --what database --at $(cat /root/written)")
    assert plan.rc == 30, "no backup is so old"
    assert "the archive of that moment is PostgreSQL 15's, whose programs are gone from this host" in plan.stderr


def test_backup_of_the_old_version_restores_into_the_new_one(host, as_app, content):
    listed = json.loads(host.check_output("chatbot-backup list --json"))
    before = next(row["backup"] for row in listed if row["purpose"] == "pre-restore")
    as_app("DELETE FROM messages")
    host.check_output("chatbot-backup restore --what database --at %s", before)
    assert as_app(CONTENT) == content
