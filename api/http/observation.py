"""The observation of requests by the template of their route, `/v1/runs/<id:run_id>`.

Templates are few, and have nothing that is secret: stream tickets travel in the query.
"""

import logging
import time
from collections.abc import Callable

from flask import Flask, Response, g, request

from arkloop.api.http.current import caller_span_id, trace_id
from arkloop.shared import logs, metrics, spans
from arkloop.shared.config import Settings
from arkloop.shared.spans import Kind, Span

log = logging.getLogger(__name__)

#: Routes that a balancer asks for all the time.
PROBES = frozenset({"/healthz", "/readyz"})

#: Called with a response, the template of its route, and the seconds until it began.
Observer = Callable[[Response, str, float], None]


def register(app: Flask, settings: Settings) -> None:
    """Observe from the next request on; first, so that errors of other hooks are seen as well."""
    observers: list[Observer] = []
    if settings.metrics_port:
        observers.append(_count)
    if settings.request_log:
        observers.append(_write)
    if settings.otlp_url:
        observers.append(_end_span)
        app.before_request_funcs.setdefault(None, []).insert(0, _begin_span)
    if not observers:
        return

    def ended(response: Response) -> Response:
        route = "" if request.url_rule is None else request.url_rule.rule
        seconds = time.monotonic() - g.began
        for observe in observers:
            observe(response, route, seconds)
        return response

    app.before_request_funcs.setdefault(None, []).insert(0, _begin)
    app.after_request(ended)


def _begin() -> None:
    g.began = time.monotonic()


def _method(route: str) -> str:
    return request.method if route else ""  # clients may send any word


def _count(response: Response, route: str, seconds: float) -> None:
    metrics.HTTP_REQUESTS.add(1, _method(route), route, str(response.status_code))
    metrics.HTTP_SECONDS.add(seconds, route)


def _write(response: Response, route: str, seconds: float) -> None:
    """Write the line of a request; a stream's is written when it begins."""
    status = response.status_code
    extra = {
        "method": _method(route),
        "route": route,
        "status": status,
        "duration_ms": round(seconds * 1000),
        "outcome": outcome_of(status),
        "error_code": g.get("error_code"),
    }
    log.info("request", extra=extra)


def _begin_span() -> None:
    """Begin the span of a request; its greenlet may have served another one before."""
    route = "" if request.url_rule is None else request.url_rule.rule
    if route in PROBES:
        spans.current.set(None)
        return
    g.span = span = spans.begin(
        f"{_method(route)} {route}".strip() or "HTTP",
        Kind.SERVER,
        trace_id=trace_id(),
        parent_id=caller_span_id(),
        attributes={
            "http.request.method": _method(route) or "_OTHER",
            "http.route": route or None,
        },
    )
    spans.current.set(span if span.is_recorded else None)


def _end_span(response: Response, _route: str, _seconds: float) -> None:
    span: Span | None = g.pop("span", None)
    if span is None:
        return
    spans.current.set(None)
    status = response.status_code
    fields = logs.bound.get() or {}
    span.set(
        {
            "http.response.status_code": status,
            "arkloop.org.id": fields.get("org_id"),
            "arkloop.run.id": fields.get("run_id"),
            "arkloop.error.code": g.get("error_code"),
        }
    )
    if status >= 500:
        span.fail(str(status))
    span.end()


def outcome_of(status: int) -> str:
    """Return whose the fault is, if there is one: `ok`, `refused`, `failed`."""
    return "failed" if status >= 500 else "refused" if status >= 400 else "ok"
