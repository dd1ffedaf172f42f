import re
from pathlib import Path

import pytest
from chatbot.factory import create_app
from chatbot.migrate import migrate
from flask.testing import FlaskClient
from support import APP, close, make_settings


def test_the_page_loads_only_its_own_files(client: FlaskClient) -> None:
    response = client.get("/")
    assert response.status_code == 200
    links = re.findall(r'<(?:link|script|img)[^>]* (?:src|href)="([^"]+)"', response.text)
    assert len(links) == 3
    for link in links:
        assert link.startswith("/static/")
        with client.get(link) as file:
            assert file.status_code == 200


def test_the_policy_forbids_everything_else(client: FlaskClient) -> None:
    response = client.get("/")
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*src=)|<style| on\w+=| style=", response.text)


def test_text_of_the_model_is_never_html() -> None:
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", (APP / "chatbot/static/chat.js").read_text()
    )


@pytest.mark.parametrize("demo", ["true", "false"])
def test_a_demo_model_is_announced(tmp_path: Path, demo: str) -> None:
    settings = make_settings(database_url=f"sqlite:///{tmp_path}/test.db", demo_model=demo, model_name="<b>name</b>")
    migrate(settings)
    app = create_app(settings)
    page = app.test_client().get("/").text
    assert ("small demo model" in page) == (demo == "true")
    assert "&lt;b&gt;name" in page
    close(app.extensions["database"])
