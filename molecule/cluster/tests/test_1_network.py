"""Who reaches whom: the databases are the application's alone, and the application nginx's."""

from __future__ import annotations

import pytest
from conftest import APPLICATION, address, on, state

CONNECT = "timeout 4 bash -c '</dev/tcp/{}/{}' 2>/dev/null && echo open || echo shut"
# In the application's container, with its own settings but for the part that is asked for.
WITHOUT_TLS = """docker exec -i chatbot-{} python - <<'END'
import os, psycopg
from pathlib import Path
url = os.environ["CHATBOT_DATABASE_URL"].replace("+psycopg", "").partition("?")[0]
try:
    psycopg.connect(url, sslmode="disable", connect_timeout=5,
                    password=Path(os.environ["CHATBOT_DATABASE_PASSWORD_FILE"]).read_text())
except psycopg.OperationalError as error:
    print(error)
END"""
ANOTHER_CERTIFICATE = """docker exec -i chatbot-{} python - <<'END'
import os, psycopg
url = os.environ["CHATBOT_DATABASE_URL"].replace("+psycopg", "").partition("?")[0]
try:
    psycopg.connect(url, sslmode="verify-full", sslrootcert=os.environ["SSL_OTHER"], connect_timeout=5)
except psycopg.OperationalError as error:
    print(error)
END"""


def asked(source: str, target: str, port: int) -> str:
    return on(source, CONNECT.format(address(target), port))


@pytest.mark.parametrize("port", [5432, 6379])
def test_databases_are_open_to_the_application_alone(port):
    assert {name: asked(name, "db1", port) for name in (*APPLICATION, "edge1")} == {
        "app1": "open",
        "app2": "open",
        "edge1": "shut",
    }


def test_every_connection_of_the_application_is_encrypted():
    query = (
        "SELECT client_addr, bool_and(ssl), min(version) FROM pg_stat_activity JOIN pg_stat_ssl USING (pid)"
        " WHERE usename = 'chatbot' GROUP BY client_addr"
    )
    rows = on("db1", f'cd /; runuser -u postgres -- psql -AtX -c "{query}"').splitlines()
    assert sorted(rows) == sorted(f"{address(name)}|t|TLSv1.3" for name in APPLICATION)


def test_password_is_not_taken_without_encryption():
    assert "no encryption" in on("app1", WITHOUT_TLS.format(state("app1")["colour"]))


def test_another_certificate_is_not_taken():
    """Valkey's is as good as any, and not PostgreSQL's."""
    script = ANOTHER_CERTIFICATE.replace("exec -i", "exec -i -e SSL_OTHER=/etc/chatbot/certificates/valkey.crt")
    assert "certificate verify failed" in on("app1", script.format(state("app1")["colour"]))


def test_valkey_says_nothing_without_encryption():
    script = f"exec 3<>/dev/tcp/{address('db1')}/6379; echo PING >&3; timeout 4 cat <&3 | head -c 100"
    assert "PONG" not in on("app1", f"bash -c '{script}' || true")


def test_application_is_open_to_nginx_alone():
    port = {"blue": 8101, "green": 8102}[state("app1")["colour"]]
    assert {name: asked(name, "app1", port) for name in ("edge1", "db1", "app2")} == {
        "edge1": "open",
        "db1": "shut",
        "app2": "shut",
    }


def test_nothing_else_listens_to_the_network():
    listening = "ss -ltnH | awk '{print $4}' | grep -v '^127\\|^\\[::1\\]\\|:22$' | sort -u || true"
    assert {name: [line.rpartition(":")[2] for line in on(name, listening).split()] for name in ("db1", "edge1")} == {
        "db1": ["5432", "6379"],
        "edge1": ["443", "80", "443", "80"],
    }
