"""Denied access in the audit log, in bounded numbers: callers decide how often they are refused.

An actor is recorded once an hour for each endpoint, and an org has `PER_HOUR` such entries at most.
"""

from typing import cast
from uuid import UUID

from flask import Flask, Response, current_app, g, request
from limits import RateLimitItemPerHour
from limits.strategies import FixedWindowRateLimiter

from arkloop.api.http.audited import record_denial
from arkloop.api.http.current import actor
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.keys import Keys
from arkloop.shared.storage.shared_limiter import SharedLimiter

PER_HOUR = 100
_EACH = RateLimitItemPerHour(1)
_OF_ORG = RateLimitItemPerHour(PER_HOUR)


def register(app: Flask, connections: Connections) -> None:
    limiter = SharedLimiter(connections, FixedWindowRateLimiter, Keys.denials)
    app.extensions["arkloop.denials"] = limiter
    app.after_request(_record)


def may_record(org_id: UUID) -> bool:
    """Return whether a login that was refused may be recorded: `PER_HOUR` are, for an org."""
    limiter = cast(SharedLimiter, current_app.extensions["arkloop.denials"])
    return limiter.ask(lambda counts: counts.hit(_OF_ORG, str(org_id), "logins"))


def _record(response: Response) -> Response:
    if response.status_code == 403 and "actor" in g and request.url_rule is not None:
        who = actor()
        rule = request.url_rule.rule
        name = f"{who.api_key_id or who.user_id}/{who.end_user_id}/{request.method} {rule}"
        limiter = cast(SharedLimiter, current_app.extensions["arkloop.denials"])
        if limiter.ask(
            lambda counts: (
                counts.hit(_EACH, str(who.org_id), name) and counts.hit(_OF_ORG, str(who.org_id))
            )
        ):
            record_denial(request.method, rule)
    return response
