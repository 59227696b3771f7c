"""Hooks of schemathesis for `make fuzz`: what it cannot know about waits and repeated requests."""

import secrets
from typing import Any

import schemathesis


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Let requests that would wait for half a minute, or until a thread is deleted, return."""
    is_poll = case.operation.path.endswith(":poll") and isinstance(case.body, dict)
    if is_poll and case.body.get("wait_seconds") in (None, *range(1, 31)):
        case.body["wait_seconds"] = 0
    if case.method == "GET" and case.operation.path.endswith("/events"):
        case.query = {"follow": "false", **(case.query or {})}
    if "Idempotency-Key" in (case.headers or {}) and _is_stateful(case):
        # A key that came before replays a response, also of an object that was deleted since.
        case.headers["Idempotency-Key"] = secrets.token_hex(8)


def _is_stateful(case: Any) -> bool:
    return case._meta is not None and case._meta.phase.name == "stateful"
