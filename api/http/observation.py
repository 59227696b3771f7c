"""The observation of requests by the template of their route, `/v1/runs/<id:run_id>`.

Templates are few, and have nothing that is secret: stream tickets travel in the query.
"""

import logging
import time
from collections.abc import Callable

from flask import Flask, Response, g, request

from arkloop.shared import metrics
from arkloop.shared.config import Settings

log = logging.getLogger(__name__)

#: Called with a response, the template of its route, and the seconds until it began.
Observer = Callable[[Response, str, float], None]


def register(app: Flask, settings: Settings) -> None:
    """Observe from the next request on; first, so that errors of other hooks are seen as well."""
    observers: list[Observer] = []
    if settings.metrics_port:
        observers.append(_count)
    if settings.request_log:
        observers.append(_write)
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


def outcome_of(status: int) -> str:
    """Return whose the fault is, if there is one: `ok`, `refused`, `failed`."""
    return "failed" if status >= 500 else "refused" if status >= 400 else "ok"
