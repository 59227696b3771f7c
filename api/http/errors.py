"""Errors on the wire: one table from class to status, one shape for all of them."""

import logging
import re
import time
from collections.abc import Mapping
from itertools import islice
from typing import Any

from flask import Flask, Response, current_app, g, jsonify, request
from werkzeug.exceptions import HTTPException

from arkloop.api.http.current import trace_id
from arkloop.shared.accounts.identity_errors import LoginStateInvalid
from arkloop.shared.errors import (
    ArkloopError,
    BadRequest,
    BodyTooLarge,
    BudgetExhausted,
    Conflict,
    EventsLost,
    Forbidden,
    HeadersTooLarge,
    InvalidRequest,
    InvalidState,
    InvitationInvalid,
    McpStateInvalid,
    MethodNotAllowed,
    NotFound,
    PasswordResetInvalid,
    QueueFull,
    RateLimitExceeded,
    RequestTimeout,
    RunLimitExceeded,
    StreamLimitExceeded,
    TooManyAttempts,
    Unauthorized,
    Unavailable,
    UnknownTransferCoding,
    UnsupportedMediaType,
    UriTooLong,
)
from arkloop.shared.outage_log import reason_of
from arkloop.shared.storage import postgres

log = logging.getLogger(__name__)

READING = ("GET", "HEAD", "OPTIONS")
_REFUSED_AT = "arkloop.write_refused_at"

#: A class that is not listed has the status of its nearest base.
STATUS: dict[type[ArkloopError], int] = {
    BadRequest: 400,
    InvalidState: 400,
    McpStateInvalid: 400,
    LoginStateInvalid: 400,
    InvitationInvalid: 400,
    PasswordResetInvalid: 400,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    MethodNotAllowed: 405,
    RequestTimeout: 408,
    Conflict: 409,
    EventsLost: 410,
    BodyTooLarge: 413,
    UriTooLong: 414,
    UnsupportedMediaType: 415,
    InvalidRequest: 422,
    BudgetExhausted: 429,
    QueueFull: 429,
    RateLimitExceeded: 429,
    RunLimitExceeded: 429,
    StreamLimitExceeded: 429,
    TooManyAttempts: 429,
    HeadersTooLarge: 431,
    UnknownTransferCoding: 501,
    Unavailable: 503,
}

RETRY_AFTER_SECONDS = 1

INTERNAL_CODE = "internal.error"
INTERNAL_MESSAGE = "Internal server error. Quote the trace_id when you report it."

#: Bounds of `details`, which echo parts of what was sent.
MAX_FIELDS = 50
MAX_REASONS = 10
MAX_NAME_LENGTH = 100
MAX_REASON_LENGTH = 1_000

#: Where a message refers to the `details`, which other protocols have no field for.
_SEE_DETAILS = re.compile(r"; see (?P<also>.+ and )?`details`")

_HEADERS: dict[int, dict[str, str]] = {
    401: {"WWW-Authenticate": "Bearer"},
    503: {"Retry-After": str(RETRY_AFTER_SECONDS)},
}
_OF_HTTP: dict[int | None, type[ArkloopError]] = {
    404: NotFound,
    405: MethodNotAllowed,
    408: RequestTimeout,
    413: BodyTooLarge,
    415: UnsupportedMediaType,
}


def status_of(error: type[ArkloopError]) -> int:
    """Return the HTTP status of an error class. Raises: KeyError: the table lacks it."""
    return next((STATUS[base] for base in error.__mro__ if base in STATUS), 0) or STATUS[error]


def answer(
    status: int, code: str, message: str, details: Mapping[str, Any] | None = None
) -> Response:
    """Build an error: `{"code", "message", "details", "trace_id"}`; details are bounded."""
    shown = {
        name[:MAX_NAME_LENGTH]: _bounded(value)
        for name, value in islice((details or {}).items(), MAX_FIELDS)
    }
    g.error_code = code
    response = jsonify(code=code, message=message, details=shown, trace_id=trace_id())
    response.status_code = status
    response.headers.update(_HEADERS.get(status, {}))
    return response


def _bounded(detail: Any) -> Any:
    if isinstance(detail, str):
        return detail[:MAX_REASON_LENGTH]
    if isinstance(detail, list):
        return [_bounded(reason) for reason in detail[:MAX_REASONS]]
    return detail


def in_words(message: str, details: Mapping[str, Any]) -> str:
    """Return a message with the details in place of the words that refer to them."""
    named = ", ".join(
        f"{name}: {' and '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in details.items()
        if value is not None
    )

    def written(found: re.Match[str]) -> str:
        also = "" if found["also"] is None else f"; see {found['also'].removesuffix(' and ')}"
        return f" ({named}){also}" if named else also

    return _SEE_DETAILS.sub(written, message)


def register(app: Flask) -> None:
    app.register_error_handler(ArkloopError, arkloop)
    app.register_error_handler(HTTPException, http)
    app.register_error_handler(Exception, unexpected)


def note(error: ArkloopError) -> int:
    """Log an outage, and have the line of the request name the error; returns its status.

    A response that sends a browser on has another status, and fails all the same.
    """
    if isinstance(error, Unavailable):
        extra = {"outcome": "failed", "error_code": error.code}
        log.warning("unavailable: %s", reason_of(error), extra=extra)
        if request.method not in READING and postgres.refuses_writes(error.__cause__):
            current_app.extensions[_REFUSED_AT] = time.monotonic()
    g.error_code, g.error_status = error.code, status_of(type(error))
    return status_of(type(error))


def has_refused_writes(seconds: float) -> bool:
    """Return whether this process has refused a write in these seconds, since Postgres did."""
    at: float | None = current_app.extensions.get(_REFUSED_AT)
    return at is not None and time.monotonic() - at < seconds


def arkloop(error: ArkloopError) -> Response:
    """Return the response to an error with a code."""
    response = answer(note(error), error.code, str(error), error.details)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def http(error: HTTPException) -> Response:
    """Return the response to an error of the framework."""
    known = _OF_HTTP.get(error.code)
    if known is not None:
        response = answer(status_of(known), known.code, known.message)
    elif error.code is not None and 400 <= error.code < 500:
        response = arkloop(InvalidRequest(request=[error.name]))
    else:
        return unexpected(error)
    for name, value in error.get_headers():
        if name == "Allow":
            response.headers[name] = value
    return response


def unexpected(error: Exception) -> Response:
    """Log an error that nobody expected and return the response to it."""
    extra = {"outcome": "failed", "error_code": INTERNAL_CODE}
    log.error("request failed", exc_info=error, extra=extra)
    return answer(500, INTERNAL_CODE, INTERNAL_MESSAGE)
