"""Headers that every answer has, errors included: trace, security, and CORS for the allow-list."""

from flask import Flask, Response, request

from arkloop.api.http.current import settings, trace_id
from arkloop.shared import logs

PREFLIGHT_SECONDS = 600
_ALLOWED_HEADERS = (
    "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Prefer, traceparent"
)
_ALLOWED_METHODS = "GET, POST, PUT, PATCH, DELETE"
_EXPOSED_HEADERS = (
    "X-Next-Cursor, Link, X-Trace-Id, Location, Idempotency-Replayed, Retry-After,"
    " Preference-Applied, WWW-Authenticate"
)

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
    _add_cors(response)
    return response


def _add_cors(response: Response) -> None:
    """Add CORS headers (Fetch standard, 3.2) for exactly the origins of `ARKLOOP_CORS_ORIGINS`."""
    allowed = settings().cors_origins
    if not allowed:
        return
    response.vary.add("Origin")
    if (origin := request.headers.get("Origin")) not in allowed:
        return
    response.headers["Access-Control-Allow-Origin"] = origin
    response.headers["Access-Control-Allow-Credentials"] = "true"
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        response.headers["Access-Control-Allow-Methods"] = _ALLOWED_METHODS
        response.headers["Access-Control-Allow-Headers"] = _ALLOWED_HEADERS
        response.headers["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
    else:
        response.headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS
