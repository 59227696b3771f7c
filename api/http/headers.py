"""Headers that every response has, errors included: trace and security."""

from flask import Flask, Response

from arkloop.api.http.current import settings, trace_id
from arkloop.shared import logs

#: Where an answer has none of its own.
SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def register(app: Flask) -> None:
    app.before_request(_bind_trace)
    app.after_request(_add)


def _bind_trace() -> None:
    logs.clear()
    logs.bind(trace_id=trace_id())


def _add(response: Response) -> Response:
    response.headers["X-Trace-Id"] = trace_id()
    if response.status_code == 204:
        del response.headers["Content-Type"]
    for name, value in SECURITY.items():
        response.headers.setdefault(name, value)
    if settings().secure_cookies:  # then we are behind TLS
        response.headers.setdefault("Strict-Transport-Security", "max-age=31536000")
    return response
