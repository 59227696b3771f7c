"""The log's one line for each run that fails: why, on which route, and the root cause."""

import logging

from arkloop.shared.addresses import host_and_port
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.types import RunError
from arkloop.shared.security.checked_http import root_cause

log = logging.getLogger(__name__)


def report(
    error: RunError, route_id: str, route: Route | None, cause: BaseException | None = None
) -> None:
    """Log a failed run; neither its text nor a credential is in the line.

    `route_id` is the run's own, `route` the one in use, if the run got as far.

    What an operator needs and the run's owner must not see: the host, which may be an internal
    one, and the system's own words for what went wrong there.
    """
    # Its URL may contain credentials, too.
    host, port = host_and_port((route and route.address) or "")
    root = "-" if cause is None else root_cause(cause)
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
