"""The log's one line for each run that fails: why, on which route, and the root cause."""

import contextlib
import logging
import ssl
from urllib.parse import urlsplit

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
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    response = getattr(error, "response", None)
    if status := getattr(response, "status_code", None):
        return f"{type(error).__name__}: {status}"
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
        return f"{type(error).__name__}: {error.strerror or error}"
    if isinstance(error, ssl.SSLError):
        return f"{type(error).__name__}: {error.reason or error.strerror}"
    return type(error).__name__ if error is not None else "-"
