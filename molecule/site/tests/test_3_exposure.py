"""What another host on the network can reach."""

import asyncio
import contextlib
import http.client
import re
import subprocess

# Every port below 1024, whatever listens on the host, and what its programs use by default elsewhere.
USUAL = {2375, 2376, 3000, 3100, 5432, 6379, 8000, 8080, 8101, 8102, 9090, 9093, 9094, 9100, 9113, 9187, 12345}


async def _open(address, port, slots):
    async with slots:
        with contextlib.suppress(OSError, TimeoutError):
            _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), 1.5)
            writer.close()
            return port
    return None


async def _scan(address, ports):
    slots = asyncio.Semaphore(300)
    return {port for port in await asyncio.gather(*(_open(address, port, slots) for port in ports)) if port}


def test_only_ssh_http_and_https_answer(host, variables):
    listening = {int(port) for port in re.findall(r":(\d+)\s+\S+:\*", host.check_output("ss -Hltn"))}
    assert {22, 80, 443, 9090} <= listening, "the scan would prove nothing"
    found = asyncio.run(_scan(variables["ansible_host"], sorted(set(range(1, 1025)) | listening | USUAL)))
    assert found == {22, 80, 443}


def test_nothing_but_these_listens_on_all_addresses(host):
    wide = set(re.findall(r"(?:0\.0\.0\.0|\*|\[::\]):(\d+)\s", host.check_output("ss -Hltn")))
    assert wide <= {"22", "80", "443"}


def test_http_leads_to_https(variables):
    with contextlib.closing(http.client.HTTPConnection(variables["ansible_host"], timeout=10)) as connection:
        connection.request("GET", "/", headers={"Host": variables["chatbot_domain"]})
        response = connection.getresponse()
    assert response.status == 301
    assert response.getheader("Location") == f"https://{variables['chatbot_domain']}/"


def test_internal_pages_are_not_public(chat):
    for path in ("/metrics", "/api/v1/ready"):
        status, _ = chat.call("GET", path)
        assert status in {403, 404}, path


def test_nobody_chats_without_an_account(stranger):
    for method, path in (
        ("GET", "/conversations"),
        ("POST", "/conversations"),
        ("GET", "/models"),
        ("GET", "/account"),
    ):
        status, problem = stranger.call(method, f"/api/v1{path}")
        assert (status, problem["type"]) == (401, "urn:chatbot:sign-in-required")
    assert stranger.call("GET", "/api/v1/health")[0] == 200


def test_program_gets_in_with_a_token_of_its_own(chat, stranger):
    status, token = chat.call("POST", "/api/v1/tokens", {"name": "test", "scopes": ["read"]})
    assert status == 201
    bearer = {"Authorization": f"Bearer {token['token']}"}
    assert stranger.call("GET", "/api/v1/conversations", headers=bearer)[0] == 200
    assert stranger.call("POST", "/api/v1/conversations", {}, bearer)[0] == 403
    assert chat.call("DELETE", f"/api/v1/tokens/{token['id']}")[0] == 204
    assert stranger.call("GET", "/api/v1/conversations", headers=bearer)[0] == 401


def test_root_cannot_log_in(variables):
    done = subprocess.run(
        [
            "ssh", "-o", "BatchMode=yes", *variables["ansible_ssh_common_args"].split(),
            "-i", variables["ansible_ssh_private_key_file"], f"root@{variables['ansible_host']}", "true",
        ],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 255
    assert "Permission denied" in done.stderr
