"""Slows down whoever guesses passwords, without giving anybody the power to lock somebody else out.

Every attempt counts before its password is looked at, so that parallel ones cannot slip through:

- per account and address. Refused attempts do not count, so a lock always ends;
- per address, whatever the account;
- per account, from wherever, against guessing with many addresses. A browser that has signed in to the account before
  takes no part in this one and has a count of its own instead of its address's: attackers cannot keep its owner out.
"""

import hashlib
import ipaddress
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import cast

from flask import Flask, current_app, request
from limits import RateLimitItem, parse_many
from limits.storage import MemoryStorage, storage_from_string
from limits.strategies import MovingWindowRateLimiter
from valkey import Valkey
from valkey.exceptions import ValkeyError

from chatbot import metrics
from chatbot.problems import Problem
from chatbot.settings import Settings

log = logging.getLogger(__name__)

# A failing Valkey is left alone this long (seconds); each worker counts for itself meanwhile.
PAUSE_AFTER_ERROR = 5.0

# Limits, and the key that they are counted for.
type Count = tuple[list[RateLimitItem], str]


class Guard:
    """The counts of all workers in Valkey, or of this process where there is none or it does not answer.

    Methods that count an attempt return None when it may go on, otherwise the seconds until another one may.
    """

    def __init__(self, settings: Settings, valkey: Valkey | None) -> None:
        self._per_pair = parse_many(settings.sign_in_limit)
        self._per_address = parse_many(settings.sign_in_limit_address)
        self._per_account = parse_many(settings.sign_in_limit_account)
        self._new_accounts = parse_many(settings.sign_up_limit_address)
        self._own = MovingWindowRateLimiter(MemoryStorage())
        self._shared: MovingWindowRateLimiter | None = None
        self._paused_until = 0.0
        if valkey is not None:
            options: dict[str, object] = {"connection_pool": valkey.connection_pool, "key_prefix": "chatbot:guessing"}
            self._shared = MovingWindowRateLimiter(storage_from_string("valkey://", **options))  # type: ignore[arg-type]

    def sign_in(self, email: str, address: str, device: str | None) -> int | None:
        """Count an attempt with a password. `device` names a browser that has signed in to this account before."""
        counts = [(self._per_address, f"address:{network(address)}"), self._pair(email, address, device)]
        if device is None:
            counts.append((self._per_account, f"account:{_digest(email)}"))
        return self._with_limiter(lambda limiter: _hit(limiter, counts))

    def succeeded(self, email: str, address: str, device: str | None) -> None:
        """Forget the attempts that the right password has ended."""
        count = self._pair(email, address, device)
        self._with_limiter(lambda limiter: _clear(limiter, count))

    def sign_up(self, address: str) -> int | None:
        """Count an attempt to make an account."""
        counts = [(self._new_accounts, f"sign-up:{network(address)}")]
        return self._with_limiter(lambda limiter: _hit(limiter, counts))

    def _pair(self, email: str, address: str, device: str | None) -> Count:
        return self._per_pair, f"pair:{_digest(email)}:{device or network(address)}"

    def _with_limiter[Answer](self, ask: Callable[[MovingWindowRateLimiter], Answer]) -> Answer:
        if self._shared is not None and time.monotonic() >= self._paused_until:
            try:
                return ask(self._shared)
            except ValkeyError as error:
                self._paused_until = time.monotonic() + PAUSE_AFTER_ERROR
                log.warning("attempts to sign in are counted per worker: %s", type(error).__name__)
        return ask(self._own)


def init_guard(app: Flask, settings: Settings, valkey: Valkey | None) -> None:
    """Give the application its guard."""
    app.extensions["guard"] = Guard(settings, valkey)


def guard() -> Guard:
    """The current application's guard."""
    return cast(Guard, current_app.extensions["guard"])


def refuse_until(seconds: int | None) -> None:
    """A Problem (429) when there is something to wait for."""
    if seconds is None:
        return
    metrics.refusals.labels("sign_in_limit").inc()
    raise Problem(
        429,
        "Too many attempts",
        f"There were too many attempts; try again in {waiting_time(seconds)}.",
        retry_after=seconds,
        type="urn:chatbot:rate-limited",
    )


def waiting_time(seconds: int) -> str:
    """A time to wait in words."""
    return f"{seconds} seconds" if seconds < 120 else f"{math.ceil(seconds / 60)} minutes"


def client_address() -> str:
    """The client's address, as nginx gives it."""
    return request.remote_addr or "unknown"


def network(address: str) -> str:
    """What one client can choose its addresses from: an IPv4 address, or the first half of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


def _hit(limiter: MovingWindowRateLimiter, counts: list[Count]) -> int | None:
    for item, key in _each(counts):
        if not limiter.hit(item, key):
            return max(1, math.ceil(limiter.get_window_stats(item, key).reset_time - time.time()))
    return None


def _clear(limiter: MovingWindowRateLimiter, count: Count) -> None:
    for item, key in _each([count]):
        limiter.clear(item, key)


def _each(counts: list[Count]) -> Iterator[tuple[RateLimitItem, str]]:
    for items, key in counts:
        for item in items:
            yield item, key


def _digest(text: str) -> str:
    """E-mail addresses are not written where they need not be read."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
