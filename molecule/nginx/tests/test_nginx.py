"""nginx seen from outside: the control node is the browser, a program on the host stands in for the application."""

import base64
import contextlib
import itertools
import json
import socket
import ssl
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from testbed.verify import eventually, play

HERE = Path(__file__).parent
UPSTREAM = (HERE / "upstream.py").read_text()
EVENTS = 10


class Site:
    """The chat of one host as a browser sees it."""

    def __init__(self, host):
        variables = host.ansible.get_variables()
        self.host = host
        self.name = variables["inventory_hostname"]
        self.address = variables["ansible_host"]
        self.domain = variables["chatbot_domain"]
        self.login = "chat:testbed-access-0123456789abcdef"

    def curl(self, path, *options, scheme="https", login=True, domain=None):
        """Return the arguments of a curl call."""
        domain = domain or self.domain
        resolve = [part for port in (80, 443) for part in ("--resolve", f"{domain}:{port}:{self.address}")]
        user = ["--user", self.login] if login else []
        return ["curl", "-sSk", "--max-time", "20", *resolve, *user, *options, f"{scheme}://{domain}{path}"]

    def get(self, path, *options, **how):
        """Return (status, headers, body) of a request."""
        done = subprocess.run(self.curl(path, "-i", *options, **how), capture_output=True, check=True)
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        while head.split()[1] == b"100":
            head, _, body = body.partition(b"\r\n\r\n")
        status, *lines = head.decode().splitlines()
        headers = {}
        for line in lines:
            key, _, value = line.partition(": ")
            assert key.lower() not in headers, f"twice: {line}"
            headers[key.lower()] = value
        return int(status.split()[1]), headers, body.decode()

    def problem(self, path, *options, **how):
        """Return (status, headers, problem) of a request that nginx itself must refuse in JSON."""
        status, headers, body = self.get(path, *options, **how)
        assert headers["content-type"] == "application/problem+json"
        problem = json.loads(body)
        assert problem["status"] == status
        assert problem["request_id"] == headers["x-request-id"]
        return status, headers, problem

    def alive(self):
        """Whether the health check answers."""
        done = subprocess.run(self.curl("/api/v1/health", "-f", login=False), capture_output=True, check=False)
        return done.returncode == 0

    def converge(self, *options, **variables):
        """Apply the scenario's roles to this host once more, as the operator would."""
        return play(self.host, HERE.parent / "converge.yml", *options, **variables)


@pytest.fixture(scope="module")
def site(host):
    return Site(host)


@pytest.fixture(scope="module", autouse=True)
def upstream(host):
    """The application's (8101) and Grafana's (3000) stand-in."""
    text = base64.b64encode(UPSTREAM.encode()).decode()
    host.check_output("echo %s | base64 -d > /run/upstream.py", text)
    for port in (8101, 3000):
        host.run(f"systemctl reset-failed upstream-{port}; systemctl stop upstream-{port}")
        host.check_output(f"systemd-run --unit=upstream-{port} /usr/bin/python3 /run/upstream.py {port}")
    assert eventually(lambda: host.run("ss -Hltn 'sport = :8101' | grep -q .").rc == 0)
    yield
    host.run("systemctl stop upstream-8101 upstream-3000")


def stream(site, *options):
    """Return the seconds after which each event of a stream arrived."""
    begin = time.monotonic()
    command = site.curl("/api/v1/conversations/1/messages", "-N", "-X", "POST", "-d", "{}", *options)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        return [time.monotonic() - begin for line in process.stdout if line.startswith("data:")]


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_streams_are_not_buffered(site, version):
    arrivals = stream(site, version, "--compressed")
    assert len(arrivals) == EVENTS
    assert arrivals[0] < 1
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    # On a busy machine one may be late and the next one close behind it; buffered, none would have a gap.
    assert sum(gap > 0.1 for gap in gaps) > len(gaps) / 2, f"events arrived in one piece: {gaps}"


def test_browsers_get_http2(site):
    done = subprocess.run(
        site.curl("/", "-o", "/dev/null", "-w", "%{http_version}"), capture_output=True, text=True, check=True
    )
    assert done.stdout == "2"


def test_a_reload_cuts_no_stream(host, site):
    with ThreadPoolExecutor() as pool:
        arrivals = pool.submit(stream, site)
        time.sleep(1)
        host.check_output("systemctl reload nginx")
        assert len(arrivals.result()) == EVENTS


def test_http_leads_to_https(site):
    status, headers, _ = site.get("/chat/7?tab=2", scheme="http", login=False)
    assert (status, headers["location"]) == (301, f"https://{site.domain}/chat/7?tab=2")


def test_acme_challenges_are_served_over_http(host, site):
    host.check_output("mkdir -p /var/www/acme/.well-known/acme-challenge")
    host.check_output("echo proof > /var/www/acme/.well-known/acme-challenge/token")
    status, _, body = site.get("/.well-known/acme-challenge/token", scheme="http", login=False)
    host.check_output("rm /var/www/acme/.well-known/acme-challenge/token")
    assert (status, body) == (200, "proof\n")
    assert site.get("/.well-known/acme-challenge/token", scheme="http", login=False)[0] == 404


def test_the_chat_asks_for_its_password(site):
    status, headers, _ = site.get("/", login=False)
    assert (status, headers["www-authenticate"]) == (401, 'Basic realm="Chat"')
    status, headers, _ = site.problem("/api/v1/conversations", login=False)
    assert (status, headers["www-authenticate"]) == (401, 'Basic realm="Chat"')
    assert site.get("/", "--user", f"{site.login}x", login=False)[0] == 401
    assert site.get("/")[0] == 200


def test_health_is_public_and_nothing_else_of_it(site):
    assert site.get("/api/v1/health", login=False)[0] == 200
    assert site.problem("/api/v1/health", "-X", "POST", "-d", "{}", login=False)[0] == 403


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "//metrics", "/api/v1/ready", "/grafana/metrics"])
def test_internals_are_hidden_even_with_the_password(site, path):
    assert site.get(path, "--path-as-is")[0] == 404


def test_the_application_learns_who_asks_but_not_the_password(site):
    forged = ("-H", "X-Forwarded-For: 1.2.3.4", "-H", "X-Request-ID: forged", "-H", "X-Forwarded-Host: evil.test")
    _, headers, body = site.get("/api/v1/conversations", *forged)
    seen = json.loads(body)["headers"]
    assert seen["host"] == seen["x-forwarded-host"] == site.domain
    assert seen["x-forwarded-proto"] == "https"
    assert seen["x-forwarded-for"] not in {"", "1.2.3.4"}
    assert seen["x-request-id"] == headers["x-request-id"] != "forged"
    assert "authorization" not in seen


@pytest.mark.parametrize(
    ("path", "login"), [("/", True), ("/", False), ("/api/v1/conversations", True), ("/api/v1/x", False)]
)
def test_security_headers_come_once_with_every_answer(site, path, login):
    _, headers, _ = site.get(path, login=login)
    assert headers["strict-transport-security"] == "max-age=63072000"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert headers["server"] == "nginx"


def test_oversized_bodies_are_refused_as_json(site):
    with tempfile.NamedTemporaryFile() as body:
        body.truncate(26 * 1024 * 1024)
        assert site.problem("/api/v1/conversations/1/messages", "--data-binary", f"@{body.name}")[0] == 413


def test_answers_of_the_application_pass_unchanged(site):
    status, headers, body = site.get("/api/v1/busy")
    assert (status, headers["content-type"]) == (503, "application/json")
    assert json.loads(body)["path"] == "/api/v1/busy"


def test_a_flood_is_slowed_down(site):
    # Without the password, so that only nginx is asked: the limit comes before it.
    total = 90
    request = f"GET /api/v1/conversations HTTP/1.1\r\nHost: {site.domain}\r\n\r\n".encode()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((site.address, 443), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=site.domain) as secure,
    ):
        secure.sendall(request * total)
        text = b""
        while text.count(b"HTTP/1.1 ") < total or not text.endswith(b"}\n"):
            text += secure.recv(65536)
    answers = text.decode().split("HTTP/1.1 ")[1:]
    refused = [answer for answer in answers if answer.startswith("429")]
    assert len(answers) - len(refused) >= 30, "the burst was not served"
    assert len(refused) >= 20, "nothing was refused"
    assert "Retry-After: 5" in refused[0]
    assert '"title":"Too Many Requests"' in refused[0]
    time.sleep(5)


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_old_tls_is_refused(site, version):
    command = (
        f"openssl s_client -connect {site.address}:443 -servername {site.domain} {version} -cipher DEFAULT@SECLEVEL=0"
    )
    done = subprocess.run(command.split(), input="", capture_output=True, text=True, check=False)
    assert "alert protocol version" in done.stderr


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_current_tls_is_spoken(site, version):
    command = f"openssl s_client -connect {site.address}:443 -servername {site.domain} {version}"
    done = subprocess.run(command.split(), input="", capture_output=True, text=True, check=False)
    assert done.returncode == 0


def test_other_names_get_no_answer(site):
    for domain in ("other.example.test", site.address):
        tls = subprocess.run(site.curl("/", domain=domain), capture_output=True, text=True, check=False)
        assert tls.returncode == 35, tls.stderr
        plain = subprocess.run(
            site.curl("/", scheme="http", domain=domain), capture_output=True, text=True, check=False
        )
        assert plain.returncode in {52, 56}, plain.stderr


def test_grafana_has_its_own_login(site):
    status, _, body = site.get("/grafana/api/live/ws", "-H", "Upgrade: websocket", "--http1.1", login=False)
    seen = json.loads(body)
    assert (status, seen["path"]) == (200, "/grafana/api/live/ws")
    assert (seen["headers"]["upgrade"], seen["headers"]["connection"]) == ("websocket", "upgrade")


def test_grafana_gets_its_own_tokens_but_never_the_chats_password(site):
    _, _, body = site.get("/grafana/", login=True)
    assert "authorization" not in json.loads(body)["headers"]
    _, _, body = site.get("/grafana/", "-H", "Authorization: Bearer grafana-token", login=False)
    assert json.loads(body)["headers"]["authorization"] == "Bearer grafana-token"


def test_figures_are_for_this_host_only(host, site):
    assert "nginx_up 1" in host.check_output(
        "python3 -c %s",
        ("import urllib.request as r; print(r.urlopen('http://127.0.0.1:9113/metrics').read().decode())"),
    )
    for port in (8180, 9113):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((site.address, port), timeout=3)


def test_the_log_tells_the_request_but_no_secrets(host, site):
    _, headers, _ = site.get("/login?token=very-secret", "-H", 'User-Agent: quote " and \\ slash')
    lines = host.check_output("tail -n 20 /var/log/nginx/access.log")
    entry = next(e for e in map(json.loads, lines.splitlines()) if e["request_id"] == headers["x-request-id"])
    assert (entry["path"], entry["status"], entry["upstream"]) == ("/login", 200, "127.0.0.1:8101")
    assert entry["user_agent"] == 'quote " and \\ slash'
    assert host.run("grep -r very-secret /var/log/nginx").rc == 1


def test_thousands_of_connections_leave_room_for_one_more(site):
    with contextlib.ExitStack() as stack:
        for _ in range(2500):
            stack.enter_context(socket.create_connection((site.address, 443), timeout=5))
        assert site.alive()


def test_a_chat_that_is_down_is_said_calmly(host, site):
    host.check_output("systemctl stop upstream-8101")
    try:
        status, headers, body = site.get("/")
        assert (status, headers["retry-after"]) == (502, "5")
        assert "The chat is starting" in body
        assert "style-src 'unsafe-inline'" in headers["content-security-policy"]
        status, headers, problem = site.problem("/api/v1/conversations")
        assert (status, headers["retry-after"], problem["title"]) == (502, "5", "Bad Gateway")
    finally:
        host.check_output("systemd-run --unit=upstream-8101 /usr/bin/python3 /run/upstream.py 8101")
    assert eventually(site.alive)


@pytest.mark.parametrize("victim", ["the master", "everything"])
def test_nginx_comes_back_after_kill_9(host, site, victim):
    before = host.check_output("systemctl show --property=MainPID --value nginx")
    if victim == "the master":
        host.check_output("kill -9 %s", before)
    else:
        host.check_output("systemctl kill --signal=KILL nginx")
    assert eventually(lambda: host.check_output("systemctl show --property=MainPID --value nginx") not in {before, "0"})
    assert eventually(site.alive)
    assert eventually(lambda: host.service("nginx").is_running)


def test_a_wrong_upstream_file_does_not_stop_the_site(host, site):
    host.check_output("cp /etc/nginx/chatbot/upstream.conf /run/upstream.conf")
    host.check_output("echo 'upstream chatbot {' > /etc/nginx/chatbot/upstream.conf")
    try:
        assert host.run("systemctl reload nginx").rc != 0
        assert site.alive()
    finally:
        host.check_output("cp /run/upstream.conf /etc/nginx/chatbot/upstream.conf")
    host.check_output("systemctl reload nginx")


@pytest.mark.timeout(300)
def test_a_wrong_variable_is_refused_and_the_old_site_serves_on(host, site):
    code, output = site.converge(nginx_client_max_body_size="25 megabytes")
    assert code != 0
    assert "nothing was replaced and the old one still serves" in output
    assert "client_max_body_size" in output
    assert site.alive()
    host.check_output("systemctl restart nginx")
    assert eventually(site.alive), "the refused configuration would have been read after a reboot"


@pytest.mark.timeout(300)
def test_a_foreign_program_on_port_80_stops_the_run_before_anything_changes(host, site):
    host.check_output("systemctl stop nginx")
    host.check_output("systemd-run --unit=squatter /usr/bin/python3 -m http.server 80")
    try:
        assert eventually(lambda: host.run("ss -Hltn 'sport = :80' | grep -q .").rc == 0)
        code, output = site.converge()
    finally:
        host.run("systemctl stop squatter")
        host.check_output("systemctl start nginx")
    assert code != 0
    assert "already taken by another program" in output
    assert "python3" in output
    assert "changed=0" in output
    assert eventually(site.alive)
