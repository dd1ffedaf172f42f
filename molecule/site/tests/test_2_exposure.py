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


def test_chat_asks_for_a_login(chat):
    status, _ = chat.call("GET", "/", headers={"Authorization": "Basic d3Jvbmc6d3Jvbmc="})
    assert status == 401
    status, _ = chat.call("GET", "/api/v1/health", headers={"Authorization": ""})
    assert status == 200


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
