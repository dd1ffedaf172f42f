"""Who guesses is banned, from real failures to real packets; others are not.

A network namespace with an address of its own plays the attacker, so that the control node never bans itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testbed.verify import eventually, play

SCENARIO = Path(__file__).resolve().parent.parent
HOST, ATTACKER = "10.99.0.1", "10.99.0.2"
# Others for the site and the chat: who is banned a third time within a day loses every port, and what sshd writes late,
# when a guess has long ended, may count for the attacker once more.
VISITOR, GUESSER = "10.99.0.3", "10.99.0.4"


@pytest.fixture(scope="module", autouse=True)
def attacker(host: Any) -> Iterator[None]:
    """A neighbour on a link of its own."""
    host.run("ip netns del attacker")
    host.check_output(
        "ip netns add attacker && ip link add attacker type veth peer name eth0 netns attacker"
        f" && ip addr add {HOST}/24 dev attacker && ip link set attacker up"
        + "".join(f" && ip -n attacker addr add {address}/24 dev eth0" for address in (ATTACKER, VISITOR, GUESSER))
        + " && ip -n attacker link set eth0 up"
    )
    yield
    host.run("ip netns del attacker")


@pytest.fixture(autouse=True)
def forgiven(host: Any) -> Iterator[None]:
    """Every test begins and ends without bans."""
    host.check_output("fail2ban-client unban --all")
    yield
    host.check_output("fail2ban-client unban --all")


def reaches(host: Any, port: int, address: str = ATTACKER) -> bool:
    """Return whether the attacker's packets get to a port of the host."""
    probe = f"import socket; socket.create_connection(('{HOST}', {port}), 2, ('{address}', 0))"
    return host.run(f'ip netns exec attacker python3 -c "{probe}"').rc == 0


def guess(host: Any, name: str) -> str:
    """Let the attacker try to log in; return what the host answered."""
    # A ban in the middle of a login would hold it until sshd gives up.
    login = "timeout 20 ssh -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    return str(host.check_output(f"ip netns exec attacker {login} {name}@{HOST} true 2>&1 || :"))


def banned(host: Any, jail: str) -> list[str]:
    """Return the addresses that a jail has banned."""
    return host.check_output(f"fail2ban-client get {jail} banip").split()


def test_guessing_on_ssh_leads_to_a_ban_on_every_port(host: Any) -> None:
    assert reaches(host, 22)
    assert reaches(host, 80)
    guesses = [guess(host, name) for name in ("oracle", "ubuntu", "test")]
    assert all("Permission denied" in answer for answer in guesses), guesses

    def banned_at_last() -> bool:
        """Tell whether the attacker is banned, who goes on meanwhile."""
        guess(host, "admin")
        return ATTACKER in banned(host, "sshd")

    assert eventually(banned_at_last)
    # fail2ban lists an address a moment before it tells the kernel.
    assert eventually(lambda: not reaches(host, 22))
    assert not reaches(host, 80)
    assert host.check_output("true") == "", "the control node is banned, too"
    host.check_output(f"fail2ban-client unban {ATTACKER}")
    assert reaches(host, 22)


def test_guessing_the_sites_password_closes_the_site_but_not_ssh(host: Any) -> None:
    assert reaches(host, 80, VISITOR)
    request = (
        "import base64, http.client\n"
        "for _ in range(3):\n"
        f"    site = http.client.HTTPConnection('{HOST}', 8080, timeout=5, source_address=('{VISITOR}', 0))\n"
        "    site.request('GET', '/', headers={'Authorization': 'Basic ' + base64.b64encode(b'chat:wrong').decode()})\n"
        "    assert site.getresponse().status == 401\n"
    )
    host.check_output("ip netns exec attacker python3 -c %s", request)
    assert eventually(lambda: VISITOR in banned(host, "nginx-http-auth"))
    assert eventually(lambda: not reaches(host, 80, VISITOR))
    assert reaches(host, 22, VISITOR)


def sign_in_fails(host: Any, address: str, request_id: str = "0123456789abcdef") -> None:
    """Write into the journal what a container of the chat writes when somebody gives a wrong password."""
    message = (
        '{"time":"2026-11-23T04:05:06.789Z","level":"warning","logger":"chatbot.signin","message":"sign_in_failed",'
        f'"request_id":"{request_id}","address":"{address}","method":"password","result":"failed"}}'
    )
    entry = f"MESSAGE={message}\nCONTAINER_NAME=chatbot-green\nSYSLOG_IDENTIFIER=0123456789ab"
    host.check_output("printf '%%s\\n' %s | logger --journald", entry)


def test_guessing_in_the_chat_closes_the_site_but_not_ssh(host: Any) -> None:
    assert reaches(host, 80, GUESSER)
    for _ in range(3):
        sign_in_fails(host, GUESSER)
    assert eventually(lambda: GUESSER in banned(host, "chatbot"))
    assert eventually(lambda: not reaches(host, 80, GUESSER))
    assert reaches(host, 22, GUESSER)


def test_a_ban_survives_a_restart_and_other_tables_do_too(host: Any) -> None:
    host.check_output("nft 'add table inet foreign; add chain inet foreign c'")
    host.check_output("fail2ban-client set sshd banip 192.0.2.7")
    host.check_output("systemctl restart fail2ban.service")
    host.check_output("timeout 30 sh -c 'until fail2ban-client ping >/dev/null 2>&1; do sleep 0.5; done'")
    assert eventually(lambda: "192.0.2.7" in banned(host, "sshd"))
    assert eventually(lambda: "192.0.2.7" in host.check_output("nft list table inet f2b-table"))
    host.check_output("nft delete table inet foreign")


def test_who_comes_back_again_and_again_is_banned_for_long(host: Any) -> None:
    for _ in range(3):
        host.check_output("fail2ban-client set sshd banip 192.0.2.9")
        host.check_output("fail2ban-client set sshd unbanip 192.0.2.9")
    assert eventually(lambda: "192.0.2.9" in banned(host, "recidive"))


def test_a_broken_jail_is_refused_before_it_stops_anything(host: Any) -> None:
    before = host.check_output("sha256sum /etc/fail2ban/jail.d/chatbot.local")
    played = play(host, SCENARIO / "converge.yml", fail2ban_jails={"broken": {"filter": "there-is-none"}})
    assert played.code != 0
    assert "there-is-none" in played.output
    assert host.check_output("sha256sum /etc/fail2ban/jail.d/chatbot.local") == before
    assert "pong" in host.check_output("fail2ban-client ping")
