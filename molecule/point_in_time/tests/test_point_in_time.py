"""Any moment comes back, a dead archive stops nobody, and a gap is told. The tests follow one another."""

import json
import re
import time
from datetime import UTC, datetime

import pytest
from testbed.verify import eventually

pytestmark = pytest.mark.timeout(900)

NEAR, FAR, AWAY = "/var/backups/chatbot-archive", "/srv/far/archive", "/srv/away"
UPLOADS = "/var/lib/chatbot/uploads"
ROWS = "SELECT md5(string_agg(m::text, ',' ORDER BY id)) FROM messages m"
DATABASES = "SELECT string_agg(datname, ',' ORDER BY datname) FROM pg_database"
# A new segment with a transaction in it.
SEGMENT = "SELECT pg_current_xact_id() IS NULL; SELECT pg_switch_wal() IS NULL"
LEFT_OVERS = "ls -A /var/lib/chatbot-point-in-time /run/chatbot-point-in-time 2>/dev/null | grep -v :$ || true"


def now(host) -> datetime:
    return datetime.fromtimestamp(float(host.check_output("date +%s.%N")), UTC)


def tidy(host, sql) -> None:
    """Drop what restores have set aside."""
    for name in sql("SELECT datname FROM pg_database WHERE datname LIKE 'chatbot\\_%'").split():
        host.check_output("cd / && runuser -u postgres -- dropdb %s", name)
    host.check_output("rm -rf %s.before-* %s.undone-*", UPLOADS, UPLOADS)


def test_deleted_conversation_is_back_as_of_the_minute_before(host, playbook, sql, metrics):
    host.check_output("systemctl start chatbot-backup")
    sql("INSERT INTO conversations VALUES (11, 'of today'); INSERT INTO messages VALUES (2001, 11, 'asked just now')")
    host.check_output("echo later > %s/later.txt", UPLOADS)
    written, rows = now(host), sql(ROWS)

    # Nobody helps: within five minutes what was written is in the archive, and the metric says so.
    host.check_output("sleep 50")
    last = "SELECT extract(epoch FROM last_archived_time) FROM pg_stat_archiver"
    eventually(lambda: float(sql(last)) > written.timestamp(), 240)
    seen = eventually(lambda: (found := metrics())["recovery_point_timestamp_seconds"] > written.timestamp() and found)
    assert seen["gap"] == seen["queue_bytes"] == 0
    assert (now(host) - written).total_seconds() < 300

    # As somebody says it who has just noticed: the minute, without seconds.
    minute = eventually(lambda: (m := now(host).replace(second=0, microsecond=0)) > written and m, 90)
    sql("DELETE FROM messages WHERE conversation_id IN (7, 11); DELETE FROM conversations WHERE id IN (7, 11)")
    sql("INSERT INTO conversations VALUES (12, 'of after the mistake')")
    owner = host.check_output("stat -c %%U:%%G:%%a %s", UPLOADS)

    result = playbook("playbooks/restore.yml", at=minute.strftime("%Y-%m-%d %H:%M"))
    assert result.code == 0, result.output
    assert f"database and uploads as of {minute.isoformat(sep=' ')}" in result.words
    assert "The uploads are those of backup" in result.words
    assert sql("SELECT title FROM conversations WHERE id IN (7, 11) ORDER BY id") == "conversation 7\nof today"
    assert sql("SELECT count(*) FROM conversations WHERE id = 12") == "0"
    assert sql(ROWS) == rows
    # Not of that minute, and the preflight has said so.
    assert not host.file(f"{UPLOADS}/later.txt").exists
    assert host.check_output("stat -c %%U:%%G:%%a %s", UPLOADS) == owner
    login = "PGPASSWORD=%s psql -XAtq -h /run/postgresql -U chatbot -d chatbot -c %s"
    password = host.ansible.get_variables()["chatbot_database_password"]
    host.check_output(login, password, "CREATE TABLE own (id int); DROP TABLE own")
    assert host.check_output(LEFT_OVERS) == ""
    assert host.run("pgrep -af [/]var/lib/chatbot-point-in-time").rc == 1

    result = playbook("playbooks/restore_undo.yml")
    assert result.code == 0, result.output
    assert sql("SELECT id FROM conversations WHERE id IN (7, 11, 12)") == "12"
    assert host.check_output("cat %s/later.txt", UPLOADS) == "later"
    tidy(host, sql)


def test_moment_behind_the_last_change_comes_back(host, sql):
    """PostgreSQL alone would not know that it has come to a moment which no change follows."""
    sql("INSERT INTO conversations VALUES (13, 'the last')")
    host.check_output("sleep 1.1")
    moment = now(host).isoformat()
    done = json.loads(host.check_output("chatbot-backup restore --what database --at %s", moment))
    assert done["rows"] > 10
    assert sql("SELECT title FROM conversations WHERE id = 13") == "the last"
    host.check_output("chatbot-backup undo")
    tidy(host, sql)


def test_drill_replays_the_archive_too(host, sql):
    host.check_output("systemctl start chatbot-backup-drill")
    text = host.check_output("cat /var/lib/prometheus/node-exporter/chatbot_backup_drill_archive.prom")
    assert 'backup_drill_success{repository="archive"} 1' in text
    log = host.check_output("journalctl --unit chatbot-backup-drill --lines 8 --output cat --no-pager")
    rows = int(sql("SELECT (SELECT count(*) FROM conversations) + (SELECT count(*) FROM messages)"))
    assert f"the archive reaches the present moment: {rows} rows read" in log
    assert host.check_output(LEFT_OVERS) == ""


def test_moment_to_come_is_refused(host):
    for command in ("plan", "restore"):
        refused = host.run(f"chatbot-backup {command} --at 2099-01-01")
        assert refused.rc == 30
        assert "2099-01-01 is yet to come" in refused.stderr


def test_dead_archive_stops_nobody_and_is_told(host, sql, metrics):
    before = metrics()["recovery_point_timestamp_seconds"]
    host.check_output("mv %s %s", FAR, AWAY)
    try:
        death = now(host)
        sql("INSERT INTO conversations VALUES (14, 'into the dark')")
        sql(SEGMENT)
        eventually(lambda: sql("SELECT failed_count > 0 FROM pg_stat_archiver") == "t")
        seen = metrics()
        assert seen["queue_bytes"] == 16 << 20
        assert seen["gap"] == 0
        # It stands still from now on: after five minutes ArchiveBehind fires.
        # PostgreSQL tells the time of a waiting segment in whole seconds.
        assert before - 1 <= seen["recovery_point_timestamp_seconds"] < death.timestamp()
        host.check_output("sleep 3")
        assert metrics()["recovery_point_timestamp_seconds"] == seen["recovery_point_timestamp_seconds"]

        # More than may wait: the oldest go, so that the disk does not fill, and the gap is known.
        for _ in range(8):
            sql(SEGMENT)
        # They go one by one.
        seen = eventually(lambda: (found := metrics())["gap"] == 1 and found["queue_bytes"] <= 64 << 20 and found, 180)
        assert seen["recovery_point_timestamp_seconds"] < death.timestamp()
        assert sql("INSERT INTO conversations VALUES (15, 'all the same') RETURNING id") == "15"
    finally:
        host.check_output("mv %s %s", AWAY, FAR)
    sql(SEGMENT)  # PostgreSQL tries again at once, not within a minute
    eventually(lambda: metrics()["queue_bytes"] == 0, 120)
    # Its segments arrive again, and yet no moment from now on could be had.
    assert metrics()["gap"] == 1
    assert metrics()["recovery_point_timestamp_seconds"] < death.timestamp()


def test_moment_behind_a_gap_is_refused_with_the_last_that_there_is(host, sql):
    state = sql(ROWS), sql(DATABASES)
    refused = host.run("chatbot-backup restore --what database --at %s", now(host).isoformat())
    assert refused.rc == 30, refused.stderr
    assert "the archive has a gap, or ends, before" in refused.stderr
    assert "Nothing was changed" in refused.stderr
    assert (sql(ROWS), sql(DATABASES)) == state
    assert host.check_output(LEFT_OVERS) == ""
    # The command that it names works.
    (at,) = re.findall(r"-e 'at=\"([^\"]+)\"'", refused.stderr)
    host.check_output("chatbot-backup restore --what database --at %s", at)
    assert sql("SELECT count(*) FROM conversations WHERE id IN (13, 15)") == "1"
    host.check_output("chatbot-backup undo")
    tidy(host, sql)


def test_next_base_backup_ends_the_gap(host, sql, metrics):
    lines = host.check_output("cat /etc/cron.d/chatbot-backup").splitlines()
    (line,) = [line for line in lines if line.endswith("chatbot-backup-base.service")]
    host.check_output(line.split(None, 6)[6])
    seen = metrics()
    assert seen["gap"] == 0
    assert time.time() - seen["recovery_point_timestamp_seconds"] < 300
    host.check_output("sleep 1.1")
    host.check_output("chatbot-backup restore --what database --at %s", now(host).isoformat())
    assert sql("SELECT title FROM conversations WHERE id = 15") == "all the same"
    host.check_output("chatbot-backup undo")
    tidy(host, sql)


def test_wrong_password_is_refused_before_it_is_in_use(playbook, sql, metrics):
    played = playbook("molecule/point_in_time/archive.yml", far_password="another-0123456789abcdef")
    assert played.code != 0
    assert "the password does not open the archive" in played.words
    assert "backup_point_in_time_password" in played.words
    sql("INSERT INTO conversations VALUES (16, 'still archived')")
    sql(SEGMENT)
    eventually(lambda: metrics()["queue_bytes"] == 0)


def test_archive_goes_on_with_a_new_cluster_and_keeps_the_old_ones_moments(host, playbook, sql):
    """As after an upgrade of PostgreSQL, or on a rebuilt host, where only what was far away is left."""
    moment, rows = now(host).isoformat(), sql(ROWS)
    host.check_output("sleep 1.1")
    sql(SEGMENT)
    host.check_output(
        "systemctl stop 'postgresql@*' && pg_renamecluster 17 main old && pg_conftool 17 old set port 5439"
        " && pg_createcluster --locale C.UTF-8 --encoding UTF8 --port 5432 17 main"
        " && cp /etc/postgresql/17/old/conf.d/chatbot.conf /etc/postgresql/17/main/conf.d/"
        f" && rm -r {NEAR} && echo disabled > /etc/postgresql/17/old/start.conf && systemctl start postgresql@17-main"
    )
    sql("CREATE ROLE chatbot LOGIN", "postgres")
    sql("CREATE DATABASE chatbot OWNER chatbot TEMPLATE template0", "postgres")
    played = playbook("molecule/point_in_time/archive.yml")
    assert played.code == 0, played.output
    assert sql("SELECT count(*) > 0 FROM pg_stat_archiver WHERE archived_count > 0") == "t"
    (about,) = json.loads(host.check_output("cd / && runuser -u postgres -- pgbackrest info --output=json"))
    assert [(one["repo-key"], one["id"]) for one in about["db"]] == [(1, 1), (2, 1), (2, 2)]
    host.check_output("chatbot-backup restore --what database --at %s", moment)
    assert sql(ROWS) == rows
    tidy(host, sql)


def test_second_run_changes_nothing(playbook):
    played = playbook("molecule/point_in_time/archive.yml")
    assert played.code == 0, played.output
    assert "changed=0" in played.words


def test_switched_off_and_on_again(host, playbook, sql):
    played = playbook("molecule/point_in_time/archive.yml", archive_on=False)
    assert played.code == 0, played.output
    assert sql("SHOW archive_mode") == "off"
    assert not host.file("/var/lib/prometheus/node-exporter/chatbot_backup_archive.prom").exists
    # On again it lacks what was written meanwhile: there is a new base backup, and moments behind it can be had.
    sql(SEGMENT)
    played = playbook("molecule/point_in_time/archive.yml")
    assert played.code == 0, played.output
    sql("INSERT INTO conversations VALUES (17, 'on again')")
    host.check_output("sleep 1.1")
    host.check_output("chatbot-backup restore --what database --at %s", now(host).isoformat())
    assert sql("SELECT title FROM conversations WHERE id = 17") == "on again"
