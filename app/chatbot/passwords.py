"""Passwords as argon2id hashes. Hashing is slow on purpose: outside the event loop, one at a time per worker."""

import threading
import unicodedata
from collections.abc import Callable

import gevent
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from gevent import monkey

from chatbot.problems import Problem

# 32 MiB and two passes take some 0.1 s of one small server's processor; OWASP's least is 19 MiB with as many.
# All workers hash at once in the worst case: two need 64 MiB.
HASHER = PasswordHasher(time_cost=2, memory_cost=32 * 1024, parallelism=1)
# Whoever has waited so long (seconds) for a turn is sent away.
PATIENCE = 10.0

_turn = threading.BoundedSemaphore(1)
_nobodys_hash: list[str] = []


def hash_password(password: str) -> str:
    """The hash to keep. Raises a Problem (503) when too many are waiting."""
    return _apart(lambda: HASHER.hash(_normal(password)))


def verify_password(known: str | None, password: str) -> bool:
    """Whether the password belongs to the hash; without one the same work is done and the answer is no."""

    def verify() -> bool:
        nobodys = _hash_of_nobody()
        try:
            return HASHER.verify(nobodys if known is None else known, _normal(password)) and known is not None
        except (VerificationError, InvalidHashError):
            return False

    return _apart(verify)


def is_outdated(known: str) -> bool:
    """Whether the hash was made with other parameters than today's."""
    return HASHER.check_needs_rehash(known)


def _hash_of_nobody() -> str:
    """A hash with today's parameters for accounts that do not exist, or have no password."""
    if not _nobodys_hash:
        _nobodys_hash.append(HASHER.hash("nobody's"))
    return _nobodys_hash[0]


def _normal(password: str) -> str:
    """Keyboards differ in how they compose characters."""
    return unicodedata.normalize("NFKC", password)


def _apart[Result](work: Callable[[], Result]) -> Result:
    """Do it in a thread of the operating system, where the worker's streams do not wait for it."""
    if not _turn.acquire(timeout=PATIENCE):
        raise Problem(503, "Service unavailable", "Too many people are signing in; try again.", retry_after=5)
    try:
        if monkey.is_module_patched("threading"):
            result: Result = gevent.get_hub().threadpool.apply(work)
            return result
        return work()
    finally:
        _turn.release()
