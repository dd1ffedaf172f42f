"""How many messages a browser session and an address may send."""

import time
from collections.abc import Iterable

from flask import Flask, g
from flask_limiter import Limiter, RequestLimit
from flask_limiter.util import get_remote_address
from valkey import Valkey

from chatbot.sessions import session_id
from chatbot.settings import Settings


def init_rate_limits(app: Flask, settings: Settings, valkey: Valkey | None, endpoints: Iterable[str]) -> None:
    """Limit these endpoints, taken together, per session and per address, over all workers through Valkey.

    When Valkey is down each worker counts for itself until it is back.
    """
    storage: dict[str, object] = {}
    if valkey is not None:
        storage = {"storage_uri": "valkey://", "storage_options": {"connection_pool": valkey.connection_pool}}
    limiter = Limiter(
        get_remote_address,
        app=app,
        strategy="moving-window",
        key_prefix="chatbot:limits:",
        swallow_errors=True,
        in_memory_fallback_enabled=valkey is not None,
        on_breach=_remember_reset,
        **({"storage_uri": "memory://"} | storage),  # type: ignore[arg-type]
    )
    per_address = limiter.shared_limit(settings.rate_limit_address, "messages", key_func=get_remote_address)
    per_session = limiter.shared_limit(settings.rate_limit, "messages", key_func=_session_or_address)
    for endpoint in endpoints:
        app.view_functions[endpoint] = per_session(per_address(app.view_functions[endpoint]))  # type: ignore[assignment]  # still a view


def _session_or_address() -> str:
    identifier = session_id()
    return f"session:{identifier}" if identifier else f"address:{get_remote_address()}"


def _remember_reset(limit: RequestLimit) -> None:
    g.retry_after = max(1, round(limit.reset_at - time.time()))
