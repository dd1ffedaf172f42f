"""The drill: good backups are proven aside; one that restic calls good and that cannot be used is found."""

import json

import pytest

pytestmark = pytest.mark.timeout(900)

RULES = "backup_drill_success"


@pytest.mark.usefixtures("untouched")
def test_good_backup_is_proven_and_measured(host, backups, playbook):
    backups.make()
    result = playbook("restore_drill.yml")
    assert result.code == 0, result.output
    assert "1010 rows and 1 uploads as recorded" in result.words
    values = backups.metrics("chatbot_backup_drill")
    now = float(host.check_output("date +%s"))
    assert abs(values["backup_last_verified_restore_timestamp_seconds"]["offsite"] - now) < 60
    assert values[RULES] == {"offsite": 1}
    assert values["backup_recovery_time_seconds"]["offsite"] > 0
    assert values["backup_recovery_point_seconds"]["offsite"] > 0
    # Nothing is left of it.
    assert host.check_output("ls -A /var/lib/chatbot-drill") == ""
    assert host.run("pgrep -af [/]var/lib/chatbot-drill").rc == 1


def forge(host, backups, dump: str) -> None:
    """Add a backup to the off-site repository that is the newest one with its dump made by another command."""
    row = backups.known("offsite")[-1]
    restic = "chatbot-backup restic --repository offsite"
    name = host.check_output("date -u +%Y%m%dT%H%M%SZ")
    host_name = json.loads(host.check_output("cat /etc/chatbot-backup/settings.json"))["host"]
    store = f"{restic} backup --quiet --host {host_name} --tag chatbot --tag run-{name}"
    host.check_output(
        f"set -e; {restic} dump {row['parts']['database']} /database.dump > /root/whole.dump; {dump};"
        f" {store} --tag part-database --stdin --stdin-filename database.dump < /root/forged.dump;"
        f" {store} --tag part-files /var/lib/chatbot/uploads;"
        f" {restic} dump {row['snapshot']} /manifest.json > /root/manifest.json;"
        f" {store} --tag manifest --stdin --stdin-filename manifest.json < /root/manifest.json;"
        " rm /root/*.dump /root/manifest.json"
    )


@pytest.mark.only_on("debian13")
@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("dump", "words"),
    [
        ("(size=$(stat -c %s /root/whole.dump); head -c $((size * 6 / 10)) /root/whole.dump) > /root/forged.dump",
         "could not be restored"),
        # As pg_dump makes it, whole and readable, and yet not of the rows that were counted.
        ("cd / && runuser -u postgres -- pg_dump --format=custom --compress=0 --exclude-table-data=messages chatbot"
         " > /root/forged.dump", "table public.messages has 0 rows instead of 1000"),
    ],
    ids=["truncated", "rows are missing"],
)  # fmt: skip
def test_unusable_dump_is_found_though_the_check_calls_it_good(host, backups, dump, words):
    backups.make()
    good = backups.metrics("chatbot_backup_drill").get("backup_last_verified_restore_timestamp_seconds")
    forge(host, backups, dump)
    backups.restic("offsite", "check --read-data")
    host.check_output("systemctl start chatbot-backup-check")
    assert backups.metrics("chatbot_backup_check")["backup_check_success"]["offsite"] == 1

    assert host.run(backups.cron_command("chatbot-backup-drill.service")).rc != 0
    log = host.check_output("journalctl --unit chatbot-backup-drill --lines 5 --output cat --no-pager")
    assert words in log
    values = backups.metrics("chatbot_backup_drill")
    assert values[RULES]["offsite"] == 0
    assert values["backup_drill_exit_code"]["offsite"] == 21
    assert values.get("backup_last_verified_restore_timestamp_seconds") == good
    assert host.check_output("ls -A /var/lib/chatbot-drill") == ""
    # A restore of it is refused before the swap as well.
    result = host.run("chatbot-backup restore --from offsite --what database")
    assert result.rc == 21
    assert "Nothing was changed" in result.stderr
    backups.make()
    host.check_output("chatbot-backup drill")
    assert backups.metrics("chatbot_backup_drill")[RULES]["offsite"] == 1
