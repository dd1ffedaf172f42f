"""Look at one host and print a table: services, release, certificate, backup, disks. Needs root; standard library only.

The settings come as JSON in $HEALTH_SETTINGS. The exit code is 1 when a line says FAIL.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

OK, WARN, FAIL = "OK", "WARN", "FAIL"


class Row(NamedTuple):
    """One line of the table."""

    verdict: str
    what: str
    detail: str


def run(*command: str) -> tuple[int, str]:
    """Return the exit code and output of a program; 127 where it is not installed."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        return 127, ""
    except subprocess.TimeoutExpired:
        return 124, f"{command[0]} did not answer within 20 s"
    return result.returncode, result.stdout.strip() or result.stderr.strip()


def age(seconds: float) -> str:
    """Return a length of time as people say it."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def expected_units(patterns: list[str]) -> list[str]:
    """Return the units of the patterns that this host is meant to run: enabled, or loaded and not just left over."""
    names = set()
    for line in run("systemctl", "list-unit-files", "--no-legend", "--state=enabled", *patterns)[1].splitlines():
        names.add(line.split()[0])
    for line in run("systemctl", "list-units", "--all", "--plain", "--no-legend", *patterns)[1].splitlines():
        name, load, active = line.split()[:3]
        if load == "loaded" and active != "inactive":
            names.add(name)
    return sorted(name for name in names if "@." not in name)


def unit_row(unit: str) -> Row:
    properties = ["ActiveState", "SubState", "Result", "NRestarts", "ActiveEnterTimestampMonotonic", "MemoryCurrent"]
    shown = run("systemctl", "show", unit, *(f"--property={name}" for name in properties))[1]
    values = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    state = values.get("ActiveState", "unknown")
    if state != "active":
        return Row(FAIL, unit, f"{state} ({values.get('Result', '')}); see: journalctl -u {unit} -n 50")
    since = time.clock_gettime(time.CLOCK_MONOTONIC) - int(values.get("ActiveEnterTimestampMonotonic") or 0) / 1e6
    # A unit that does its work once and stays active has "exited".
    detail = f"done {age(since)} ago" if values["SubState"] == "exited" else f"{values['SubState']} for {age(since)}"
    if (memory := values.get("MemoryCurrent", "")).isdigit() and int(memory) < 2**62:
        detail += f", {int(memory) // 2**20} MB"
    restarts = int(values.get("NRestarts") or 0)
    if restarts:
        detail += f", restarted {restarts} times"
    return Row(WARN if restarts and since < 600 else OK, unit, detail)


def units(settings: dict[str, Any]) -> Iterator[Row]:
    expected = expected_units(settings["units"])
    yield from map(unit_row, expected)
    for line in run("systemctl", "list-units", "--failed", "--plain", "--no-legend")[1].splitlines():
        unit = line.split()[0]
        if unit not in expected and unit not in settings["ignored_units"]:
            yield Row(WARN, unit, f"failed; see: journalctl -u {unit} -n 50, then: systemctl reset-failed {unit}")


def application(settings: dict[str, Any]) -> Iterator[Row]:
    """The active colour by what nginx reads, its container, and what it says of itself."""
    try:
        state = json.loads(Path(settings["state_file"]).read_text())
        colour, release = state["colour"], state["release"]
    except (OSError, ValueError, KeyError):
        yield Row(FAIL, "release", f"{settings['state_file']} names none; run: playbooks/site.yml")
        return
    for other in ("blue", "green"):
        name = f"chatbot-{other}"
        code, text = run("docker", "inspect", "--format", "{{json .State}}", name)
        container = json.loads(text) if code == 0 else {}
        health = container.get("Health", {}).get("Status", "no health check")
        if other == colour:
            good = bool(container.get("Running")) and health in ("healthy", "no health check")
            detail = f"{container.get('Status', 'missing')}, {health}"
            yield Row(
                OK if good else FAIL, f"container {name}", detail if good else f"{detail}; see: docker logs {name}"
            )
        elif container.get("Running"):
            yield Row(WARN, f"container {name}", "the idle colour still runs: a release is in progress or was cut off")
    try:
        connection = http.client.HTTPConnection("127.0.0.1", settings["ports"][colour], timeout=10)
        connection.request("GET", "/api/v1/ready")
        answer = connection.getresponse()
        said = answer.read()
        ready = json.loads(said) if said.startswith(b"{") else {}
    except (OSError, ValueError, http.client.HTTPException) as error:
        yield Row(FAIL, "release", f"{release} on {colour}: no answer ({error})")
        return
    if answer.status != 200:
        yield Row(
            FAIL,
            "release",
            f"{release} on {colour} is not ready ({answer.status}): {said.decode(errors='replace')[:120]}",
        )
    elif ready.get("release") != release:
        yield Row(FAIL, "release", f"{colour} serves {ready.get('release')}, {settings['state_file']} says {release}")
    else:
        yield Row(OK, "release", f"{release} on {colour}, ready")


def certificate(settings: dict[str, Any]) -> Iterator[Row]:
    code, text = run("openssl", "x509", "-noout", "-issuer", "-subject", "-enddate", "-nameopt", "sep_comma_plus,sname",
                     "-in", settings["certificate"])  # fmt: skip
    if code != 0:
        yield Row(FAIL, "certificate", f"{settings['certificate']} cannot be read")
        return
    values = dict(line.split("=", 1) for line in text.splitlines())
    issuer, subject = values["issuer"].strip(), values["subject"].strip()
    end = datetime.strptime(values["notAfter"], "%b %d %H:%M:%S %Y %Z").replace(tzinfo=UTC)
    days = (end - datetime.now(UTC)).total_seconds() / 86400
    name = re.search(r"(?:O|CN)=([^,+]+)", issuer)
    detail = f"by {name[1].strip() if name else issuer}, {days:.0f} days left"
    if issuer == subject:
        yield Row(
            WARN,
            "certificate",
            f"self-signed placeholder, {days:.0f} days left; run: playbooks/site.yml --tags certbot",
        )
    elif days < settings["certificate_days_fail"]:
        yield Row(FAIL, "certificate", f"{detail}; renewal fails, see: journalctl -u certbot")
    else:
        yield Row(WARN if days < settings["certificate_days_warn"] else OK, "certificate", detail)


def website(settings: dict[str, Any]) -> Iterator[Row]:
    """The way of a visitor: domain, TLS, web server, application."""
    domain, address = settings["domain"], settings["address"]
    context = ssl.create_default_context()
    note, verdict = "certificate trusted", OK
    for attempt in range(2):
        try:
            with socket.create_connection((address, 443), timeout=10) as plain, \
                    context.wrap_socket(plain, server_hostname=domain) as secure:  # fmt: skip
                started = time.monotonic()
                secure.sendall(f"GET /api/v1/health HTTP/1.1\r\nHost: {domain}\r\nConnection: close\r\n\r\n".encode())
                answer = http.client.HTTPResponse(secure)
                answer.begin()
            if answer.status != 200:
                yield Row(
                    FAIL, f"https://{domain}/", f"status {answer.status} at {address}; see: journalctl -u nginx -n 50"
                )
                return
            yield Row(verdict, f"https://{domain}/", f"answers in {(time.monotonic() - started) * 1000:.0f} ms, {note}")
            return
        except ssl.SSLCertVerificationError as error:
            if attempt:
                break
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            note, verdict = f"certificate not trusted ({error.verify_message})", WARN
        except (OSError, http.client.HTTPException) as error:
            yield Row(FAIL, f"https://{domain}/", f"no answer at {address}: {error}")
            return


def backup(settings: dict[str, Any]) -> Iterator[Row]:
    try:
        last = json.loads(Path(settings["backup_file"]).read_text())
        seconds = time.time() - float(last["timestamp"])
    except FileNotFoundError:
        yield Row(WARN, "backup", "none yet; run: playbooks/backup.yml")
        return
    except (ValueError, KeyError):
        yield Row(FAIL, "backup", f"{settings['backup_file']} cannot be read")
        return
    hours = seconds / 3600
    verdict = FAIL if hours > settings["backup_hours_fail"] else WARN if hours > settings["backup_hours_warn"] else OK
    detail = f"{age(seconds)} ago, snapshot {last.get('snapshot', '?')}, {last.get('backups', '?')} kept"
    yield Row(verdict, "backup", detail if verdict == OK else f"{detail}; see: journalctl -u chatbot-backup -n 50")


def resources(settings: dict[str, Any]) -> Iterator[Row]:
    seen = set()
    for path in settings["disk_paths"]:
        if not Path(path).exists() or (device := Path(path).stat().st_dev) in seen:
            continue
        seen.add(device)
        usage = shutil.disk_usage(path)
        used = 100 - 100 * usage.free / usage.total
        verdict = FAIL if used > settings["disk_percent_fail"] else WARN if used > settings["disk_percent_warn"] else OK
        detail = f"{used:.0f} % used, {usage.free / 2**30:.1f} GB free"
        yield Row(
            verdict,
            f"disk {path}",
            detail if verdict == OK else f"{detail}; see: du -xh --max-depth=2 {path} | sort -h",
        )
    memory = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE))
    free = 100 * int(memory["MemAvailable"]) / int(memory["MemTotal"])
    detail = f"{int(memory['MemAvailable']) // 1024} of {int(memory['MemTotal']) // 1024} MB available"
    yield Row(WARN if free < settings["memory_percent_warn"] else OK, "memory", detail)
    load, cores = os.getloadavg()[2], os.cpu_count() or 1
    yield Row(WARN if load > 2 * cores else OK, "load", f"{load:.1f} over 15 minutes, {cores} cores")
    if Path("/run/reboot-required").exists():
        yield Row(WARN, "reboot", "an update waits for one: sudo reboot")


def main() -> int:
    settings = json.loads(os.environ["HEALTH_SETTINGS"])
    checks = {"units": units, "application": application, "certificate": certificate, "website": website,
              "backup": backup, "resources": resources}  # fmt: skip
    rows = [row for name in settings["checks"] for row in checks[name](settings)]
    width = max(len(row.what) for row in rows)
    for row in rows:
        print(f"{row.verdict:4}  {row.what:{width}}  {row.detail}")
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in (OK, WARN, FAIL)}
    print(f"{settings['host']}: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 1 if counts[FAIL] else 0


if __name__ == "__main__":
    sys.exit(main())
