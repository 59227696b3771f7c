"""Hooks of schemathesis for `make fuzz`: neither long polls nor streams wait for what may come."""

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
