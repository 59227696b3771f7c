"""Counts of requests by the template of their route, `/v1/runs/<id:run_id>`, not by its values."""

import time

from flask import Flask, Response, g, request

from arkloop.shared import metrics


def register(app: Flask) -> None:
    """Count from the next request on; first, so that errors of the others are counted as well."""
    app.before_request_funcs.setdefault(None, []).insert(0, _begin)
    app.after_request(_count)


def _begin() -> None:
    g.began = time.monotonic()


def _count(response: Response) -> Response:
    route = "" if request.url_rule is None else request.url_rule.rule
    method = request.method if route else ""  # clients may send any word
    metrics.HTTP_REQUESTS.add(1, method, route, str(response.status_code))
    metrics.HTTP_SECONDS.add(time.monotonic() - g.began, route)
    return response
