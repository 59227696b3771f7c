"""Versions of AG-UI: what clients of 0.0.x get in place of what only 1.0 has.

They are known by their requests: those of 1.0 have a `protocolVersion`. Those of 0.0.x refuse whole
events for a member or a value that they do not know.
"""

from collections.abc import Iterable
from typing import Any

from ag_ui.core import RunFinishedCancelledOutcome, RunFinishedEvent, RunFinishedSuccessOutcome

from arkloop.api.protocols import sent_files
from arkloop.api.protocols.agui_messages import Message

PROTOCOL_VERSION = "1.0"

Outcome = Any  # a type of the protocol for each kind


def messages(shown: Iterable[Message], *, is_0_0: bool) -> list[Message]:
    """Return messages of a thread. A client of 0.0.x gets stored files by URL."""
    return [_with_urls(message) for message in shown] if is_0_0 else list(shown)


def _with_urls(message: Message) -> Message:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [_with_url(part) for part in content]}


def _with_url(part: dict[str, Any]) -> dict[str, Any]:
    source = part.get("source", {})
    if source.get("type") != "file":
        return part
    url = {**source, "type": "url", "value": sent_files.url_of(source["value"])}
    return {**part, "source": url}


def finished(outcome: Outcome, *, is_0_0: bool, **facts: Any) -> RunFinishedEvent:
    """Return the end of a run. Without an outcome, a client of 0.0.x takes it for a success."""
    return RunFinishedEvent(outcome=None if is_0_0 and _is_new(outcome) else outcome, **facts)


def _is_new(outcome: Outcome) -> bool:
    match outcome:
        case RunFinishedSuccessOutcome():
            return outcome.pending_tool_call_ids is not None
    return isinstance(outcome, RunFinishedCancelledOutcome)
