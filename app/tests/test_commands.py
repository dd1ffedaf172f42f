"""The commands for accounts, invitations, tokens and sessions."""

import io
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chatbot.__main__ import main
from chatbot.database import Attachment, Conversation, Database
from chatbot.factory import create_app
from chatbot.settings import load_settings
from flask import Flask
from support import EMAIL, PASSWORD, close, create_schema, environment, sign_in, signed_in
from test_identity import bearer

type Run = Callable[..., tuple[int, str, str]]
ADMIN = "admin@example.org"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str) -> Run:
    """Runs a command on a migrated database of each kind: its status, output and errors."""
    variables = environment("http://127.0.0.1:9/v1", database_url, sign_up="invitation")
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("logging.config.dictConfig", lambda _: None)

    def command(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["chatbot", *arguments])
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        status = main()
        return status, *capsys.readouterr()

    create_schema(load_settings(variables))
    return command


@pytest.fixture
def app(run: Run) -> Iterator[Flask]:
    """The application on the same database, where EMAIL has an account."""
    assert create(run)[0] == 0
    app = create_app(load_settings())
    yield app
    close(app.extensions["database"])


def create(run: Run, email: str = EMAIL, *options: str, password: str = PASSWORD) -> tuple[int, str, str]:
    return run("account", "create", email, *options, "--password-file", "-", stdin=f"{password}\n")


def rows(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_the_first_administrator_is_made_once(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    command = ("account", "create", "Admin@example.org", "--admin", "--if-missing", "--password-file", str(file))
    assert run(*command) == (0, f"created: {ADMIN} (admin)\n", "")
    before = run("account", "list")
    file.write_text("another good one\n")
    assert run(*command) == (0, f"unchanged: {ADMIN} exists\n", "")
    assert run("account", "list") == before
    (account,) = rows(before[1])
    assert (account["email"], account["role"], account["password"]) == (ADMIN, "admin", True)
    app = create_app(load_settings())
    assert sign_in(app.test_client(), ADMIN).status_code == 200
    close(app.extensions["database"])


def test_an_account_that_exists_is_an_error_of_one_line(run: Run) -> None:
    assert create(run) == (0, f"created: {EMAIL} (user)\n", "")
    assert create(run) == (1, "", f"chatbot: {EMAIL} has an account already\n")


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (("account", "create", EMAIL), "", "use --password-file"),
        (("account", "create", EMAIL, "--password-file", "-"), "short\n", "has 12 to 1024 characters"),
        (("account", "create", EMAIL, "--password-file", "/nonexistent"), "", "No such file"),
        (("account", "create", EMAIL, "--password-file", "-", "--no-password"), PASSWORD, "exclude each other"),
        (("account", "create", "nobody", "--no-password"), "", "is not an e-mail address"),
        (("account", "create", EMAIL, "--password", PASSWORD), "", "No such option"),
        (("account", "set-role", EMAIL, "emperor"), "", "emperor"),
        (("account", "disable", EMAIL), "", "there is no account"),
        (("account", "set-budget", EMAIL, "-5"), "", "No such option"),
        (("account", "set-budget", EMAIL, "many"), "", "neither a number nor default"),
        (("account", "delete", EMAIL, "--yes"), "", "there is no account"),
        (("token", "create", EMAIL, "--name", "x", "--scope", "read"), "", "there is no account"),
        (("token", "create", EMAIL, "--name", "x", "--scope", "root"), "", "root"),
        (("token", "revoke", "1"), "", "not a valid UUID"),
        (("token", "revoke", "00000000-0000-4000-8000-000000000000"), "", "there is no token"),
        (("invitation", "revoke", "00000000-0000-4000-8000-000000000000"), "", "there is no invitation"),
        (("sessions", "revoke"), "", "name an account, or --all"),
        (("sessions", "revoke", EMAIL, "--all"), "", "name an account, or --all"),
        (("conversations", "assign", EMAIL), "", "name an --owner, or --ownerless"),
    ],
)
def test_what_is_wrong_is_said(run: Run, arguments: tuple[str, ...], stdin: str, words: str) -> None:
    status, out, err = run(*arguments, stdin=stdin)
    assert (status in (1, 2), out) == (True, "")
    assert words in err
    assert "Traceback" not in err
    assert rows(run("account", "list")[1]) == []


def test_before_the_migration_nothing_is_touched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for key, value in environment("http://m/v1", f"sqlite:///{tmp_path}/empty.db").items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("logging.config.dictConfig", lambda _: None)
    monkeypatch.setattr("sys.argv", ["chatbot", "account", "list"])
    assert main() == 1
    err = capsys.readouterr().err
    assert (err.count("\n"), "run python -m chatbot migrate" in err) == (1, True)


def test_disabling_and_enabling(run: Run, app: Flask) -> None:
    client = signed_in(app)
    assert run("account", "disable", EMAIL) == (0, f"disabled: {EMAIL}\n", "")
    assert client.get("/api/v1/account").status_code == 401
    assert sign_in(app.test_client()).status_code == 403
    assert run("account", "enable", EMAIL) == (0, f"enabled: {EMAIL}\n", "")
    assert sign_in(app.test_client()).status_code == 200


def test_roles_and_budgets(run: Run, app: Flask) -> None:
    client = signed_in(app)
    assert run("account", "set-role", EMAIL, "admin") == (0, f"changed: {EMAIL} (admin)\n", "")
    assert client.get("/api/v1/admin/accounts").status_code == 200
    assert run("account", "set-budget", EMAIL, "5")[0] == 0
    assert client.get("/api/v1/account/usage").get_json()["budget"] == 5
    assert run("account", "set-budget", EMAIL, "default")[0] == 0
    assert client.get("/api/v1/account/usage").get_json()["budget"] is None


def test_a_new_password_signs_out_everywhere(run: Run, app: Flask) -> None:
    client = signed_in(app)
    result = run("account", "set-password", EMAIL, "--password-file", "-", stdin="another good one")
    assert result == (0, f"changed: {EMAIL}\n", "")
    assert client.get("/api/v1/account").status_code == 401
    assert sign_in(app.test_client()).status_code == 401
    assert sign_in(app.test_client(), password="another good one").status_code == 200


def test_a_password_that_is_typed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("click.termui.hidden_prompt_func", lambda _: PASSWORD)
    monkeypatch.setattr("chatbot.commands.can_ask", lambda: True)
    status, out, _ = run("account", "create", EMAIL)
    assert (status, out.splitlines()[-1]) == (0, f"created: {EMAIL} (user)")


def test_deleting_asks_first(run: Run, app: Flask) -> None:
    client = signed_in(app)
    client.post("/api/v1/conversations")
    assert run("account", "delete", EMAIL, stdin="n\n")[0] == 1
    assert client.get("/api/v1/account").status_code == 200
    assert run("account", "delete", EMAIL, "--yes") == (0, f"deleted: {EMAIL}\n", "")
    assert client.get("/api/v1/account").status_code == 401
    with app.extensions["database"].session() as session:
        assert session.query(Conversation).count() == 0


def test_invitations(run: Run, app: Flask) -> None:
    status, out, _ = run("invitation", "create", "--email", "Friend@example.org", "--days", "1")
    assert (status, out.startswith("/?invitation=")) == (0, True)
    code = out.strip().removeprefix("/?invitation=")
    (row,) = rows(run("invitation", "list")[1])
    assert (row["email"], row["used_at"]) == ("friend@example.org", None)
    body = {"email": "friend@example.org", "password": PASSWORD, "invitation": code}
    assert app.test_client().post("/api/v1/account", json=body).status_code == 201
    assert rows(run("invitation", "list")[1])[0]["used_at"] is not None
    assert run("invitation", "revoke", row["id"]) == (0, f"revoked: {row['id']}\n", "")
    assert run("invitation", "list")[1] == ""


def test_tokens(run: Run, app: Flask) -> None:
    status, out, err = run("token", "create", EMAIL, "--name", "probe", "--scope", "read", "--days", "1")
    assert (status, err) == (0, "")
    token = bearer(app, out.strip())
    assert token.get("/api/v1/account").status_code == 200
    assert token.post("/api/v1/conversations").status_code == 403
    listed = run("token", "list", EMAIL)[1]
    assert out.strip() not in listed
    (row,) = rows(listed)
    assert (row["name"], row["scopes"], row["email"]) == ("probe", ["read"], EMAIL)
    assert rows(run("token", "list")[1]) == [row]
    assert run("token", "revoke", row["id"])[0] == 0
    assert token.get("/api/v1/account").status_code == 401
    refused = run("token", "create", EMAIL, "--name", "x", "--scope", "admin")
    assert refused == (1, "", f"chatbot: {EMAIL} is no administrator\n")


def test_a_token_that_was_made_elsewhere(run: Run, app: Flask) -> None:
    first, second = "cbt_" + "1" * 40, "cbt_" + "2" * 40
    command = ("token", "create", EMAIL, "--name", "probe", "--scope", "chat", "--secret-file", "-")
    assert run(*command, stdin=f"{first}\n") == (0, "created: probe\n", "")
    assert run(*command, stdin=f"{first}\n") == (0, "unchanged: probe\n", "")
    assert bearer(app, first).post("/api/v1/conversations").status_code == 201
    assert run(*command, stdin=second) == (0, "created: probe\n", "")
    assert bearer(app, first).get("/api/v1/account").status_code == 401
    assert bearer(app, second).get("/api/v1/account").status_code == 200
    assert run(*command, stdin="cbt_short")[0] == 1


def test_a_token_of_an_account_that_is_made_with_it(run: Run, app: Flask) -> None:
    token = "cbt_" + "3" * 40
    command = ("token", "create", "new@example.org", "--new-account", "--name", "probe", "--scope", "chat")
    for said in ("created: probe\n", "unchanged: probe\n"):
        assert run(*command, "--secret-file", "-", stdin=token) == (0, said, "")
    assert bearer(app, token).get("/api/v1/account").get_json()["email"] == "new@example.org"
    assert [row["email"] for row in rows(run("account", "list", "--search", "new@")[1])] == ["new@example.org"]


def test_signing_out_from_the_command_line(run: Run, app: Flask) -> None:
    clients = [signed_in(app), signed_in(app)]
    assert run("sessions", "revoke", EMAIL) == (0, "revoked: 2\n", "")
    assert [client.get("/api/v1/account").status_code for client in clients] == [401, 401]
    signed_in(app)
    assert run("sessions", "revoke", "--all") == (0, "revoked: 1\n", "")


def test_a_deleted_account_leaves_no_files(
    run: Run, app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATBOT_DATA_DIRECTORY", str(tmp_path))
    conversation = uuid.UUID(signed_in(app).post("/api/v1/conversations").get_json()["id"])
    attachment = Attachment(id=uuid.uuid4(), conversation_id=conversation, name="a", type="text/plain", bytes=1)
    file, other = (tmp_path / "uploads" / str(name) for name in (attachment.id, uuid.uuid4()))
    file.parent.mkdir()
    file.write_bytes(b"x")
    other.write_bytes(b"x")
    with app.extensions["database"].session() as session:
        session.add(attachment)
    assert run("account", "delete", EMAIL, "--yes") == (0, f"deleted: {EMAIL}\n", "")
    assert (file.exists(), other.exists()) == (False, True)


def test_old_conversations_find_an_owner(run: Run, app: Flask) -> None:
    database: Database = app.extensions["database"]
    with database.session() as session:
        session.add_all([Conversation(owner="a"), Conversation(owner="a"), Conversation(owner=None)])
    client = signed_in(app)
    mine = client.post("/api/v1/conversations").get_json()["id"]
    counted = {row["owner"]: row["conversations"] for row in rows(run("conversations", "list-unassigned")[1])}
    assert counted == {"a": 2, None: 1}
    assert run("conversations", "assign", EMAIL, "--ownerless") == (0, "assigned: 1\n", "")
    assert run("conversations", "assign", EMAIL, "--owner", "a") == (0, "assigned: 2\n", "")
    assert run("conversations", "assign", EMAIL, "--owner", "a") == (0, "assigned: 0\n", "")
    listed = client.get("/api/v1/conversations").get_json()["conversations"]
    assert (len(listed), mine in {each["id"] for each in listed}) == (4, True)
