"""Metrics for Prometheus at `/metrics`, summed over all workers.

The exporter's own defaults are off: their names are fixed, and they label with the raw path unless told otherwise.
Labels are bounded: routes instead of paths, known methods, models that are offered.
"""

import time
from collections.abc import Callable
from functools import wraps

from flask import Flask, Response, abort, g, request
from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_flask_exporter import PrometheusMetrics

from chatbot.sessions import ActiveSessions
from chatbot.settings import Settings

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

requests_total = Counter("chatbot_requests_total", "HTTP requests answered", ["method", "url_rule", "status"])
request_duration = Histogram(
    "chatbot_request_duration_seconds",
    "Time until the response began; the body of a stream is in chatbot_stream_duration_seconds",
    ["method", "url_rule", "status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
active_sessions = Gauge(
    "chatbot_active_sessions",
    "Browser sessions with a request in the last 5 minutes; NaN while Valkey cannot be asked",
    multiprocess_mode="mostrecent",
)
messages_total = Counter("chatbot_messages_total", "Messages saved", ["role", "model"])
tokens_total = Counter(
    "chatbot_tokens_total", "Tokens as the model counted them; cut answers count their pieces", ["model", "type"]
)
answers_total = Counter("chatbot_answers_total", "Answers that ended, by how they ended", ["model", "status"])
open_streams = Gauge("chatbot_open_streams", "Responses that are streaming right now", multiprocess_mode="livesum")
streams_cut = Counter(
    "chatbot_streams_cut_total", "Responses that ended before their answer did, by what ended them", ["reason"]
)
resumed_streams = Counter("chatbot_resumed_streams_total", "Requests that continued reading an answer")
running_generations = Gauge(
    "chatbot_running_generations",
    "Answers that are being written, with or without a reader",
    multiprocess_mode="livesum",
)
waiting_generations = Gauge(
    "chatbot_waiting_generations",
    "Answers that wait for their first piece: the queue in front of the model",
    multiprocess_mode="livesum",
)
model_errors = Counter("chatbot_model_errors_total", "Answers the model did not finish, by cause", ["model", "kind"])
cut_answers = Counter(
    "chatbot_cut_answers_total", "Answers that were stopped or interrupted, by what did it", ["model", "reason"]
)
first_token = Histogram(
    "chatbot_time_to_first_token_seconds",
    "From the user's message to the first piece of the answer",
    ["model"],
    buckets=(0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 60),
)
stream_duration = Histogram(
    "chatbot_stream_duration_seconds",
    "From the user's message to the end of the answer",
    ["model"],
    buckets=(0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320),
)
sign_ins = Counter("chatbot_sign_ins_total", "Attempts to sign in, by how they ended", ["method", "result"])
refusals = Counter("chatbot_refusals_total", "Requests refused by a limit or a budget", ["reason"])
token_rate = Histogram(
    "chatbot_tokens_per_second",
    "Speed of an answer from its first piece to its end",
    ["model"],
    buckets=(1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 250, 500),
)
build_info = Gauge(
    "chatbot_build_info", "The running release; always 1", ["release", "colour"], multiprocess_mode="livemax"
)


# What cuts an answer; `worker_lost` is noticed by another process.
CUT_REASONS = ("stopped", "time_limit", "size_limit", "superseded", "worker_lost")
# What ends a response before its answer: see drain.py and Follower.events.
STREAM_CUTS = ("drain", "client", "error", "shutdown")
# Why a model gave no whole answer: the kinds of a ModelError.
ERROR_KINDS = (
    "timeout", "unreachable", "credentials", "unknown_model", "rate_limit", "rejected", "failed", "malformed",
    "broke_off", "internal",
)  # fmt: skip

SIGN_IN_RESULTS = (
    ("password", "success"),
    ("password", "failed"),
    ("password", "disabled"),
    ("password", "limited"),
    ("openid", "success"),
    ("openid", "failed"),
)
REFUSALS = ("rate_limit", "sign_in_limit", "account_budget", "instance_budget", "answers", "streams")


def count_answer(model: str, status: str, reason: str) -> None:
    """Count an answer that has ended."""
    answers_total.labels(model, status).inc()
    if reason in CUT_REASONS:
        cut_answers.labels(model, reason).inc()


def init_metrics(app: Flask, settings: Settings, sessions: ActiveSessions) -> None:
    """Count every request and serve `/metrics` to direct requests only."""

    def prepared(view: Callable[[], Response]) -> Callable[[], Response]:
        @wraps(view)
        def scrape() -> Response:
            if "X-Forwarded-For" in request.headers:
                abort(404)  # came through nginx: Prometheus does not
            active_sessions.set(sessions.count())
            return view()

        return scrape

    PrometheusMetrics(app, path="/metrics", export_defaults=False, registry=REGISTRY, metrics_decorator=prepared)
    build_info.labels(settings.release, settings.colour or "").set(1)
    # All series exist from the start, so that rates are right from the first event on.
    for role in ("user", "assistant"):
        messages_total.labels(role, settings.model_name)
    for kind in ("prompt", "completion"):
        tokens_total.labels(settings.model_name, kind)
    for reason in CUT_REASONS:
        cut_answers.labels(settings.model_name, reason)
    for method, result in SIGN_IN_RESULTS:
        sign_ins.labels(method, result)
    for reason in REFUSALS:
        refusals.labels(reason)
    for reason in STREAM_CUTS:
        streams_cut.labels(reason)
    for kind in ERROR_KINDS:
        model_errors.labels(settings.model_name, kind)

    @app.before_request
    def start_clock() -> None:
        g.started = time.perf_counter()

    @app.after_request
    def count(response: Response) -> Response:
        rule = request.url_rule.rule if request.url_rule else "unmatched"
        if rule != "/metrics":
            labels = (request.method if request.method in METHODS else "other", rule, str(response.status_code))
            requests_total.labels(*labels).inc()
            request_duration.labels(*labels).observe(time.perf_counter() - g.started)
        return response
