"""Versions of AG-UI: what clients of 0.0.x get in place of what only 1.0 has.

They are known by their requests: those of 1.0 have a `protocolVersion`. Those of 0.0.x refuse whole
events for a member or a value that they do not know.
"""

from typing import Any

from ag_ui.core import RunFinishedCancelledOutcome, RunFinishedEvent, RunFinishedSuccessOutcome

PROTOCOL_VERSION = "1.0"

Outcome = Any  # a type of the protocol for each kind


def finished(outcome: Outcome, *, is_0_0: bool, **facts: Any) -> RunFinishedEvent:
    """Return the end of a run. Without an outcome, a client of 0.0.x takes it for a success."""
    return RunFinishedEvent(outcome=None if is_0_0 and _is_new(outcome) else outcome, **facts)


def _is_new(outcome: Outcome) -> bool:
    match outcome:
        case RunFinishedSuccessOutcome():
            return outcome.pending_tool_call_ids is not None
    return isinstance(outcome, RunFinishedCancelledOutcome)
