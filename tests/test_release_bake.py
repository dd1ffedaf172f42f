"""The watch over a new release: figures of real metrics, limits, and releases that go away."""

from __future__ import annotations

import argparse
import http.server
import json
import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from repository import ROOT, program

FILE = ROOT / "roles/chatbot/files/release_bake.py"
# What the application says at /metrics under gunicorn with two workers, before and after some use.
BEFORE, AFTER = ((Path(__file__).parent / f"metrics/{name}.txt").read_text() for name in ("before", "after"))
RELEASE = "4f1d2c3b5a69"


@pytest.fixture(scope="module")
def bake() -> ModuleType:
    return program(FILE)


@pytest.fixture
def server() -> Iterator[Any]:
    """A colour: a list of what it answers, one text after the other; the last one again and again."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            text = colour.answers[0] if len(colour.answers) == 1 else colour.answers.pop(0)
            self.send_response(200 if text else 502)
            self.end_headers()
            self.wfile.write(text.encode())

    class Colour:
        answers: list[str]
        url: str

    colour = Colour()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        colour.url = f"http://127.0.0.1:{listening.server_port}/metrics"
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield colour
        listening.shutdown()


def limits(bake: ModuleType, url: str, **more: Any) -> argparse.Namespace:
    given = {
        "url": url,
        "release": RELEASE,
        "baseline": bake.encode(bake.parse(BEFORE, RELEASE)),
        "seconds": 0.2,
        "error_percent": 5.0,
        "first_token_seconds": 2.0,
        "min_requests": 20,
        "min_answers": 5,
    }
    return argparse.Namespace(**(given | more))


def text(requests: int = 0, errors: int = 0, checks: int = 0, quick: int = 0, slow: int = 0) -> str:
    """Metrics in which so much has been added to BEFORE; slow answers took between 5 and 10 seconds."""
    added = {
        'chatbot_requests_total{method="GET",status="200",url_rule="/new"}': requests - errors,
        'chatbot_requests_total{method="GET",status="500",url_rule="/new"}': errors,
        'chatbot_requests_total{method="GET",status="503",url_rule="/api/v1/ready"}': 1000 + checks,
        'chatbot_time_to_first_token_seconds_bucket{le="1.0",model="other"}': quick,
        'chatbot_time_to_first_token_seconds_bucket{le="5.0",model="other"}': quick,
        'chatbot_time_to_first_token_seconds_bucket{le="10.0",model="other"}': quick + slow,
        'chatbot_time_to_first_token_seconds_bucket{le="+Inf",model="other"}': quick + slow,
    }
    return BEFORE + "".join(f"{sample} {value}\n" for sample, value in added.items())


def test_counts_of_real_metrics(bake: ModuleType) -> None:
    counts = bake.parse(AFTER, RELEASE).since(bake.parse(BEFORE, RELEASE))
    # Counted by hand from the two files: what was asked between them.
    assert (counts.requests, counts.errors, counts.answers) == (44, 2, 6)
    assert counts.first_token[math.inf] == counts.answers
    assert 0 < counts.quantile(0.5) <= counts.quantile(0.95) <= 0.1


def test_quantile_is_that_of_prometheus(bake: ModuleType) -> None:
    """As histogram_quantile: linear within a bucket, the last finite bound beyond it."""
    counts = bake.Counts(0, 0, {1.0: 10, 2.0: 18, 5.0: 20, math.inf: 20})
    assert counts.quantile(0.95) == pytest.approx(3.5)
    assert counts.quantile(0.25) == pytest.approx(0.5)
    assert bake.Counts(0, 0, {1.0: 1, math.inf: 10}).quantile(0.95) == 1.0
    assert bake.Counts(0, 0, {}).quantile(0.95) == 0.0


def test_good_release_passes_with_its_figures(bake: ModuleType, server: Any) -> None:
    server.answers = [text(), text(requests=100, errors=1, quick=20)]
    result = bake.watch(limits(bake, server.url, seconds=2.5))
    assert result["passed"]
    assert result["reason"].startswith("100 requests, 1.0 % failed; 20 answers, 95 % of them began within 1.0 s")
    assert "to judge" not in result["reason"]


def test_failing_release_is_named_with_figures_and_limit_at_once(bake: ModuleType, server: Any) -> None:
    server.answers = [text(requests=40, errors=4)]
    result = bake.watch(limits(bake, server.url, seconds=600))
    assert not result["passed"]
    assert result["reason"] == "4 of 40 requests failed with 5xx: 10.0 %, the limit is 5 %"


def test_slow_release_is_named_with_figures_and_limit(bake: ModuleType, server: Any) -> None:
    server.answers = [text(requests=40, quick=4, slow=6)]
    result = bake.watch(limits(bake, server.url, seconds=600))
    assert not result["passed"]
    assert result["reason"] == "95 % of 10 answers had their first token within 9.6 s, the limit is 2 s"


def test_few_samples_judge_nobody_and_say_so(bake: ModuleType, server: Any) -> None:
    server.answers = [text(requests=3, errors=3, slow=2)]
    result = bake.watch(limits(bake, server.url))
    assert result["passed"]
    assert "it takes 20 requests or 5 answers to judge" in result["reason"]


def test_health_checks_are_no_users(bake: ModuleType, server: Any) -> None:
    server.answers = [text(requests=30, checks=500)]
    assert bake.watch(limits(bake, server.url))["passed"]


def test_release_that_goes_away_has_failed(bake: ModuleType, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bake.time, "sleep", lambda _: None)
    server.answers = [""]
    result = bake.watch(limits(bake, server.url))
    assert not result["passed"]
    assert "its metrics did not come 5 times in a row" in result["reason"]


def test_one_missed_answer_is_forgiven(bake: ModuleType, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bake.time, "sleep", lambda _: None)
    server.answers = ["", text(requests=30)]
    assert bake.watch(limits(bake, server.url, seconds=0))["passed"]


def test_release_that_was_started_again_has_failed(bake: ModuleType, server: Any) -> None:
    server.answers = [BEFORE]
    result = bake.watch(limits(bake, server.url, baseline=bake.encode(bake.parse(AFTER, RELEASE))))
    assert result["reason"] == "the new colour died and was started again"


def test_other_release_is_not_watched_by_mistake(bake: ModuleType, server: Any) -> None:
    server.answers = [BEFORE]
    result = bake.watch(limits(bake, server.url, release="another"))
    assert result["reason"] == f"its metrics are those of release {RELEASE}, not of another"


def test_as_the_role_runs_it(server: Any) -> None:
    """From standard input, the baseline as one argument."""
    server.answers = [BEFORE]

    def run(*arguments: str) -> str:
        command = [sys.executable, "-", *arguments]
        return subprocess.run(command, input=FILE.read_text(), capture_output=True, text=True, check=True).stdout

    baseline = run("baseline", server.url, RELEASE).strip()
    given = {"seconds": 0, "error-percent": 5, "first-token-seconds": 2, "min-requests": 20, "min-answers": 5}
    result = run("watch", server.url, RELEASE, baseline, *(f"--{name}={value}" for name, value in given.items()))
    assert json.loads(result)["passed"]
