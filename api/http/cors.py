"""CORS (Fetch standard, 3.2) for exactly the origins of `ARKLOOP_CORS_ORIGINS`.

Pages of these origins may call every endpoint with every header, and read the headers of
responses that clients need; a page of any other origin gets no CORS header at all.
"""

import re

from flask import Flask, Response, request

from arkloop.api.http.current import settings

PREFLIGHT_SECONDS = 600
ALLOWED_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
ALLOWED_HEADERS = (
    *("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"),
    *("Prefer", "traceparent"),
)
EXPOSED_HEADERS = (
    *("X-Next-Cursor", "X-Stream-Cursor", "Link", "X-Trace-Id", "Location"),
    "Idempotency-Replayed",
    *("RateLimit", "RateLimit-Policy"),
    *("Retry-After", "X-Should-Retry", "Preference-Applied", "WWW-Authenticate"),
    *("Content-Disposition", "Allow", "ETag"),
    # Those of the AI SDK's protocol.
    *("x-vercel-ai-ui-message-stream", "x-workflow-run-id", "x-workflow-stream-tail-index"),
)
_MAX_REQUESTED = 1_000
_NAMES = re.compile(r"[A-Za-z0-9-]+(?: *, *[A-Za-z0-9-]+)*")


def register(app: Flask) -> None:
    app.after_request(_add)


def _add(response: Response) -> Response:
    allowed = settings().cors_origins
    if not allowed:
        return response
    response.vary.add("Origin")
    if (origin := request.headers.get("Origin")) not in allowed:
        return response
    response.headers["Access-Control-Allow-Origin"] = origin
    # For the cookie of `/v1/auth/refresh`; safe, since no origin is allowed by a pattern.
    response.headers["Access-Control-Allow-Credentials"] = "true"
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        response.headers["Access-Control-Allow-Methods"] = ALLOWED_METHODS
        response.headers["Access-Control-Allow-Headers"] = ", ".join(_allowed_headers())
        response.headers["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
    else:
        response.headers["Access-Control-Expose-Headers"] = ", ".join(EXPOSED_HEADERS)
    return response


def _allowed_headers() -> list[str]:
    """Return our own headers, and those that the page asks for: SDKs send many of theirs."""
    requested = request.headers.get("Access-Control-Request-Headers", "")
    if len(requested) > _MAX_REQUESTED or not _NAMES.fullmatch(requested):
        return [*ALLOWED_HEADERS]
    known = {name.lower() for name in ALLOWED_HEADERS}
    others = {name.strip().lower() for name in requested.split(",")} - known
    return [*ALLOWED_HEADERS, *sorted(others)]
