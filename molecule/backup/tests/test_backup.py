"""Backups as an operator lives with them: made by cron's command, listed, damaged, restored."""

import json
import re
from pathlib import Path

import pytest
from testbed.verify import Played, play

pytestmark = pytest.mark.timeout(600)

PROJECT = Path(__file__).parents[3]
REPOSITORY = "/var/backups/chatbot"
UPLOADS = "/var/lib/chatbot/uploads"
METRICS = "/var/lib/prometheus/node-exporter/chatbot_backup.prom"


@pytest.fixture
def sql(host):
    def run(statement: str, database: str = "chatbot") -> str:
        return host.check_output("cd / && runuser -u postgres -- psql -XAtq -d %s -c %s", database, statement)

    return run


@pytest.fixture
def playbook(host):
    """Run a playbook as the operator does, limited to the host under test."""

    def run(name: str, *arguments: str, **variables: str) -> Played:
        return play(host, f"playbooks/{name}", *arguments, **variables)

    return run


def cron_command(host) -> str:
    """The command that cron runs every night, without the schedule and the user."""
    lines = host.check_output("cat /etc/cron.d/chatbot-backup").splitlines()
    (line,) = [line for line in lines if line.endswith("chatbot-backup.service")]
    return line.split(None, 6)[6]


def snapshots(host, *arguments: str) -> list[dict]:
    return json.loads(host.check_output(f"chatbot-backup list --json {' '.join(arguments)}"))


def metrics(host) -> dict[str, float]:
    lines = host.check_output("cat %s", METRICS).splitlines()
    return {name: float(value) for name, value in (line.split() for line in lines if not line.startswith("#"))}


def with_settings(host, **changes: str) -> str:
    """Copy the settings with some changed; return the prefix that makes chatbot-backup read the copy."""
    lines = "".join(f"\n{name}={value}" for name, value in changes.items())
    host.check_output("(cat /etc/chatbot-backup/settings; echo %s) > /root/settings", lines)
    return "CHATBOT_BACKUP_SETTINGS=/root/settings "


def test_cron_starts_it(host):
    assert host.service("cron").is_running
    before = {s["id"] for s in snapshots(host)}
    host.check_output(cron_command(host))
    newest = max(snapshots(host), key=lambda snapshot: snapshot["time"])
    assert newest["id"] not in before
    assert newest["tags"] == ["chatbot"]
    content = host.check_output("chatbot-backup restic ls %s", newest["id"])
    assert "/var/lib/chatbot-backup/staging/database.dump" in content
    assert f"{UPLOADS}/report.txt" in content
    assert "/etc/chatbot/secret" in content
    assert "/etc/chatbot-backup" not in content.replace("/var/lib/chatbot-backup", "")
    assert not host.file("/var/lib/chatbot-backup/staging").exists


def test_metrics_are_written_whole(host):
    host.check_output(cron_command(host))
    values = metrics(host)
    assert abs(values["backup_last_success_timestamp_seconds"] - float(host.check_output("date +%s"))) < 60
    assert values["backup_last_run_success"] == 1
    assert values["backup_size_bytes"] >= values["backup_database_dump_bytes"] > 10_000
    assert host.file(METRICS).mode == 0o644
    assert host.check_output("ls -A %s", str(Path(METRICS).parent)).split() == ["chatbot_backup.prom"]


def test_repository_is_encrypted_and_private(host):
    host.check_output(cron_command(host))
    for plain in ("a remarkable sentence", "an uploaded file", "a configuration that nobody may read", "report.txt"):
        assert host.run("grep -rqaF %s %s", plain, REPOSITORY).rc == 1
    for command in (f"ls {REPOSITORY}", "cat /etc/chatbot-backup/password", "cat /etc/chatbot-backup/settings"):
        assert host.run(f"setpriv --reuid=nobody --regid=nogroup --clear-groups {command}").rc != 0


def test_wrong_password_is_named_and_makes_no_repository(host):
    host.check_output("echo a-wrong-password-for-the-test > /root/password")
    settings = with_settings(host, RESTIC_PASSWORD_FILE="/root/password")
    keys = host.check_output("ls %s/keys", REPOSITORY)
    for command in ("run", "list", "init", "check"):
        result = host.run(f"{settings} chatbot-backup {command}")
        assert result.rc == 12, result.stderr
        assert "the password does not open /var/backups/chatbot" in result.stderr
    assert host.check_output("ls %s/keys", REPOSITORY) == keys


def test_missing_repository_is_named_and_not_made_by_a_run(host):
    settings = with_settings(host, RESTIC_REPOSITORY="/root/not-mounted")
    result = host.run(f"{settings} chatbot-backup run")
    assert result.rc == 10
    assert "there is no repository at /root/not-mounted" in result.stderr
    assert not host.file("/root/not-mounted").exists


def test_unreachable_repository_is_named(host):
    settings = with_settings(host, RESTIC_REPOSITORY="rest:http://127.0.0.1:9/chatbot", BACKUP_CONNECT_TIMEOUT="5")
    for command in ("run", "list", "init"):
        result = host.run(f"{settings} chatbot-backup {command}")
        assert result.rc == 13, result.stderr
        assert "rest:http://127.0.0.1:9/chatbot" in result.stderr


def test_failed_dump_leaves_no_snapshot(host, sql):
    """A table that PostgreSQL cannot read: pg_dump fails after it has written a part of the dump."""
    host.check_output(cron_command(host))
    before, good = snapshots(host), metrics(host)["backup_last_success_timestamp_seconds"]
    sql("CREATE TABLE broken (x text); INSERT INTO broken SELECT repeat('x', 500) FROM generate_series(1, 100)")
    file = "/var/lib/postgresql/*/main/" + sql("SELECT pg_relation_filepath('broken')")
    # Not postgresql.service, which has stopped before the server has written its memory to the file.
    host.check_output("systemctl stop 'postgresql@*'")
    host.check_output(f"dd if=/dev/urandom of=$(echo {file}) bs=8192 count=1 conv=notrunc status=none")
    host.check_output("systemctl start postgresql")
    try:
        assert host.run(cron_command(host)).rc != 0
        assert host.check_output("systemctl show -P ExecMainStatus chatbot-backup") == "20"
        log = host.check_output("journalctl --unit chatbot-backup --lines 10 --output cat --no-pager")
        assert "pg_dump of chatbot failed; no snapshot was made" in log
        assert [s["id"] for s in snapshots(host)] == [s["id"] for s in before]
        assert not host.file("/var/lib/chatbot-backup/staging").exists
        assert metrics(host)["backup_last_run_success"] == 0
        assert metrics(host)["backup_last_exit_code"] == 20
        assert metrics(host)["backup_last_success_timestamp_seconds"] == good
    finally:
        sql("DROP TABLE broken")
    host.check_output(cron_command(host))
    assert metrics(host)["backup_last_run_success"] == 1


def test_unknown_database_is_named(host):
    settings = with_settings(host, BACKUP_DATABASE="missing")
    result = host.run(f"{settings} chatbot-backup run --tag probe")
    assert result.rc == 20
    assert "has no database missing" in result.stderr


def test_unreadable_files_are_no_good_backup(host):
    """A directory that vanishes cannot be tested at will; one that the kernel refuses to read can."""
    before = len(snapshots(host, "--tag", "chatbot"))
    settings = with_settings(host, BACKUP_PATHS="(/etc/chatbot /proc/self/mem)")
    result = host.run(f"{settings} chatbot-backup run")
    assert result.rc == 3, result.stderr
    assert "is tagged incomplete" in result.stderr
    assert len(snapshots(host, "--tag", "chatbot")) == before
    assert metrics(host)["backup_last_run_success"] == 0
    assert snapshots(host, "--tag", "incomplete")


def test_two_runs_do_not_meet(host):
    result = host.run("flock /run/lock/chatbot-backup.lock -c 'timeout 90 chatbot-backup run'")
    assert result.rc == 75
    assert "another backup, check or restore is at work" in result.stderr


def test_retention_keeps_days_and_weeks(host):
    """A snapshot for each of the last days and weeks: 7 days and 4 weeks of them stay, another host's stay all."""
    settings = with_settings(host, BACKUP_HOST="ancient")
    host.check_output(
        "for day in 1 2 3 4 5 6 7 8 14 21 28 35; do chatbot-backup restic backup --quiet --host ancient --tag chatbot"
        ' --time "$(date -d "$day days ago" "+%F 03:00:00")" /etc/hostname; done'
    )
    own = {s["id"] for s in snapshots(host)}
    host.check_output(f"{settings} chatbot-backup run")
    times = sorted(s["time"][:10] for s in json.loads(host.check_output(f"{settings} chatbot-backup list --json")))
    today = host.check_output("date +%F")
    week = [host.check_output("date -d %s +%%F", f"{days} days ago") for days in range(7)]
    assert times[-1] == today
    assert set(week) <= set(times)
    # Four weeks, of which the newest one or two are among the seven days already.
    assert 9 <= len(times) <= 10
    assert times[0] >= host.check_output("date -d '28 days ago' +%F")
    assert {s["id"] for s in snapshots(host)} == own
    host.check_output(f"{settings} chatbot-backup restic forget --quiet --host ancient --keep-last 1")


def test_check_reads_the_repository(host):
    host.check_output("systemctl start chatbot-backup-check.service")
    assert "backup_check_success 1" in host.check_output("cat %s", METRICS.replace(".prom", "_check.prom"))
    host.check_output("rm %s", METRICS.replace(".prom", "_check.prom"))


def test_playbooks_back_up_and_list(host, playbook):
    before = {s["short_id"] for s in snapshots(host)}
    result = playbook("backup.yml")
    assert result.code == 0, result.output
    (snapshot,) = re.findall(r"Snapshot ([0-9a-f]{8}):", result.output)
    assert snapshot not in before
    assert snapshot in playbook("backups.yml").output


def test_restore_brings_rows_and_uploads_back(host, playbook, sql):
    host.check_output(cron_command(host))
    host.check_output("echo late > %s/late.txt", UPLOADS)
    rows = sql("SELECT md5(string_agg(m::text, ',' ORDER BY id)) FROM messages m")
    directory = host.check_output("stat -c %%i %s", UPLOADS)
    sql("DROP TABLE messages; DELETE FROM conversations WHERE id > 3; CREATE TABLE ransom (note text)")
    host.check_output("echo encrypted > %s/report.txt", UPLOADS)

    result = playbook("restore.yml")
    assert result.code == 0, result.output
    assert sql("SELECT count(*) FROM conversations") == "10"
    assert sql("SELECT md5(string_agg(m::text, ',' ORDER BY id)) FROM messages m") == rows
    assert sql("SELECT to_regclass('ransom') IS NULL") == "t"
    assert host.check_output("cat %s/report.txt", UPLOADS) == "an uploaded file"
    assert not host.file(f"{UPLOADS}/late.txt").exists
    assert host.check_output("stat -c %%i %s", UPLOADS) == directory

    # The application's own login works as before, and nobody else's.
    variables = host.ansible.get_variables()
    login = "PGPASSWORD=%s psql -XAtq -h /run/postgresql -U chatbot -d chatbot -c %s"
    host.check_output(login, variables["chatbot_database_password"], "CREATE TABLE own (id int); DROP TABLE own")
    assert sql("SELECT has_database_privilege('prometheus', 'chatbot', 'CONNECT')") == "f"

    # What was replaced is kept: as a database, as a directory, and as a snapshot.
    (before,) = re.findall(r"dropdb (chatbot_before_\w+)", result.output)
    assert sql("SELECT datname FROM pg_database WHERE NOT datallowconn AND datname <> 'template0'") == before
    assert host.check_output("cat %s.before-*/late.txt", UPLOADS) == "late"
    assert snapshots(host, "--tag", "pre-restore")
    host.check_output("cd / && runuser -u postgres -- dropdb %s", before)
    host.check_output("rm -r %s.before-*", UPLOADS)


def test_state_before_a_restore_can_be_restored(host, playbook, sql):
    """The undo: the snapshot that the restore itself has made, by its identifier, the database only."""
    host.check_output(cron_command(host))
    sql("INSERT INTO conversations VALUES (99, 'written after the backup')")
    assert playbook("restore.yml", what="database").code == 0
    assert sql("SELECT count(*) FROM conversations WHERE id = 99") == "0"
    snapshot = snapshots(host, "--tag", "pre-restore", "--latest", "1")[-1]["short_id"]
    result = playbook("restore.yml", at=snapshot, what="database")
    assert result.code == 0, result.output
    assert sql("SELECT count(*) FROM conversations WHERE id = 99") == "1"
    sql("DELETE FROM conversations WHERE id = 99")
    for name in sql("SELECT datname FROM pg_database WHERE datname LIKE 'chatbot\\_%'").split():
        host.check_output("cd / && runuser -u postgres -- dropdb %s", name)


def test_unknown_snapshot_is_refused_with_the_list(host, playbook, sql):
    rows = sql("SELECT count(*) FROM messages")
    result = playbook("restore.yml", at="00000000")
    assert result.code != 0
    assert "There is no snapshot 00000000" in result.output
    assert snapshots(host)[-1]["short_id"] in result.output
    assert sql("SELECT count(*) FROM messages") == rows


def test_failed_restore_leaves_everything_as_it_was(host, playbook, sql):
    """A dump that cannot be restored: its objects belong to a role that no longer exists."""
    sql("CREATE ROLE stranger; CREATE TABLE foreign_table (id int); ALTER TABLE foreign_table OWNER TO stranger")
    host.check_output(cron_command(host))
    sql("DROP TABLE foreign_table; DROP ROLE stranger; INSERT INTO conversations VALUES (77, 'keep me')")
    databases = sql("SELECT string_agg(datname, ',' ORDER BY datname) FROM pg_database")
    result = playbook("restore.yml")
    assert result.code != 0
    assert "the present database is untouched" in result.output
    assert 'role "stranger" does not exist' in result.output
    assert sql("SELECT count(*) FROM conversations WHERE id = 77") == "1"
    assert sql("SELECT string_agg(datname, ',' ORDER BY datname) FROM pg_database") == databases
    assert host.check_output("cat %s/report.txt", UPLOADS) == "an uploaded file"
    assert not host.run("ls -d /var/lib/chatbot-backup/restore-* %s.restore-* %s.before-*", UPLOADS, UPLOADS).stdout
    sql("DELETE FROM conversations WHERE id = 77")
    host.check_output(cron_command(host))


def test_check_mode_says_whether_a_restore_could_be_done(host, playbook, sql):
    host.check_output(cron_command(host))
    before = snapshots(host)
    result = playbook("restore.yml", "--check")
    assert result.code == 0, result.output
    assert [s["id"] for s in snapshots(host)] == [s["id"] for s in before]
    assert sql("SELECT count(*) FROM pg_database WHERE datname LIKE 'chatbot%'") == "1"
