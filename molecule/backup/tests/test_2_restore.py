"""Restores: proven before the swap, in parts, of a time, from another repository; taken back by one command."""

import json
import re
from datetime import UTC, datetime

import pytest

pytestmark = pytest.mark.timeout(900)

UPLOADS = "/var/lib/chatbot/uploads"
ROWS = "SELECT md5(string_agg(m::text, ',' ORDER BY id)) FROM messages m"


def tidy(host, sql) -> None:
    """Drop what restores have set aside."""
    for name in sql("SELECT datname FROM pg_database WHERE datname LIKE 'chatbot\\_%'").split():
        host.check_output("cd / && runuser -u postgres -- dropdb %s", name)
    host.check_output("rm -rf %s.before-* %s.undone-*", UPLOADS, UPLOADS)


def test_restore_brings_rows_and_uploads_back_and_undo_takes_it_back(host, backups, playbook, sql):
    backups.make()
    host.check_output("echo late > %s/late.txt", UPLOADS)
    rows = sql(ROWS)
    owner = host.check_output("stat -c %%U:%%G:%%a %s", UPLOADS)
    sql("DROP TABLE messages; DELETE FROM conversations WHERE id > 3; CREATE TABLE ransom (note text)")
    host.check_output("echo encrypted > %s/report.txt", UPLOADS)

    result = playbook("restore.yml")
    assert result.code == 0, result.output
    assert "2 tables with 1010 rows, 1 uploads" in result.words
    assert sql("SELECT count(*) FROM conversations") == "10"
    assert sql(ROWS) == rows
    assert sql("SELECT to_regclass('ransom') IS NULL") == "t"
    assert host.check_output("cat %s/report.txt", UPLOADS) == "an uploaded file"
    assert not host.file(f"{UPLOADS}/late.txt").exists
    assert host.check_output("stat -c %%U:%%G:%%a %s", UPLOADS) == owner

    # The application's own login works as before, and nobody else's.
    variables = host.ansible.get_variables()
    login = "PGPASSWORD=%s psql -XAtq -h /run/postgresql -U chatbot -d chatbot -c %s"
    host.check_output(login, variables["chatbot_database_password"], "CREATE TABLE own (id int); DROP TABLE own")
    assert sql("SELECT has_database_privilege('prometheus', 'chatbot', 'CONNECT')") == "f"

    # What was replaced is kept: as a database, as a directory, and as a backup.
    (before,) = re.findall(r"dropdb (chatbot_before_\w+)", result.output)
    assert sql("SELECT datname FROM pg_database WHERE NOT datallowconn AND datname <> 'template0'") == before
    assert host.check_output("cat %s.before-*/late.txt", UPLOADS) == "late"
    assert [row for row in backups.known("local") if row["purpose"] == "pre-restore"]

    result = playbook("restore_undo.yml")
    assert result.code == 0, result.output
    assert sql("SELECT count(*) FROM conversations") == "3"
    assert sql("SELECT to_regclass('ransom') IS NULL") == "f"
    assert host.check_output("cat %s/report.txt", UPLOADS) == "encrypted"
    assert host.check_output("cat %s/late.txt", UPLOADS) == "late"

    # Once more from the beginning, of the time before the damage; the state before the first restore is none of them.
    result = playbook(
        "restore.yml", at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S+00:00"), what="database", safety="false"
    )
    assert result.code == 0, result.output
    assert sql(ROWS) == rows
    result = playbook("restore.yml", what="uploads", safety="false", **{"from": "offsite"})
    assert result.code == 0, result.output
    assert "of offsite" in result.words
    assert not host.file(f"{UPLOADS}/late.txt").exists
    tidy(host, sql)


@pytest.mark.only_on("debian12")
def test_moment_before_a_mistake_comes_back(host, backups, playbook, sql):
    """Deleting a conversation, then backups of the time after: the one from before has it."""
    backups.make()
    before = host.check_output("date -u +%FT%TZ")
    sql("DELETE FROM messages WHERE conversation_id = 7; DELETE FROM conversations WHERE id = 7")
    host.check_output("sleep 1")
    backups.make()
    result = playbook("restore.yml", at=before, what="database", safety="false")
    assert result.code == 0, result.output
    assert sql("SELECT title FROM conversations WHERE id = 7") == "conversation 7"
    tidy(host, sql)
    backups.make()


@pytest.mark.only_on("debian12")
def test_configuration_alone_is_restored_and_taken_back(host, backups):
    backups.make()
    host.check_output("echo changed > /etc/chatbot/secret; echo new > /etc/chatbot/new")
    inode = host.check_output("stat -c %i /etc/chatbot")
    done = json.loads(host.check_output("chatbot-backup restore --what config"))
    assert done["parts"] == ["config"]
    assert host.check_output("cat /etc/chatbot/secret") == "a configuration that nobody may read"
    assert host.file("/etc/chatbot/secret").mode == 0o600
    assert host.check_output("stat -c %i /etc/chatbot") == inode, "containers have it mounted"
    host.check_output("chatbot-backup undo")
    assert host.check_output("cat /etc/chatbot/secret") == "changed"
    host.check_output("printf 'a configuration that nobody may read\\n' > /etc/chatbot/secret; rm /etc/chatbot/new")


@pytest.mark.only_on("debian13")
@pytest.mark.usefixtures("untouched")
def test_state_before_a_restore_is_not_the_latest(host, backups):
    name = backups.make()
    host.check_output("chatbot-backup run --purpose pre-restore")
    assert json.loads(host.check_output("chatbot-backup plan"))["backup"] == name


@pytest.mark.only_on("debian13")
@pytest.mark.usefixtures("untouched")
def test_failed_restore_leaves_everything_as_it_was(host, backups, playbook, sql):
    """A dump that cannot be restored: its objects belong to a role that no longer exists."""
    sql("CREATE ROLE stranger; CREATE TABLE foreign_table (id int); ALTER TABLE foreign_table OWNER TO stranger")
    backups.make()
    sql("DROP TABLE foreign_table; DROP ROLE stranger")
    result = playbook("restore.yml", safety="false")
    assert result.code != 0
    assert "Nothing was changed" in result.words
    assert 'role "stranger" does not exist' in result.words
    assert not host.run("ls -d /var/lib/chatbot-backup/restore-* %s.restore-* %s.before-*", UPLOADS, UPLOADS).stdout
    backups.make()


@pytest.mark.only_on("debian12")
@pytest.mark.usefixtures("untouched")
def test_killed_restore_leaves_everything_as_it_was(host, backups, sql):
    """kill -9 while the new database is filled; the next restore clears away what it has left."""
    sql("CREATE TABLE bulk AS SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 60000) n")
    backups.make()
    sql("DROP TABLE bulk")
    host.check_output(
        "(chatbot-backup restore --what database >/dev/null 2>&1 & echo $! > /root/pid);"
        " for n in $(seq 600); do pgrep -x pg_restore >/dev/null && break; sleep 0.05; done; pgrep -x pg_restore"
    )
    host.check_output("kill -9 $(cat /root/pid)")
    left = sql("SELECT count(*) FROM pg_database WHERE datname LIKE 'chatbot\\_restore\\_%'")
    assert left == "1", "it was over before it was killed"
    backups.make()
    host.check_output("chatbot-backup restore --what uploads")
    assert sql("SELECT count(*) FROM pg_database WHERE datname LIKE 'chatbot\\_restore\\_%'") == "0"
    host.check_output("chatbot-backup undo && rm -r %s.undone-*", UPLOADS)


@pytest.mark.only_on("debian13")
@pytest.mark.usefixtures("untouched")
def test_check_mode_says_whether_a_restore_could_be_done(backups, playbook):
    name = backups.make()
    result = playbook("restore.yml", "--check")
    assert result.code == 0, result.output
    assert f"from backup {name} of repository local" in result.words
    assert backups.known("local")[-1]["backup"] == name


@pytest.mark.only_on("debian12")
@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--at 00000000", "There is no snapshot 00000000"),
        ("--at 2020-01-01", "There is no backup from 2020-01-01 or before"),
        ("--at yesterday", "is not understood"),
        ("--what everything", "is not understood"),
        ("--from elsewhere", "there is no repository named elsewhere here. backup_repositories has: local, offsite"),
    ],
)
def test_impossible_wishes_are_refused_with_what_there_is(host, arguments, words):
    for command in ("plan", "restore"):
        result = host.run(f"chatbot-backup {command} {arguments}")
        assert result.rc in (2, 30)
        assert words in result.stderr


@pytest.mark.only_on("debian12")
def test_undo_without_a_restore_says_so(host):
    host.check_output("rm -rf /var/lib/chatbot-backup/restores")
    result = host.run("chatbot-backup undo")
    assert result.rc == 30
    assert "no restore to take back" in result.stderr
