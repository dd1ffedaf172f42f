"""The certificate seen from outside, issued by a real ACME authority (pebble) over HTTP-01."""

import contextlib
import json
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from testbed import helpers
from testbed.docker import execute
from testbed.verify import eventually, play

HERE = Path(__file__).parent
# The role's first task: what nginx needs is there already.
CERTBOT_ONLY = "--start-at-task=Domain and contact address can be used"


class Site:
    """The web server of one host, and the role that is applied to it."""

    def __init__(self, host):
        variables = host.ansible.get_variables()
        self.host = host
        self.name = variables["inventory_hostname"]
        self.address = variables["ansible_host"]
        self.domain = variables["chatbot_domain"]
        self.live = f"/etc/letsencrypt/live/{self.domain}"
        self.tls = f"{variables['chatbot_tls_directory']}/{self.domain}"

    def ask(self, domain=None, trust=None):
        """Return (status line, serial number) of a request; with `trust`, the chain must lead to that root."""
        context = ssl.create_default_context(cadata=trust)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if not trust:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        domain = domain or self.domain
        with (
            socket.create_connection((self.address, 443), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=domain) as secure,
        ):
            secure.sendall(f"GET / HTTP/1.1\r\nHost: {domain}\r\nConnection: close\r\n\r\n".encode())
            return secure.recv(64).split(b"\r\n")[0].decode(), hash(secure.getpeercert(binary_form=True))

    def trusted(self):
        """Whether the site serves a certificate of the authority for its domain."""
        try:
            return bool(self.ask(trust=helpers.issuing_root()))
        except ssl.SSLCertVerificationError:
            return False

    def converge(self, *options, **variables):
        """Apply the scenario's roles to this host once more, as the operator would."""
        return play(self.host, HERE.parent / "converge.yml", *options, **variables)


@pytest.fixture(scope="module")
def site(host):
    return Site(host)


def test_browsers_trust_the_certificate(site):
    status, _ = site.ask(trust=helpers.issuing_root())
    assert status == "HTTP/1.1 401 Unauthorized"


def test_the_private_key_is_for_root_only(host, site):
    for key in (f"{site.tls}/privkey.pem", f"{site.live}/privkey.pem"):
        for user in ("www-data", "nobody"):
            assert host.run("runuser -u %s -- cat %s", user, key).rc != 0
    assert host.run("find /etc/nginx /etc/letsencrypt -name 'privkey*' -type f -perm /077 | grep .").rc == 1


def test_the_timer_would_renew(host):
    assert host.check_output("systemctl is-enabled certbot.timer") == "enabled"
    upcoming = json.loads(host.check_output("systemctl list-timers --output=json certbot.timer"))
    assert 0 < upcoming[0]["next"] / 1e6 - time.time() < 86400
    host.check_output("systemctl start certbot.service")


def test_a_renewal_reaches_browsers_without_a_failed_request(host, site):
    answers, failures, done = [], [], threading.Event()

    def keep_asking():
        while not done.is_set():
            try:
                answers.append(site.ask())
            except OSError as error:
                failures.append(error)
            time.sleep(0.05)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        eventually(lambda: answers)
        host.check_output("certbot renew --force-renewal --no-random-sleep-on-renew --cert-name %s", site.domain)
        renewed = eventually(lambda: site.ask() != answers[0])
        time.sleep(1)
    finally:
        done.set()
        asking.join()
    assert renewed
    assert not failures
    assert {status for status, _ in answers} == {"HTTP/1.1 401 Unauthorized"}
    assert len({certificate for _, certificate in answers}) == 2
    assert site.trusted()


def test_the_hook_refuses_a_pair_that_does_not_match(host, site):
    before = site.ask()
    host.check_output("cp -aL %s /run/pair", site.live)
    try:
        host.check_output("openssl ecparam -name prime256v1 -genkey -noout -out /run/pair/privkey.pem")
        host.check_output("mv /run/pair /run/%s", site.domain)
        hook = host.run("RENEWED_LINEAGE=/run/%s /etc/letsencrypt/renewal-hooks/deploy/50-web-server", site.domain)
    finally:
        host.check_output("rm -rf /run/pair /run/%s", site.domain)
    assert hook.rc != 0
    assert "do not belong together" in hook.stderr
    host.check_output("systemctl restart nginx")
    assert eventually(lambda: answers(site) == before)


def answers(site):
    with contextlib.suppress(OSError):
        return site.ask()
    return None


@pytest.mark.timeout(600)
def test_a_refusal_of_the_authority_changes_nothing_and_a_second_run_heals(host, site):
    # A host that never asked for a certificate, and a domain that the authority's DNS does not know (yet).
    before = site.ask()
    host.check_output("certbot delete --non-interactive --cert-name %s", site.domain)
    host.check_output("rm -r /etc/letsencrypt/accounts")
    body = json.dumps({"host": site.domain})
    execute(helpers.container("acme"), f"curl -sf -d '{body}' http://127.0.0.1:8055/clear-a")
    try:
        code, output = site.converge(CERTBOT_ONLY)
        assert code != 0
        assert f"issued no certificate for {site.domain}" in output
        assert "could not resolve" in output, "the authority's reason is missing"
        assert "run again" in output
        assert site.ask() == before
    finally:
        helpers.add_name(site.domain, site.address)
    code, output = site.converge(CERTBOT_ONLY)
    assert code == 0, output
    assert site.trusted()
    assert site.ask() != before


# The last one: from here on the site has another name.
@pytest.mark.timeout(300)
def test_a_name_without_address_leaves_the_placeholder_up_and_says_so(site):
    nowhere = f"nowhere.{site.domain}"
    code, output = site.converge(chatbot_domain=nowhere)
    assert code != 0
    assert "the name has no address in DNS" in output
    assert "Remedy: add an A record" in output
    assert site.ask(nowhere)[0] == "HTTP/1.1 401 Unauthorized"
