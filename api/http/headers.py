"""Headers that every response has, errors included: trace and security."""

from uuid import UUID

from flask import Flask, Response, request

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
BEHIND_TLS = {"Strict-Transport-Security": "max-age=31536000"}


def register(app: Flask) -> None:
    app.before_request(_bind_subject)
    app.after_request(_add)


def _bind_subject() -> None:
    logs.clear()
    fields = {"trace_id": trace_id()}
    # Where the path names no run, it may hold any text.
    if isinstance(run_id := (request.view_args or {}).get("run_id"), UUID):
        fields["run_id"] = str(run_id)
    logs.bind(**fields)


def _add(response: Response) -> Response:
    headers = response.headers
    headers["X-Trace-Id"] = trace_id()
    if response.status_code == 204:
        del headers["Content-Type"]
    wanted = SECURITY | BEHIND_TLS if settings().secure_cookies else SECURITY
    # One look through the names: `setdefault` would take one for each.
    present = {name.lower() for name, _ in headers}
    for name, value in wanted.items():
        if name.lower() not in present:
            headers.add(name, value)
    return response
