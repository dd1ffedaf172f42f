"""The application's settings: one typed object, read from the environment once, at start."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import limits
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

PREFIX = "CHATBOT_"
# These may also be given as <NAME>_FILE, the path of a file that holds the value.
SECRETS = ("database_password", "valkey_password", "secret_key", "model_api_key", "openid_client_secret")


class SettingsError(Exception):
    """A setting is missing, unknown or malformed. The message is one line that names it."""


def _known_limit(value: str) -> str:
    limits.parse(value)
    return value


def _known_limits(value: str) -> str:
    limits.parse_many(value)
    return value


def _listed(value: object) -> object:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


ModelName = Annotated[str, StringConstraints(min_length=1, max_length=100)]
RateLimit = Annotated[str, AfterValidator(_known_limit)]
# Several, separated by semicolons; all of them count.
RateLimits = Annotated[str, AfterValidator(_known_limits)]


class Settings(BaseModel):
    """Every setting; its variable is CHATBOT_ and the upper-case name. Meanings and units: app/README.md."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, protected_namespaces=())

    database_url: str
    database_password: SecretStr | None = None
    valkey_url: str | None = None
    valkey_password: SecretStr | None = None
    secret_key: SecretStr = Field(min_length=32)

    model_base_url: str = Field(pattern=r"^https?://")
    model_api_key: SecretStr = SecretStr("none")
    model_name: str = Field(min_length=1, max_length=100)
    model_max_tokens: int = Field(default=1024, ge=1)
    model_context_tokens: int = Field(default=8192, ge=256)
    model_temperature: float | None = Field(default=None, ge=0, le=2)
    model_timeout: float = Field(default=120, gt=0)
    model_vision: bool = False
    models: Annotated[tuple[ModelName, ...] | None, BeforeValidator(_listed)] = None
    title_model: ModelName | None = None
    system_prompt: str | None = None
    demo_model: bool = False

    release: str = Field(default="development", pattern=r"^[A-Za-z0-9._+-]{1,100}$")
    colour: Literal["blue", "green"] | None = None
    data_directory: Path | None = None

    workers: int = Field(default=2, ge=1, le=64)
    bind: str = "0.0.0.0:8000"
    stream_max_seconds: float = Field(default=300, gt=0)
    # In this order: see the head of worker.py.
    drain_seconds: int = Field(default=900, ge=1, le=86_400)
    graceful_timeout: int = Field(default=930, gt=0)
    rate_limit: RateLimit = "30 per minute"
    rate_limit_address: RateLimit = "120 per minute"
    monthly_token_budget: int | None = Field(default=None, ge=0)
    instance_token_budget: int | None = Field(default=None, ge=0)
    answers_per_account: int = Field(default=5, ge=1)
    streams_per_account: int = Field(default=20, ge=1)
    max_body_bytes: int = Field(default=1024 * 1024, ge=1024)
    max_message_chars: int = Field(default=32_000, ge=1)
    max_upload_bytes: int = Field(default=10 * 1024 * 1024, ge=1024)
    max_attachments: int = Field(default=20, ge=1)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    sign_up: Literal["closed", "invitation", "open"] = "closed"
    password_min_length: int = Field(default=12, ge=8, le=128)
    session_days: int = Field(default=30, ge=1, le=400)
    sign_in_limit: RateLimits = "5 per minute; 20 per hour"
    sign_in_limit_address: RateLimits = "30 per minute; 120 per hour"
    sign_in_limit_account: RateLimits = "100 per hour"
    sign_up_limit_address: RateLimits = "10 per hour"
    cors_origins: str | None = None

    openid_issuer: str | None = Field(default=None, pattern=r"^https?://")
    openid_client_id: str | None = None
    openid_client_secret: SecretStr | None = None
    openid_name: str = Field(default="single sign-on", max_length=50)
    openid_sign_up: bool = False

    @field_validator("database_url")
    @classmethod
    def _is_database_url(cls, value: str) -> str:
        try:
            backend = make_url(value).get_backend_name()
        except ArgumentError:
            raise ValueError("is not a database URL") from None
        if backend not in ("postgresql", "sqlite"):
            raise ValueError("must start with postgresql+psycopg:// or sqlite://")
        return value

    @field_validator("valkey_url")
    @classmethod
    def _is_valkey_url(cls, value: str | None) -> str | None:
        if value is None or value.startswith(("unix://", "valkey://", "valkeys://")):
            return value
        if value.startswith("valkey+unix://"):
            return value.removeprefix("valkey+")
        raise ValueError("must start with unix://, valkey:// or valkeys://")

    @field_validator("data_directory")
    @classmethod
    def _is_writable(cls, value: Path | None) -> Path | None:
        if value is not None and not (value.is_dir() and os.access(value, os.W_OK)):
            raise ValueError(f"{value} is not a directory that this user may write to")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: str | None) -> str | None:
        for origin in (value or "").split():
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or origin != f"{parts.scheme}://{parts.netloc}" or "*" in origin:
                raise ValueError(f"{origin} is not an origin like https://chat.example.org")
        return value

    @model_validator(mode="after")
    def _openid_is_whole(self) -> Self:
        given = [self.openid_issuer, self.openid_client_id, self.openid_client_secret]
        if any(given) and not all(given):
            raise ValueError("CHATBOT_OPENID_ISSUER, _CLIENT_ID and _CLIENT_SECRET are given together or not at all")
        return self

    @model_validator(mode="after")
    def _streams_end_before_workers(self) -> Self:
        if self.drain_seconds >= self.graceful_timeout:
            raise ValueError(
                f"CHATBOT_GRACEFUL_TIMEOUT ({self.graceful_timeout}) must be greater than CHATBOT_DRAIN_SECONDS "
                f"({self.drain_seconds}), by 30 or so, or releases cut answers off"
            )
        return self

    def sqlalchemy_url(self) -> URL:
        """The database's URL with the password in it. PostgreSQL means psycopg 3."""
        url = make_url(self.database_url)
        if url.get_backend_name() == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        if self.database_password is not None:
            url = url.set(password=self.database_password.get_secret_value())
        return url

    def public(self) -> dict[str, Any]:
        """The settings as JSON types, without any secret."""
        values = self.model_dump(mode="json", exclude=set(SECRETS))
        return values | {"database_url": make_url(self.database_url).render_as_string(hide_password=True)}


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from `environ` (the process's own by default).

    An empty variable counts as not set. Raises SettingsError, whose message never contains a value.
    """
    environ = os.environ if environ is None else environ
    given = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(PREFIX) and value != ""
    }
    values: dict[str, str] = {}
    for name, value in given.items():
        secret = name.removesuffix("_file")
        if name in Settings.model_fields:
            if f"{name}_file" in given and name in SECRETS:
                raise SettingsError(f"{_variable(name)} and {_variable(name)}_FILE are both set: leave one out")
            values[name] = value
        elif name.endswith("_file") and secret in SECRETS:
            values[secret] = _read_secret(secret, Path(value))
        else:
            raise SettingsError(
                f"{_variable(name)} is not a setting: see the table in app/README.md for the right name"
            )
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(
            "; ".join(_explain(item["loc"], item["msg"], item["type"]) for item in error.errors())
        ) from None


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _read_secret(name: str, path: Path) -> str:
    try:
        value = path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(f"{_variable(name)}_FILE: cannot read {path}: {reason}") from None
    if not value:
        raise SettingsError(f"{_variable(name)}_FILE: {path} is empty")
    return value


def _explain(location: tuple[int | str, ...], message: str, kind: str) -> str:
    message = message.removeprefix("Value error, ")
    if not location:
        return message
    name = _variable(str(location[0]))
    if kind == "missing":
        secret = f" (or {name}_FILE)" if location[0] in SECRETS else ""
        return f"{name}{secret} is not set"
    return f"{name}: {message}"
