"""The log's one line for each run that fails: why, on which route, and the root cause."""

import contextlib
import logging
import ssl
from urllib.parse import urlsplit

import httpcore2

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.types import RunError

log = logging.getLogger(__name__)

_PORTS = {"http": 80, "https": 443}


def report(
    error: RunError, route_id: str, route: Route | None, cause: BaseException | None = None
) -> None:
    """Log a failed run; neither its text nor a credential is in the line.

    `route_id` is the run's own, `route` the one in use, if the run got as far.

    What an operator needs and the run's owner must not see: the host, which may be an internal
    one, and the system's own words for what went wrong there.
    """
    host, port = _address(route)
    root = _root(cause)
    log.warning(
        "run failed: %s, route %s at %s:%s: %s",
        *(error.code, route.id if route else route_id, host, port, root),
        extra={
            "error_code": error.code,
            "route_id": route.id if route else route_id,
            "host": host,
            "port": port,
            "cause": root,
        },
    )


def _address(route: Route | None) -> tuple[str | None, int | None]:
    """Return host and port of the route; its URL may contain credentials, too."""
    url = urlsplit((route and route.address) or "")
    with contextlib.suppress(ValueError):  # of an address that no call got as far as
        return url.hostname, url.port or _PORTS.get(url.scheme)
    return url.hostname, None


def _root(error: BaseException | None) -> str:
    """Describe the root cause of the error; only system errors are free of what was sent."""
    while error is not None and (cause := _cause(error)) is not None:
        error = cause
    response = getattr(error, "response", None)
    if status := getattr(response, "status_code", None):
        return f"{type(error).__name__}: {status}"
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
        return f"{type(error).__name__}: {error.strerror or error}"
    if isinstance(error, ssl.SSLError):
        return f"{type(error).__name__}: {error.reason or error.strerror}"
    return type(error).__name__ if error is not None else "-"


def _cause(error: BaseException) -> BaseException | None:
    """Return what the error was raised from, also where httpcore2's pool has erased that.

    Not the context of any error: a timeout says less in the system's words, and a vendor's refusal
    is named by its SDK.
    """
    if error.__cause__ is None and isinstance(error, httpcore2.NetworkError):
        return error.__context__
    return error.__cause__
