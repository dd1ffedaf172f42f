#!/usr/bin/env python3
"""Watch the colour that has just been switched to: does it fail, is it slow?

    release_bake.py baseline URL RELEASE
    release_bake.py watch    URL RELEASE BASELINE --seconds … --error-percent … --first-token-seconds … …

URL is the colour's own /metrics. `baseline` prints its counters before the switch as JSON; `watch` compares with them
until `--seconds` have passed, or until it is certain that a limit is broken. It prints one JSON object: `passed`,
`reason` (one sentence with figures and limits) and the figures. Exit code 0 in both cases: the caller judges.

Health checks are no users and do not count. Standard library only; the host's Python reads it from standard input.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import re
import sys
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass

# One line of the exposition format: name, labels, value; a time stamp may follow.
SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? +(\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
# Asked by Docker, Prometheus and this program: nobody waits for them.
CHECKS = frozenset({"/api/v1/ready", "/api/v1/health", "/metrics"})
# So many unanswered questions in a row (one every two seconds) mean that the colour has gone.
PATIENCE = 5


class GoneError(RuntimeError):
    """The colour does not answer, or is not the release that it should be; the message says which."""


@dataclass(frozen=True)
class Counts:
    """What is counted since the colour's start; of the first tokens, seconds (a bucket's upper bound) → answers."""

    requests: int
    errors: int
    first_token: dict[float, int]

    @property
    def answers(self) -> int:
        """Answers that have begun."""
        return self.first_token.get(math.inf, 0)

    def since(self, before: Counts) -> Counts:
        """Return the difference. Raises GoneError when a count went back: the colour has been started anew."""
        difference = Counts(
            self.requests - before.requests,
            self.errors - before.errors,
            {bound: count - before.first_token.get(bound, 0) for bound, count in self.first_token.items()},
        )
        if difference.requests < 0 or difference.answers < 0:
            raise GoneError("the new colour died and was started again")
        return difference

    @property
    def error_percent(self) -> float:
        """Share of requests that the server answered with 5xx, in per cent."""
        return 100.0 * self.errors / self.requests if self.requests else 0.0

    def quantile(self, share: float) -> float:
        """Return the time to first token (seconds) that this share of answers kept, as Prometheus estimates it."""
        wanted, lower, below = share * self.answers, 0.0, 0
        for bound, count in sorted(self.first_token.items()):
            if count >= wanted and count > below:
                # Slower than the last bound: all that is known is "more than that".
                return lower if math.isinf(bound) else lower + (bound - lower) * (wanted - below) / (count - below)
            lower, below = bound, count
        return 0.0


def parse(text: str, release: str) -> Counts:
    """Count what the exposition text says. Raises GoneError when it is another release's."""
    requests = errors = 0
    buckets: Counter[float] = Counter()
    releases = set()
    for line in text.splitlines():
        if not (match := SAMPLE.match(line)):
            continue
        name, labels, value = match[1], dict(LABEL.findall(match[2] or "")), match[3]
        if name == "chatbot_build_info" and float(value) > 0:
            releases.add(labels["release"])
        elif name == "chatbot_requests_total" and labels["url_rule"] not in CHECKS:
            requests += int(float(value))
            errors += int(float(value)) * labels["status"].startswith("5")
        elif name == "chatbot_time_to_first_token_seconds_bucket":
            buckets[float(labels["le"])] += int(float(value))
    if releases != {release}:
        raise GoneError(
            f"its metrics are those of release {', '.join(sorted(releases)) or 'unknown'}, not of {release}"
        )
    return Counts(requests, errors, dict(buckets))


def fetch(url: str, release: str) -> Counts:
    """Ask the colour for its counts. Raises OSError or HTTPException when it does not answer."""
    with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - the caller's own loopback address
        return parse(response.read().decode(), release)


def broken(counts: Counts, limits: argparse.Namespace) -> str:
    """Say which limit the figures break, or nothing. Too few samples break none."""
    if counts.requests >= limits.min_requests and counts.error_percent > limits.error_percent:
        return (
            f"{counts.errors} of {counts.requests} requests failed with 5xx: {counts.error_percent:.1f} %, "
            f"the limit is {limits.error_percent:g} %"
        )
    slow = counts.quantile(0.95)
    if counts.answers >= limits.min_answers and slow > limits.first_token_seconds:
        return (
            f"95 % of {counts.answers} answers had their first token within {slow:.1f} s, "
            f"the limit is {limits.first_token_seconds:g} s"
        )
    return ""


def watch(limits: argparse.Namespace) -> dict[str, object]:
    """Look every two seconds, until the time is over or a limit is broken; say how it went."""
    before = decode(limits.baseline)
    end = time.monotonic() + limits.seconds
    counts, missed = Counts(0, 0, {}), 0
    try:
        while True:
            try:
                counts, missed = fetch(limits.url, limits.release).since(before), 0
            except (OSError, http.client.HTTPException) as error:
                missed += 1
                if missed >= PATIENCE:
                    raise GoneError(f"its metrics did not come {missed} times in a row ({error})") from error
            if reason := broken(counts, limits):
                return verdict(False, reason, counts)
            if time.monotonic() >= end and not missed:
                break
            time.sleep(2 if missed else min(2.0, max(0.1, end - time.monotonic())))
    except GoneError as error:
        return verdict(False, str(error), counts)
    return verdict(True, summary(counts, limits), counts)


def summary(counts: Counts, limits: argparse.Namespace) -> str:
    """Say in one sentence what a good bake saw, and whether that was enough to judge by."""
    text = f"{counts.requests} requests, {counts.error_percent:.1f} % failed; {counts.answers} answers"
    if counts.answers:
        text += f", 95 % of them began within {counts.quantile(0.95):.1f} s"
    if counts.requests < limits.min_requests or counts.answers < limits.min_answers:
        text += f" (it takes {limits.min_requests} requests or {limits.min_answers} answers to judge)"
    return text


def verdict(passed: bool, reason: str, counts: Counts) -> dict[str, object]:
    """Return the result as the caller reads it."""
    return {
        "passed": passed,
        "reason": reason,
        "requests": counts.requests,
        "errors": counts.errors,
        "answers": counts.answers,
        "first_token_p95_seconds": round(counts.quantile(0.95), 3),
    }


def encode(counts: Counts) -> str:
    """Return the counts as JSON, for decode()."""
    buckets = [[str(bound), count] for bound, count in counts.first_token.items()]
    return json.dumps([counts.requests, counts.errors, buckets])


def decode(text: str) -> Counts:
    """Return the counts that encode() wrote."""
    requests, errors, buckets = json.loads(text)
    return Counts(requests, errors, {float(bound): count for bound, count in buckets})


def main() -> int:
    """Do what the command line says and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("baseline", "watch"):
        command = commands.add_parser(name)
        command.add_argument("url")
        command.add_argument("release")
    command.add_argument("baseline", help="what `baseline` printed")
    for name in ("seconds", "error-percent", "first-token-seconds"):
        command.add_argument(f"--{name}", type=float, required=True)
    for name in ("min-requests", "min-answers"):
        command.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    if options.command == "watch":
        print(json.dumps(watch(options)))
        return 0
    try:
        print(encode(fetch(options.url, options.release)))
    except (GoneError, OSError, http.client.HTTPException) as error:
        print(f"{options.url}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
