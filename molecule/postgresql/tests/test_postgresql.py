"""PostgreSQL as the application, the exporter, an intruder and an operator see it."""

import re
import socket
import time

import pytest
from testbed.verify import eventually

RUN_AS = {
    "nobody": "setpriv --reuid=nobody --regid=nogroup --clear-groups",
    "prometheus": "setpriv --reuid=prometheus --regid=prometheus --clear-groups",
}


@pytest.fixture
def variables(host):
    return host.ansible.get_variables()


@pytest.fixture
def as_app(host, variables):
    """Run SQL as the application does: over the socket, with its password, as an unrelated system user."""

    def run(sql: str, password: str | None = None, database: str = "chatbot", user: str = "chatbot"):
        password = variables["chatbot_database_password"] if password is None else password
        return host.run(
            f"{RUN_AS['nobody']} env PGPASSWORD=%s psql -XAtw -h /run/postgresql -U %s -d %s -c %s",
            password,
            user,
            database,
            sql,
        )

    return run


@pytest.fixture
def as_admin(host):
    def run(sql: str, database: str = "postgres") -> str:
        return host.check_output("cd / && runuser -u postgres -- psql -XAt -d %s -c %s", database, sql)

    return run


def metrics(host) -> str:
    read = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9187/metrics').read().decode())"
    return host.check_output("python3 -c %s", read)


def test_application_owns_its_database(as_app):
    result = as_app("CREATE TABLE probe (id int); INSERT INTO probe VALUES (7); SELECT id FROM probe; DROP TABLE probe")
    assert result.rc == 0, result.stderr
    assert "7" in result.stdout.split()


def test_wrong_password_is_refused(as_app):
    result = as_app("SELECT 1", password="wrong")
    assert result.rc != 0
    assert "password authentication failed" in result.stderr


def test_application_cannot_become_more(as_app):
    assert as_app("CREATE ROLE intruder").rc != 0
    assert as_app("CREATE DATABASE loot").rc != 0
    assert as_app("SELECT pg_read_file('/etc/passwd')").rc != 0
    assert as_app("COPY (SELECT 1) TO PROGRAM 'id'").rc != 0


@pytest.mark.parametrize(
    ("database", "user"), [("postgres", "chatbot"), ("chatbot", "prometheus"), ("chatbot", "postgres")]
)
def test_other_doors_are_closed(as_app, database, user):
    result = as_app("SELECT 1", database=database, user=user)
    assert result.rc != 0


def test_password_is_stored_as_scram(as_admin):
    stored = as_admin("SELECT left(rolpassword, 14) FROM pg_authid WHERE rolname = 'chatbot'")
    assert stored.strip() == "SCRAM-SHA-256$"


def test_no_port_is_open(host):
    """From another host, and on loopback: only the exporter, and that only on loopback."""
    address = host.ansible.get_variables()["ansible_host"]
    for port in (5432, 9187):
        with pytest.raises(OSError), socket.create_connection((address, port), timeout=3):
            pass
    assert not host.socket("tcp://127.0.0.1:5432").is_listening
    assert host.socket("tcp://127.0.0.1:9187").is_listening


def test_exporter_reports_the_database(host):
    eventually(lambda: "\npg_up 1" in metrics(host))
    assert re.search(r'^pg_database_size_bytes{datname="chatbot".*} \d', metrics(host), re.MULTILINE)


def test_exporter_reads_statistics_but_no_messages(host):
    sql = "SELECT count(*) FROM pg_stat_activity WHERE query IS NOT NULL"
    result = host.run(f"{RUN_AS['prometheus']} psql -XAtw -h /run/postgresql -d postgres -c %s", sql)
    assert result.rc == 0, result.stderr
    assert host.run(f"{RUN_AS['prometheus']} psql -XAtw -h /run/postgresql -d chatbot -c 'SELECT 1'").rc != 0


def test_settings_are_in_force(as_admin):
    """What the server says, not what the file says: 512 MB were given to it."""
    assert as_admin("SHOW shared_buffers").strip() == "256MB"
    assert as_admin("SELECT count(*) FROM pg_settings WHERE pending_restart").strip() == "0"
    assert as_admin("SELECT count(*) FROM pg_file_settings WHERE error IS NOT NULL").strip() == "0"


def test_slow_statements_are_logged_without_their_values(host, variables):
    if int(host.check_output("psql --version").split()[2].split(".")[0]) < 16:
        pytest.skip("psql learned to bind parameters in version 16; the setting is the same in 15")
    sql = r"SELECT pg_sleep(1.2), length($1) \bind 'a very private message' \g"
    connect = "PGPASSWORD=%s psql -XAtw -h /run/postgresql -U chatbot -d chatbot"
    host.check_output(f"printf '%%s\\n' %s | {connect}", sql, variables["chatbot_database_password"])
    log = host.check_output("cat /var/log/postgresql/postgresql-*-main.log")
    assert "pg_sleep(1.2)" in log
    assert "a very private message" not in log


def test_killed_postmaster_comes_back(host, as_app):
    pid = host.check_output("head -1 /var/lib/postgresql/*/main/postmaster.pid")
    directory = host.check_output("stat -c %i /run/postgresql")
    host.check_output("kill -9 %s", pid)
    eventually(lambda: as_app("SELECT 1").stdout.strip() == "1")
    assert host.check_output("head -1 /var/lib/postgresql/*/main/postmaster.pid") != pid
    # The directory is mounted into the application's container: a new one would cut the application off.
    assert host.check_output("stat -c %i /run/postgresql") == directory
    eventually(lambda: "\npg_up 1" in metrics(host))


def test_after_a_power_cut_the_number_of_another_process_does_not_keep_it_down(host, as_app):
    """Debian's pg_ctlcluster takes a thread of the exporter for the cluster: `postgres` is in its command line."""
    file = host.check_output("echo /var/lib/postgresql/*/main/postmaster.pid")
    unit = f"postgresql@{file.split('/')[4]}-main"
    thread = host.check_output("ls /proc/$(systemctl show -P MainPID prometheus-postgres-exporter)/task").split()[-1]
    left = host.check_output("cat %s", file).splitlines()
    host.check_output("systemctl stop %s", unit)
    host.check_output("printf '%%s\\n' %s > %s && chown postgres: %s", "\n".join([thread, *left[1:]]), file, file)
    host.check_output("systemctl start %s", unit)
    assert as_app("SELECT 1").stdout.strip() == "1"
    # It leaves the number of its own postmaster alone, and so the file.
    host.check_output("postgresql-forget-pid %s", unit.partition("@")[2])
    assert host.check_output("head -1 %s", file) not in ("", thread)


def test_killed_exporter_comes_back(host):
    pid = host.check_output("systemctl show -P MainPID prometheus-postgres-exporter")
    host.check_output("kill -9 %s", pid)
    eventually(lambda: host.socket("tcp://127.0.0.1:9187").is_listening)


def test_administrators_stop_is_respected(host, as_app):
    version, cluster = host.check_output("pg_lsclusters --no-header").split()[:2]
    unit = f"postgresql@{version}-{cluster}"
    host.check_output("pg_ctlcluster %s %s stop", version, cluster)
    time.sleep(4)
    assert not host.service(unit).is_running
    host.check_output("systemctl start %s", unit)
    assert as_app("SELECT 1").stdout.strip() == "1"


def test_socket_directory_is_there_before_docker(host):
    """systemd-tmpfiles makes it early at boot, so a container's bind mount finds it."""
    assert host.check_output("systemd-tmpfiles --cat-config").count("d /run/postgresql ") == 1
    directory = host.check_output("stat -c %i /run/postgresql")
    host.check_output("systemctl restart postgresql")
    assert host.check_output("stat -c %i /run/postgresql") == directory


@pytest.mark.parametrize(
    "line",
    ["local chatbot chatbot trust-me", "host chatbot chatbot 10.0.0.0/99 scram-sha-256"],
)
def test_broken_hba_is_found_before_it_is_installed(host, line):
    binaries = host.check_output("ls -d /usr/lib/postgresql/*/bin")
    host.check_output("printf 'local all postgres peer\n%%s\n' %s > /root/pg_hba.conf", line)
    result = host.run("postgresql-check-hba %s /root/pg_hba.conf", binaries)
    assert result.rc == 1
    assert "pg_hba.conf is invalid" in result.stderr
    assert 'line_number = "2"' in result.stderr
