import os
import re
from pathlib import Path

import pytest
from chatbot.settings import SECRETS, Settings, SettingsError, load_settings
from support import APP, SECRET, environment, make_settings

README = (APP / "README.md").read_text()
URL = "http://127.0.0.1:9/v1"


def load(**more: str) -> Settings:
    return load_settings(environment(URL, **({"database_url": "sqlite://"} | more)))


def test_defaults_and_types() -> None:
    settings = load(workers="3", demo_model="true", model_temperature="0.5")
    assert (settings.workers, settings.demo_model, settings.model_temperature) == (3, True, 0.5)
    assert settings.release == "development"


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load(colour="", workers="").workers == 2


def test_all_missing_settings_are_named_in_one_line() -> None:
    with pytest.raises(SettingsError) as error:
        load_settings({})
    assert "\n" not in str(error.value)
    for name in ("DATABASE_URL", "SECRET_KEY (or CHATBOT_SECRET_KEY_FILE)", "MODEL_BASE_URL", "MODEL_NAME"):
        assert f"CHATBOT_{name}" in str(error.value)


def test_a_misspelt_setting_stops_the_start() -> None:
    with pytest.raises(SettingsError, match="CHATBOT_WORKER is not a setting"):
        load(worker="2")


def test_only_secrets_can_be_files() -> None:
    with pytest.raises(SettingsError, match="CHATBOT_MODEL_NAME_FILE is not a setting"):
        load(model_name_file="/etc/hostname")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("workers", "0", "CHATBOT_WORKERS: Input should be greater than or equal to 1"),
        ("workers", "two", "CHATBOT_WORKERS: "),
        ("secret_key", "hunter2", "CHATBOT_SECRET_KEY: "),
        ("database_url", "mysql://root:hunter2@db/x", "must start with postgresql"),
        ("database_url", "hunter2", "is not a database URL"),
        ("valkey_url", "redis://hunter2", "must start with unix://"),
        ("model_base_url", "api.example.com/hunter2", "CHATBOT_MODEL_BASE_URL: "),
        ("rate_limit", "often", "CHATBOT_RATE_LIMIT: "),
        ("data_directory", "/nonexistent", "is not a directory that this user may write to"),
        ("drain_seconds", "0", "CHATBOT_DRAIN_SECONDS: Input should be greater than or equal to 1"),
        ("drain_seconds", "930", "CHATBOT_GRACEFUL_TIMEOUT (930) must be greater than CHATBOT_DRAIN_SECONDS (930)"),
        ("graceful_timeout", "900", "CHATBOT_GRACEFUL_TIMEOUT (900) must be greater than CHATBOT_DRAIN_SECONDS (900)"),
    ],
)
def test_a_malformed_setting_is_named_without_its_value(name: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        load(**{name: value})
    assert message in str(error.value)
    assert "hunter2" not in str(error.value)


def test_an_answer_may_be_longer_than_a_drain() -> None:
    """It is handed over then."""
    settings = load(stream_max_seconds="3600", drain_seconds="2", graceful_timeout="32")
    assert (settings.stream_max_seconds, settings.drain_seconds, settings.graceful_timeout) == (3600, 2, 32)


def test_secrets_come_from_files(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("pass word/@:\n")
    settings = load(database_url="postgresql://chatbot@/chatbot?host=/run/postgresql", database_password_file=str(file))
    url = settings.sqlalchemy_url()
    assert (url.password, url.drivername, url.query["host"]) == (
        "pass word/@:",
        "postgresql+psycopg",
        "/run/postgresql",
    )


def test_a_secret_given_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="both set"):
        load(secret_key_file=str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot read .*: No such file"), (b"", "is empty"), (b"\xff", "not UTF-8")]
)
def test_an_unusable_secret_file_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=f"CHATBOT_MODEL_API_KEY_FILE: .*{message}"):
        load(model_api_key_file=str(file))


def test_valkey_url_in_the_notation_of_limits() -> None:
    assert load(valkey_url="valkey+unix:///run/valkey/valkey.sock").valkey_url == "unix:///run/valkey/valkey.sock"


def test_public_settings_and_repr_hold_no_secret() -> None:
    settings = make_settings(
        database_url="postgresql://chatbot:hunter2@/x", model_api_key="sk-hunter2", valkey_password="hunter2"
    )
    shown = str(settings.public())
    assert "hunter2" not in shown
    assert SECRET not in shown + repr(settings)


def test_the_readme_has_every_setting_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `CHATBOT_(\w+)`(?: or file)? \| (.*?) \|", README, re.MULTILINE))
    assert set(rows) == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        documented = rows[name.upper()].strip("`")
        if field.is_required():
            assert documented == "required", name
        elif field.default is None:
            assert documented == "none", name
        elif name not in SECRETS:
            assert documented == str(field.default).removesuffix(".0").replace("False", "false"), name


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(URL, "sqlite://").items():
        monkeypatch.setitem(os.environ, name, value)
    assert load_settings().model_name == "test-model"
