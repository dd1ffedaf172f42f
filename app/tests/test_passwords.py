import subprocess
import sys
import threading

import pytest
from argon2 import PasswordHasher
from chatbot import passwords
from chatbot.passwords import hash_password, is_outdated, verify_password
from chatbot.problems import Problem
from support import APP


def test_hashes_are_argon2id_and_differ_for_the_same_password() -> None:
    first, second = hash_password("correct horse"), hash_password("correct horse")
    assert first.startswith("$argon2id$")
    assert first != second
    assert verify_password(first, "correct horse")
    assert not verify_password(first, "correct house")


def test_the_cost_is_what_owasp_asks_for_or_more() -> None:
    program = "from chatbot.passwords import HASHER as h; print(h.memory_cost, h.time_cost, h.type.name)"
    result = subprocess.run([sys.executable, "-c", program], cwd=APP, capture_output=True, text=True, check=True)
    memory, passes, kind = result.stdout.split()
    assert int(memory) >= 19 * 1024
    assert int(passes) >= 2
    assert kind == "ID"


def test_keyboards_that_compose_differently_agree() -> None:
    assert verify_password(hash_password("caf\u00e9 caf\u00e9"), "cafe\u0301 cafe\u0301")


@pytest.mark.parametrize("known", [None, "", "no hash", "$argon2id$v=19$m=8,t=1,p=1$broken"])
def test_nothing_belongs_to_an_account_without_password(known: str | None) -> None:
    assert not verify_password(known, "nobody's")
    assert not verify_password(known, "")


def test_hashes_with_other_parameters_are_outdated(monkeypatch: pytest.MonkeyPatch) -> None:
    known = hash_password("x")
    assert not is_outdated(known)
    monkeypatch.setattr(passwords, "HASHER", PasswordHasher(time_cost=3, memory_cost=64, parallelism=1))
    assert is_outdated(known)


def test_one_at_a_time_and_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "PATIENCE", 0.1)
    running, together, gate = [0], [0], threading.Event()

    class Slow:
        def hash(self, _password: str) -> str:
            running[0] += 1
            together[0] = max(together[0], running[0])
            gate.wait(10)
            running[0] -= 1
            return "hash"

    monkeypatch.setattr(passwords, "HASHER", Slow())
    thread = threading.Thread(target=lambda: hash_password("x"))
    thread.start()
    while not running[0]:
        pass
    with pytest.raises(Problem) as refused:
        hash_password("x")
    assert (refused.value.status, refused.value.retry_after) == (503, 5)
    gate.set()
    thread.join(10)
    assert hash_password("x") == "hash"
    assert together == [1]


def test_under_gevent_other_greenlets_go_on_meanwhile() -> None:
    program = """
from gevent import monkey
monkey.patch_all()
import gevent, time
from argon2 import PasswordHasher
from chatbot import passwords
passwords.HASHER = PasswordHasher(time_cost=12, memory_cost=32 * 1024, parallelism=1)
longest, over = [0.0], []
def tick():
    last = time.monotonic()
    while not over:
        gevent.sleep(0.005)
        longest[0], last = max(longest[0], time.monotonic() - last), time.monotonic()
ticking = gevent.spawn(tick)
gevent.sleep(0.02)
began = time.monotonic()
assert passwords.verify_password(passwords.hash_password("x"), "x")
took = time.monotonic() - began
over.append(True)
ticking.join()
print(longest[0], took)
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=APP, capture_output=True, text=True, check=True)
    longest, took = map(float, result.stdout.split())
    assert longest < took / 4, (longest, took)
