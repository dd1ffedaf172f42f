"""How many messages an account and an address may send."""

import time
from collections.abc import Iterable

from flask import Flask, g
from flask_limiter import Limiter, RequestLimit
from valkey import Valkey

from chatbot import metrics
from chatbot.guessing import client_address, network
from chatbot.identity import account_id
from chatbot.settings import Settings


def init_rate_limits(app: Flask, settings: Settings, valkey: Valkey | None, endpoints: Iterable[str]) -> None:
    """Limit these endpoints, taken together, per account and per address, over all workers through Valkey.

    When Valkey is down each worker counts for itself until it is back.
    """
    storage: dict[str, object] = {}
    if valkey is not None:
        storage = {"storage_uri": "valkey://", "storage_options": {"connection_pool": valkey.connection_pool}}
    limiter = Limiter(
        _address,
        app=app,
        strategy="moving-window",
        key_prefix="chatbot:limits:",
        swallow_errors=True,
        in_memory_fallback_enabled=valkey is not None,
        on_breach=_remember_reset,
        **({"storage_uri": "memory://"} | storage),  # type: ignore[arg-type]
    )
    per_address = limiter.shared_limit(settings.rate_limit_address, "messages", key_func=_address)
    per_account = limiter.shared_limit(settings.rate_limit, "messages", key_func=_account)
    for endpoint in endpoints:
        app.view_functions[endpoint] = per_account(per_address(app.view_functions[endpoint]))  # type: ignore[assignment]  # still a view


def _account() -> str:
    return f"account:{account_id()}"


def _address() -> str:
    return f"address:{network(client_address())}"


def _remember_reset(limit: RequestLimit) -> None:
    metrics.refusals.labels("rate_limit").inc()
    g.retry_after = max(1, round(limit.reset_at - time.time()))
