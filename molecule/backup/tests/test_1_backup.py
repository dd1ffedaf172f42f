"""Backups as an operator lives with them: made by cron's command, in several places, listed, dropped in time."""

import json

import pytest

pytestmark = pytest.mark.timeout(900)

UPLOADS = "/var/lib/chatbot/uploads"


def test_cron_makes_a_whole_backup_in_every_repository(host, backups):
    assert host.service("cron").is_running
    before = {name: {row["backup"] for row in backups.known(name)} for name in ("local", "offsite")}
    host.check_output(backups.cron_command())
    for repository in before:
        (new,) = [row for row in backups.known(repository) if row["backup"] not in before[repository]]
        assert new["purpose"] == "chatbot"
        content = backups.restic(repository, f"ls {new['parts']['files']}")
        assert f"{UPLOADS}/report.txt" in content
        assert "/etc/chatbot/secret" in content
        assert "/opt/chatbot/releases/r1/manifest.json" in content
        assert "/opt/chatbot/releases/r1/source" not in content
        assert "/etc/chatbot-backup" not in content
        assert "/database.dump" in backups.restic(repository, f"ls {new['parts']['database']}")
    assert host.check_output("ls -A /var/lib/chatbot-backup | grep -c -e staging -e dump || true") == "0"


def test_manifest_says_what_is_in_the_backup(host, backups, sql):
    name = backups.make()
    (row,) = [row for row in backups.known("offsite") if row["backup"] >= name]
    manifest = json.loads(backups.restic("offsite", f"dump {row['snapshot']} /manifest.json"))
    assert manifest["release"] == "r1"
    assert manifest["database"]["rows"] == {"public.conversations": 10, "public.messages": 1000}
    assert manifest["database"]["postgresql"] == sql("SHOW server_version")
    expected = host.check_output("sha256sum %s/report.txt", UPLOADS).split()[0]
    assert manifest["files"]["uploads"]["sha256"]["report.txt"] == expected
    dump = backups.restic("offsite", f"dump {row['parts']['database']} /database.dump | sha256sum").split()[0]
    assert manifest["database"]["dump_sha256"] == dump


@pytest.mark.only_on("debian13")
def test_rows_of_the_manifest_are_those_of_the_dump(host, backups, sql):
    """Somebody writes all the time: counted rows and dumped rows must be of one moment."""
    sql("CREATE TABLE busy (id int)")
    writer = (
        "for n in $(seq 3000); do echo 'INSERT INTO busy VALUES (1);'; done | runuser -u postgres -- psql -Xq chatbot"
    )
    host.run(f"cd / && ({writer}) >/dev/null 2>&1 &")
    try:
        name = backups.make()
        (row,) = [row for row in backups.known("local") if row["backup"] == name]
        manifest = json.loads(backups.restic("local", f"dump {row['snapshot']} /manifest.json"))
        dump = f"dump {row['parts']['database']} /database.dump | pg_restore --data-only --table=busy -f - | grep -cx 1"
        assert int(backups.restic("local", dump)) == manifest["database"]["rows"]["public.busy"]
    finally:
        sql("DROP TABLE busy")


@pytest.mark.only_on("debian13")
def test_metrics_are_written_whole_for_every_repository(host, backups):
    backups.make()
    values = backups.metrics()
    now = float(host.check_output("date +%s"))
    for repository in ("local", "offsite"):
        assert abs(values["backup_last_success_timestamp_seconds"][repository] - now) < 60
        assert values["backup_last_run_success"][repository] == 1
        assert values["backup_size_bytes"][repository] >= values["backup_database_dump_bytes"][repository] > 10_000
    directory = "/var/lib/prometheus/node-exporter"
    assert host.file(f"{directory}/chatbot_backup.prom").mode == 0o644
    assert not [name for name in host.check_output("ls -A %s", directory).split() if not name.endswith(".prom")]


@pytest.mark.only_on("debian12")
def test_repositories_are_encrypted_and_private(host, backups):
    backups.make()
    for plain in ("a remarkable sentence", "an uploaded file", "a configuration that nobody may read", "report.txt"):
        assert host.run("grep -rqaF %s /var/backups/chatbot /srv/offsite", plain).rc == 1
    for command in ("ls /var/backups/chatbot", "cat /etc/chatbot-backup/settings.json"):
        assert host.run(f"setpriv --reuid=nobody --regid=nogroup --clear-groups {command}").rc != 0


@pytest.mark.only_on("debian12")
def test_database_of_sqlite_is_copied_whole(host, backups):
    """A writer in the middle of a transaction: the copy has all of it or nothing."""
    script = (
        "import sqlite3; c = sqlite3.connect('/var/lib/grafana/grafana.db'); c.execute('create table t (x)');"
        " c.execute('insert into t values (1)'); c.commit()"
    )
    host.check_output("mkdir -p /var/lib/grafana && rm -f /var/lib/grafana/grafana.db && python3 -c %s", script)
    backups.make()
    row = backups.known("local")[-1]
    host.check_output(
        f"chatbot-backup restic dump {row['parts']['files']} /var/lib/chatbot-backup/staging/grafana.db > /root/copy.db"
    )
    count = "import sqlite3; print(sqlite3.connect('/root/copy.db').execute('select count(*) from t').fetchone()[0])"
    assert host.check_output("python3 -c %s", count) == "1"


@pytest.mark.only_on("debian12")
def test_retention_is_each_repositorys_own(host, backups):
    """Backups of the last days and weeks: of local 7 days and 4 weeks stay, of offsite 3 days and 2 weeks."""
    settings = backups.with_settings(host="ancient", database="")
    for repository in ("local", "offsite"):
        # A manifest is what makes a backup, and what retention counts.
        host.check_output(
            "for day in 1 2 3 4 5 6 7 8 14 21 28 35; do"
            " echo '{}' | chatbot-backup restic --repository %s backup --quiet"
            ' --host ancient --tag chatbot --tag manifest --tag "run-$(date -d "$day days ago" +%%Y%%m%%dT030000Z)"'
            ' --time "$(date -d "$day days ago" "+%%F 03:00:00")" --stdin --stdin-filename manifest.json; done',
            repository,
        )
    own = {s["id"] for s in backups.snapshots("local") if s["hostname"] != "ancient"}
    host.check_output(f"{settings} chatbot-backup run")
    for repository, days, weeks in (("local", 7, 4), ("offsite", 3, 2)):
        rows = json.loads(host.check_output(f"{settings} chatbot-backup list --json --repository {repository}"))
        kept = sorted(row["backup"][:8] for row in rows)
        wanted = [host.check_output("date -d %s +%%Y%%m%%d", f"{day} days ago") for day in range(days)]
        assert set(wanted) <= set(kept)
        # The newest week or two are among the days already.
        assert days + weeks - 2 <= len(kept) <= days + weeks - 1
        assert kept[0] >= host.check_output("date -d %s +%%Y%%m%%d", f"{7 * weeks} days ago")
    assert {s["id"] for s in backups.snapshots("local") if s["hostname"] != "ancient"} == own
    for repository in ("local", "offsite"):
        backups.restic(repository, "forget --quiet --host ancient --group-by host --keep-last 1 --prune")


@pytest.mark.only_on("debian13")
def test_repository_that_only_grows_is_a_repository_as_others(host, backups):
    """A server that lets this host add and not delete: whoever breaks in here cannot delete what is there."""
    host.check_output(
        "systemctl is-active -q grows || systemd-run --quiet --unit=grows"
        " rclone serve restic --append-only --addr 127.0.0.1:8300 /srv/grows"
    )
    place = {"repository": "rest:http://127.0.0.1:8300/", "append_only": True, "keep_daily": 1, "keep_weekly": 1}
    settings = backups.with_settings(offsite=place, connect_timeout=20)
    try:
        assert "offsite: a new repository was made" in host.run(f"{settings} chatbot-backup init").stderr
        for _ in range(2):
            host.check_output(f"{settings} chatbot-backup run --repository offsite")
        rows = json.loads(host.check_output(f"{settings} chatbot-backup list --json --repository offsite"))
        assert len(rows) == 2
        host.run(f"{settings} chatbot-backup restic --repository offsite forget {rows[0]['snapshot']}")
        assert len(json.loads(host.check_output(f"{settings} chatbot-backup list --json --repository offsite"))) == 2
        host.check_output(f"{settings} chatbot-backup drill")
    finally:
        host.check_output("systemctl stop grows; rm -rf /srv/grows")


@pytest.mark.only_on("debian12")
def test_check_reads_the_repositories(host, backups):
    host.check_output(backups.cron_command("chatbot-backup-check.service"))
    assert backups.metrics("chatbot_backup_check")["backup_check_success"] == {"local": 1, "offsite": 1}


@pytest.mark.only_on("debian13")
def test_playbooks_back_up_and_list(backups, playbook):
    result = playbook("backup.yml")
    assert result.code == 0, result.output
    newest = [backups.known(name)[-1]["backup"] for name in ("local", "offsite")]
    listed = playbook("backups.yml").output
    for name in newest:
        assert f"Backup {name} in" in result.output
        assert name in listed


def test_second_converge_needs_no_new_repository(host):
    said = host.run("chatbot-backup init").stderr
    assert said.count("the repository is there") == 2
