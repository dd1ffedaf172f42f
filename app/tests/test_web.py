import re
from pathlib import Path

import pytest
from chatbot.web import CONTENT_SECURITY_POLICY
from flask import Flask
from flask.testing import FlaskClient

PAGE = '<!doctype html><script type="module" src="/static/web/assets/index-AbCd1234.js"></script><div id="app"></div>'
ROUTES = ["/", "/c/11111111-1111-1111-1111-111111111111", "/account", "/admin", "/sign-in", "/?invitation=code"]


@pytest.fixture
def build(app: Flask, tmp_path: Path) -> Path:
    """A made-up build of the web client in the place of the real one, which these tests do not need."""
    app.static_folder = str(tmp_path)
    (tmp_path / "web/assets").mkdir(parents=True)
    (tmp_path / "web/index.html").write_text(PAGE)
    (tmp_path / "web/assets/index-AbCd1234.js").write_text("export {};")
    return tmp_path / "web"


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("route", ROUTES)
def test_every_address_of_the_client_gets_its_page(client: FlaskClient, route: str) -> None:
    response = client.get(route)
    assert response.status_code == 200
    assert response.mimetype == "text/html"
    assert response.text == PAGE
    # The next release has other files: the page must be asked for each time.
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("route", ["/c/no-identifier", "/accounts", "/api/v1/nothing", "/static/web/assets/gone.js"])
def test_other_addresses_are_not_the_page(client: FlaskClient, route: str) -> None:
    response = client.get(route)
    assert response.status_code == 404
    assert response.mimetype == "application/problem+json"


@pytest.mark.usefixtures("build")
def test_files_with_a_digest_in_their_name_are_kept_for_ever(client: FlaskClient) -> None:
    with client.get("/static/web/assets/index-AbCd1234.js") as response:
        assert response.status_code == 200
        assert response.mimetype == "text/javascript"
        kept = {part.strip() for part in response.headers["Cache-Control"].split(",")}
        assert kept == {"public", "max-age=31536000", "immutable"}


@pytest.mark.usefixtures("build")
def test_only_the_build_is_served(client: FlaskClient) -> None:
    assert client.get("/static/web/assets/../index.html").status_code == 404
    assert client.get("/static/web/assets/..%2f..%2fsecret").status_code == 404


def test_a_missing_build_names_the_command_that_makes_it(client: FlaskClient, app: Flask, tmp_path: Path) -> None:
    app.static_folder = str(tmp_path)
    response = client.get("/")
    assert response.status_code == 503
    assert "make web" in response.text


def test_the_policy_forbids_everything_from_elsewhere() -> None:
    rules = dict(rule.split(" ", 1) for rule in CONTENT_SECURITY_POLICY.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert not re.search(r"unsafe|https?:|\*", CONTENT_SECURITY_POLICY)
