"""The connection to Valkey. Everything in it can be lost: chat works without."""

from valkey import ConnectionPool, Valkey

from chatbot.settings import Settings

# A local Valkey answers in well under a millisecond, but a process may wait for a busy processor. A request must not
# wait longer than this for a hanging Valkey.
TIMEOUT_SECONDS = 2.0
# Nobody waits for the connections of the live streams, and one of them waits for Valkey itself.
LOG_TIMEOUT_SECONDS = 5.0


def connect(settings: Settings, *, timeout: float = TIMEOUT_SECONDS) -> Valkey | None:
    """A client with a pool, or None where no Valkey is configured. No connection is made yet; `timeout` in seconds."""
    if settings.valkey_url is None:
        return None
    options: dict[str, object] = {"socket_timeout": timeout, "max_connections": 100}
    if not settings.valkey_url.startswith("unix://"):
        options["socket_connect_timeout"] = TIMEOUT_SECONDS
    if settings.valkey_password is not None:
        options["password"] = settings.valkey_password.get_secret_value()
    return Valkey(connection_pool=ConnectionPool.from_url(settings.valkey_url, **options))
