"""What goes wrong: what the operator sees, that the other repository has its backup, and that the metric shows it."""

import json

import pytest
from testbed.verify import eventually

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("untouched")]


def failed(host, backups, code: int, words: str) -> None:
    """The nightly run fails for `offsite` alone: named, counted, and `local` has its backup."""
    last = backups.metrics()["backup_last_success_timestamp_seconds"]
    assert host.run(backups.cron_command()).rc != 0
    assert host.check_output("systemctl show -P ExecMainStatus chatbot-backup") == str(code)
    log = host.check_output("journalctl --unit chatbot-backup --lines 12 --output cat --no-pager")
    assert f"offsite: {words}" in log
    values = backups.metrics()
    assert values["backup_last_run_success"] == {"local": 1, "offsite": 0}
    assert values["backup_last_exit_code"]["offsite"] == code
    assert values["backup_last_success_timestamp_seconds"]["local"] > last["local"]
    assert values["backup_last_success_timestamp_seconds"]["offsite"] == last["offsite"]


def recovered(backups) -> None:
    """The next night is a good one."""
    backups.make()
    assert backups.metrics()["backup_last_run_success"] == {"local": 1, "offsite": 1}


def test_wrong_password(host, backups):
    backups.make()
    settings = backups.with_settings(offsite={"password": "a-wrong-password-for-the-test"})
    keys = host.check_output("ls /srv/offsite/keys")
    for command in ("run", "check", "init", "list --repository offsite", "restore --from offsite", "drill"):
        result = host.run(f"{settings} chatbot-backup {command}")
        assert result.rc == 12, (command, result.stderr)
        assert "the password does not open /srv/offsite" in result.stderr
    assert backups.metrics()["backup_last_run_success"] == {"local": 1, "offsite": 0}
    assert backups.metrics("chatbot_backup_check")["backup_check_success"] == {"local": 1, "offsite": 0}
    assert host.check_output("ls /srv/offsite/keys") == keys


def test_missing_repository_is_not_made_by_a_run(host, backups):
    settings = backups.with_settings(offsite={"repository": "/root/not-mounted"})
    result = host.run(f"{settings} chatbot-backup run")
    assert result.rc == 10
    assert "there is no repository at /root/not-mounted" in result.stderr
    assert not host.file("/root/not-mounted").exists


def test_unreachable_repository(host, backups):
    place = {"repository": "rest:http://127.0.0.1:9/chatbot"}
    settings = backups.with_settings(offsite=place, connect_timeout=5)
    for command in ("run", "list --repository offsite", "init", "restore --from offsite"):
        result = host.run(f"{settings} chatbot-backup {command}")
        assert result.rc == 13, (command, result.stderr)
        assert "rest:http://127.0.0.1:9/chatbot" in result.stderr
    values = backups.metrics()
    assert values["backup_last_run_success"] == {"local": 1, "offsite": 0}
    assert values["backup_last_exit_code"]["offsite"] == 13


def test_read_only_repository(host, backups):
    host.check_output("mount --bind /srv/offsite /srv/offsite && mount -o remount,bind,ro /srv/offsite")
    try:
        failed(host, backups, 14, "/srv/offsite is read-only")
        # What is there can be restored all the same.
        assert host.run("chatbot-backup plan --from offsite").rc == 0
    finally:
        host.check_output("umount /srv/offsite")
    recovered(backups)


def test_full_disk(host, backups):
    host.check_output(
        "mv /srv/offsite /srv/offsite.kept && mkdir /srv/offsite && mount -t tmpfs -o size=8m tmpfs /srv/offsite"
        " && cp -a /srv/offsite.kept/. /srv/offsite/ && head -c 8m /dev/zero > /srv/offsite/filler || true"
    )
    try:
        failed(host, backups, 28, "a disk is full at /srv/offsite")
    finally:
        host.check_output("umount /srv/offsite && rmdir /srv/offsite && mv /srv/offsite.kept /srv/offsite")


def test_corrupted_pack_file(host, backups):
    """A byte of every pack is another one: the check and the drill find it, a restore from there is refused."""
    host.check_output(
        "cp -a /srv/offsite /srv/offsite.kept && for pack in $(find /srv/offsite/data -type f); do"
        " printf 'XXXXXXXX' | dd of=$pack bs=1 seek=$(($(stat -c %s $pack) / 2)) conv=notrunc status=none; done;"
        " rm -rf /var/cache/chatbot-backup/*"
    )
    try:
        settings = backups.with_settings(check_subset="100%")
        assert host.run(f"{settings} chatbot-backup check").rc == 15
        assert backups.metrics("chatbot_backup_check")["backup_check_success"] == {"local": 1, "offsite": 0}
        drill = host.run("chatbot-backup drill")
        assert drill.rc == 15, drill.stderr
        assert "data in /srv/offsite is damaged" in drill.stderr
        assert backups.metrics("chatbot_backup_drill")["backup_drill_success"]["offsite"] == 0
        restore = host.run("chatbot-backup restore --from offsite")
        assert restore.rc == 15
        assert "-e from=<name>" in restore.stderr
        assert host.run("chatbot-backup plan --from local").rc == 0
    finally:
        host.check_output(
            "rm -rf /srv/offsite && mv /srv/offsite.kept /srv/offsite && rm -rf /var/cache/chatbot-backup/*"
        )
    recovered(backups)


@pytest.mark.only_on("debian12")
def test_removed_part_of_a_backup_is_noticed(host, backups):
    name = backups.make()
    (row,) = [row for row in backups.known("local") if row["backup"] == name]
    backups.restic("local", f"forget --quiet {row['parts']['database']}")
    result = host.run("chatbot-backup plan")
    assert result.rc == 15
    assert f"backup {name} in local is not complete: its database snapshot was removed" in result.stderr
    recovered(backups)


@pytest.mark.only_on("debian13")
def test_kill_during_a_backup(host, backups):
    """kill -9 of everything while the files are read: half a backup is none, and the next run clears it away."""
    host.check_output("head -c 400m /dev/urandom > /var/lib/chatbot/uploads/big.bin")

    def dumps() -> set[str]:
        return {s["id"] for s in backups.snapshots("local") if "part-database" in (s.get("tags") or [])}

    known, before = backups.known("local"), dumps()
    try:
        host.check_output("systemctl start --no-block chatbot-backup")
        host.check_output(
            "for n in $(seq 1200); do pgrep -f '[r]estic backup.*part-files' >/dev/null && break; sleep 0.05; done;"
            " sleep 0.5;"
            " systemctl kill --kill-whom=all --signal=KILL chatbot-backup"
        )
        eventually(lambda: host.check_output("systemctl show -P ActiveState chatbot-backup") == "failed")
        values = backups.metrics()
        assert values["backup_last_run_success"] == {"local": 0, "offsite": 0}
        assert values["backup_last_exit_code"]["local"] == 137
        log = host.check_output("journalctl --unit chatbot-backup --lines 8 --output cat --no-pager")
        assert "local: the run was killed before it had finished" in log
        assert backups.known("local") == known
        half = dumps() - before
        assert len(half) == 1, "it was over, or had not begun, when it was killed"
    finally:
        host.check_output("rm /var/lib/chatbot/uploads/big.bin")
    recovered(backups)
    assert not half & dumps()
    assert backups.restic("local", "list locks --no-lock") == ""


@pytest.mark.only_on("debian12")
def test_two_at_once(host, backups):
    settings = backups.with_settings(lock_timeout=1)
    for command in ("run", "check", "restore", "drill"):
        result = host.run(f"{settings} flock /run/lock/chatbot-backup.lock chatbot-backup {command}")
        assert result.rc == 75, (command, result.stderr)
        assert "another backup, check or restore is at work" in result.stderr


@pytest.mark.only_on("debian13")
def test_failed_dump_leaves_no_backup(host, backups, sql):
    """A table that PostgreSQL cannot read: nothing of the run can be taken for a backup."""
    before = backups.known("local")
    sql("CREATE TABLE broken (x text); INSERT INTO broken SELECT repeat('x', 500) FROM generate_series(1, 100)")
    file = "/var/lib/postgresql/*/main/" + sql("SELECT pg_relation_filepath('broken')")
    # Not postgresql.service, which has stopped before the server has written its memory to the file.
    host.check_output("systemctl stop 'postgresql@*'")
    host.check_output(f"dd if=/dev/urandom of=$(echo {file}) bs=8192 count=1 conv=notrunc status=none")
    host.check_output("systemctl start postgresql")
    try:
        assert host.run(backups.cron_command()).rc != 0
        assert host.check_output("systemctl show -P ExecMainStatus chatbot-backup") == "20"
        assert backups.metrics()["backup_last_exit_code"] == {"local": 20, "offsite": 20}
        assert backups.known("local") == before
    finally:
        sql("DROP TABLE broken")


@pytest.mark.only_on("debian12")
def test_unknown_database_is_named(host, backups):
    settings = backups.with_settings(database="missing")
    result = host.run(f"{settings} chatbot-backup run --repository local")
    assert result.rc == 20
    assert 'database "missing" does not exist' in result.stderr


@pytest.mark.only_on("debian12")
def test_unreadable_files_are_no_good_backup(host, backups):
    """A directory that vanishes cannot be tested at will; one that the kernel refuses to read can."""
    before = backups.known("local")
    settings = backups.with_settings(paths=["/etc/chatbot", "/proc/self/mem"], database="")
    result = host.run(f"{settings} chatbot-backup run --repository local")
    assert result.rc == 3, result.stderr
    assert "tagged incomplete" in result.stderr
    assert backups.known("local") == before
    assert json.loads(backups.restic("local", "snapshots --json --tag incomplete"))


@pytest.mark.only_on("debian12")
def test_clock_that_jumped(host, backups, playbook):
    """A year ahead in one night, a year behind in the next, then right: the latest backup is one of the right time.

    restic has the machine's own time: what is recorded, shown and chosen is the program's.
    """
    shown = "LD_PRELOAD=$(ls /usr/lib/*/faketime/libfaketime.so.1) FAKETIME='{}' chatbot-backup run"
    right = backups.make()
    host.check_output(shown.format("+400d"))
    ahead = {name: backups.known(name)[-1]["backup"] for name in ("local", "offsite")}
    try:
        age = float(host.check_output("date +%s")) - backups.metrics()["backup_last_success_timestamp_seconds"]["local"]
        assert age < -399 * 86400, "BackupFromTheFuture fires"
        plan = json.loads(host.check_output("chatbot-backup plan"))
        assert (plan["backup"], plan["passed_over"]) == (right, [ahead["local"]])
        assert f"because their time is yet to come: {ahead['local']}" in playbook("restore.yml", "--check").words
        by_name = host.check_output("chatbot-backup plan --at %s", ahead["local"])
        assert json.loads(by_name)["backup"] == ahead["local"]

        host.check_output(shown.format("-400d"))
        age = float(host.check_output("date +%s")) - backups.metrics()["backup_last_success_timestamp_seconds"]["local"]
        assert age > 399 * 86400, "BackupTooOld fires"
        assert json.loads(host.check_output("chatbot-backup plan"))["backup"] == right
        host.check_output("systemctl start chatbot-backup")
        plan = json.loads(host.check_output("chatbot-backup plan"))
        assert right < plan["backup"] < ahead["local"]
    finally:
        for repository, name in ahead.items():
            ours = [each["id"] for each in backups.snapshots(repository) if f"run-{name}" in (each.get("tags") or [])]
            backups.restic(repository, f"forget --quiet {' '.join(ours)}")
    recovered(backups)
