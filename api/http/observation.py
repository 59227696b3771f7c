"""The observation of requests by the template of their route, `/v1/runs/<id:run_id>`.

Templates are few, and have nothing that is secret: stream tickets travel in the query.
"""

import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from flask import Flask, g

from arkloop.api.http.current import trace_of
from arkloop.shared import logs, metrics, spans
from arkloop.shared.config import Settings
from arkloop.shared.spans import Kind, Span

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

#: Routes that a balancer asks for all the time.
PROBES = frozenset({"/healthz", "/readyz"})

#: Where the environment of a request has its span.
_SPAN = "arkloop.span"


class Seen(NamedTuple):
    """A request as it is known when its response begins, `seconds` after the request did."""

    environ: "WSGIEnvironment"
    method: str
    route: str
    status: int
    seconds: float


Observer = Callable[[Seen], None]


def register(app: Flask, settings: Settings) -> None:
    """Observe from the next request on, around all hooks, so that their errors are seen as well.

    Not by hooks: what Flask does for each of them takes longer than counting a request.
    """
    observers: list[Observer] = []
    if settings.metrics_port:
        observers.append(_count)
    if settings.request_log:
        observers.append(_write)
    records_spans = settings.otlp_url is not None
    if records_spans:
        observers.append(_end_span)
    if not observers:
        return
    handle = app.wsgi_app

    def observed(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        began = time.monotonic()
        if records_spans:
            _begin_span(environ)

        def start(status: str, headers: Any, exc_info: Any = None) -> Any:
            rule = environ["werkzeug.request"].url_rule
            route = "" if rule is None else rule.rule
            method = environ["REQUEST_METHOD"] if route else ""  # clients may send any word
            seen = Seen(environ, method, route, int(status[:3]), time.monotonic() - began)
            for observe in observers:
                observe(seen)
            return start_response(status, headers, exc_info)

        return handle(environ, start)

    app.wsgi_app = observed  # type: ignore[method-assign]  # as Flask documents it


def _count(seen: Seen) -> None:
    metrics.HTTP_REQUESTS.add(1, seen.method, seen.route, str(seen.status))
    metrics.HTTP_SECONDS.add(seen.seconds, seen.route)


def _write(seen: Seen) -> None:
    """Write the line of a request; a stream's is written when it begins."""
    extra = {
        "method": seen.method,
        "route": seen.route,
        "status": seen.status,
        "duration_ms": round(seen.seconds * 1000),
        "outcome": outcome_of(_status_of_error(seen)),
        "error_code": g.get("error_code"),
    }
    log.info("request", extra=extra)


def _begin_span(environ: "WSGIEnvironment") -> None:
    """Begin the span of a request; its greenlet may have served another one before."""
    if environ["PATH_INFO"] in PROBES:
        spans.current.set(None)
        return
    trace_id, parent_id = trace_of(environ)
    span = spans.begin("HTTP", Kind.SERVER, trace_id=trace_id, parent_id=parent_id)
    environ[_SPAN] = span
    spans.current.set(span if span.is_recorded else None)


def _end_span(seen: Seen) -> None:
    span: Span | None = seen.environ.pop(_SPAN, None)
    if span is None or not span.is_recorded:
        return
    spans.current.set(None)
    fields = logs.bound.get() or {}
    if seen.route:
        span.name = f"{seen.method} {seen.route}"
    span.common = (
        ("http.request.method", seen.method or "_OTHER"),
        ("http.route", seen.route or None),
        ("http.response.status_code", seen.status),
    )
    span.attributes = {
        "arkloop.org.id": fields.get("org_id"),
        "arkloop.run.id": fields.get("run_id"),
        "arkloop.error.code": g.get("error_code") if _status_of_error(seen) >= 400 else None,
    }
    if seen.status >= 500:
        span.fail(str(seen.status))
    span.end()


def _status_of_error(seen: Seen) -> int:
    """Return the status, or that of the error with which a browser is sent on."""
    return max(seen.status, int(g.get("error_status", 0)))


def outcome_of(status: int) -> str:
    """Return whose the fault is, if there is one: `ok`, `refused`, `failed`."""
    return "failed" if status >= 500 else "refused" if status >= 400 else "ok"
