"""The API's description is whole, valid, and true of the running application."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from string import Template

import pytest
from chatbot.factory import create_app
from chatbot.openapi import routes
from fake_openai import FakeOpenAI
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import create_engine, text
from support import TOKEN, close, environment, fetch, get, gunicorn, make_settings

# Some rules cannot be written into a schema: which models, files and messages there are, what a file holds. There a
# request that fits the schema may be refused, too. The operations on messages get ones that exist, until schemathesis
# deletes them.
CONFIG = Template("""
generation = { max-examples = 15, database = "none" }
phases = { examples = { enabled = false } }
headers = { Authorization = "Bearer $token" }
# It spoils the cookie, which does not count beside a token. Who gets in is tested in test_identity.py.
checks.ignored_auth.enabled = false

[[operations]]
include-name = "DELETE /conversations"
enabled = false

[[operations]]
include-path-regex = "^/(session|account|tokens|admin)"
checks.positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "409", "422", "429"]

# No token may use these: whatever is asked, the answer is 403. What the coverage phase sends is enough to see it.
[[operations]]
include-name = [
  "DELETE /account", "PATCH /account", "POST /account/password", "GET /sessions", "DELETE /sessions",
  "DELETE /sessions/{sign_in_id}", "GET /tokens", "POST /tokens",
]
phases.fuzzing.enabled = false

[[operations]]
include-path = ["/conversations", "/conversations/{conversation_id}"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "422", "429"]

[[operations]]
include-path = "/conversations/{conversation_id}/messages"
parameters = { conversation_id = "$conversation" }
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "422", "429"]
checks.ensure_resource_availability.enabled = false

[[operations]]
include-path = "/conversations/{conversation_id}/messages/{message_id}/edit"
parameters = { conversation_id = "$conversation", message_id = "$question" }
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "422", "429"]
checks.ensure_resource_availability.enabled = false

[[operations]]
include-path-regex = "/messages/.*/(regenerate|continue|stream|stop)$$"
parameters = { conversation_id = "$conversation", message_id = "$answer" }
checks.ensure_resource_availability.enabled = false

[[operations]]
include-path = "/conversations/{conversation_id}/attachments"
# A form knows no types: whatever is sent as the file is one.
checks.negative_data_rejection.enabled = false
parameters = { conversation_id = "$conversation" }
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "409", "415", "422", "429"]
checks.ensure_resource_availability.enabled = false

[[operations]]
include-path = "/attachments/{attachment_id}/content"
parameters = { attachment_id = "$attachment" }
checks.ensure_resource_availability.enabled = false
""")


def things(url: str) -> dict[str, str]:
    """Identifiers of a conversation with a question, an answer and a file."""
    conversation = fetch(f"{url}/api/v1/conversations", {})["id"]
    get(f"{url}/api/v1/conversations/{conversation}/messages", {"content": "Hi"})
    question, answer = fetch(f"{url}/api/v1/conversations/{conversation}")["current_branch"]
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\ntext\r\n--x--\r\n'
    address = f"{url}/api/v1/conversations/{conversation}/attachments"
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Authorization": f"Bearer {TOKEN}"}
    upload = urllib.request.Request(address, form, headers)  # noqa: S310 - a test server
    with urllib.request.urlopen(upload, timeout=30) as response:  # noqa: S310
        attachment = json.load(response)["id"]
    return {"conversation": conversation, "question": question, "answer": answer, "attachment": attachment}


def make_admin(database_url: str) -> None:
    """Let TOKEN do everything that a token can."""
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE accounts SET role = 'admin'"))
        connection.execute(text("UPDATE api_tokens SET scopes = 'read chat admin'"))
    engine.dispose()


def test_every_route_is_described() -> None:
    provider = {"openid_issuer": "https://id.example.org", "openid_client_id": "chat", "openid_client_secret": "x"}
    app = create_app(make_settings(**provider))
    found = {f"{method} {rule.rule}": operation for rule, method, operation in routes(app)}
    assert "GET /api/v1/openid/callback" in found
    assert [name for name, operation in found.items() if operation is None] == [], "add @operation to their views"
    close(app.extensions["database"])


def test_the_document(client: FlaskClient) -> None:
    response = client.get("/api/v1/openapi.json")
    document = response.get_json()
    assert (response.mimetype, document["openapi"]) == ("application/json", "3.1.0")
    ask = document["paths"]["/conversations/{conversation_id}/messages"]["post"]
    assert ask["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/NewMessage"}
    assert list(ask["responses"]["200"]["content"]) == ["text/event-stream"]
    assert list(ask["responses"]["422"]["content"]) == ["application/problem+json"]
    listing = document["paths"]["/conversations"]["get"]
    assert [parameter["name"] for parameter in listing["parameters"]] == ["search", "limit", "cursor"]
    assert document["components"]["schemas"]["Message"]["properties"]["status"] == {
        "$ref": "#/components/schemas/Status"
    }


def test_the_document_says_who_may_ask(app: Flask) -> None:
    document = app.test_client().get("/api/v1/openapi.json").get_json()  # anybody may read it
    assert set(document["components"]["securitySchemes"]) == {"cookie", "csrf", "token"}
    conversations = document["paths"]["/conversations"]
    assert conversations["get"]["security"] == [{"cookie": []}, {"token": []}]
    assert conversations["post"]["security"] == [{"cookie": [], "csrf": []}, {"token": []}]
    assert {"401", "403"} <= set(conversations["get"]["responses"])
    assert document["paths"]["/tokens"]["post"]["security"] == [{"cookie": [], "csrf": []}]  # no token makes tokens
    assert document["paths"]["/health"]["get"]["security"] == []
    assert not {"401", "403"} & set(document["paths"]["/health"]["get"]["responses"])


@pytest.mark.server
@pytest.mark.timeout(300)
def test_the_running_application_is_as_described(fake: FakeOpenAI, tmp_path: Path) -> None:
    """schemathesis asks what the document allows and what it forbids, and follows what it gets."""
    data = tmp_path / "data"
    data.mkdir()
    more = {
        "data_directory": str(data),
        "rate_limit": "1000000 per minute",
        "rate_limit_address": "1000000 per minute",
        "answers_per_account": "1000",
        "workers": "1",
        "log_level": "warning",
    }
    with gunicorn(environment(fake.url, f"sqlite:///{tmp_path}/test.db", **more), tmp_path) as url:
        make_admin(f"sqlite:///{tmp_path}/test.db")
        (tmp_path / "schemathesis.toml").write_text(CONFIG.substitute(things(url), token=TOKEN))
        program = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", "schemathesis.toml"]
        command = [*program, "run", f"{url}/api/v1/openapi.json", "--seed", "1", "--no-color"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "gunicorn.log").read_text()[-5000:]
