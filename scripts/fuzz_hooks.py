"""Hooks of schemathesis for `make fuzz`: what it cannot know about waits, files and repetitions."""

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
    if case.media_type == "multipart/form-data" and isinstance(case.body, dict):
        # A part has no type: sent as text, a list or a number is a file like any other.
        parts = case.body.items()
        case.body = {name: part for name, part in parts if isinstance(part, str | bytes)}
    if "Idempotency-Key" in (case.headers or {}) and _is_stateful(case):
        # A key that came before replays a response, also of an object that was deleted since.
        case.headers["Idempotency-Key"] = secrets.token_hex(8)


def _is_stateful(case: Any) -> bool:
    return case._meta is not None and case._meta.phase.name == "stateful"
