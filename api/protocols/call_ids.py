"""Ids of tool calls as chat clients know them, who take them for unique in the thread.

The ids of models are unique within their run; some vendors count them anew in each.
"""

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from arkloop.shared.ids import parse_id


def shown(run_id: UUID, tool_call_id: str) -> str:
    """Return the id of a run's call for clients."""
    return f"{run_id.hex}.{tool_call_id}"


def stored(run_id: UUID, call_id: str) -> str:
    """Return the id that the run has for a call, from that of a client, which may be the same."""
    return call_id.removeprefix(shown(run_id, ""))


def with_ids(data: Mapping[str, Any], shown_id: Callable[[str], str]) -> dict[str, Any]:
    """Return the data of an event with the ids that the page has for its calls."""
    copy = dict(data)
    if data.get("tool_call_id") is not None:
        copy["tool_call_id"] = shown_id(data["tool_call_id"])
    if "tool_call_ids" in data:
        copy["tool_call_ids"] = [shown_id(id_) for id_ in data["tool_call_ids"]]
    return copy


def run_of(call_id: str) -> UUID | None:
    """Return the run that has made a call, by the call's id for clients; None for other ids."""
    digits, dot, _ = call_id.partition(".")
    try:
        return parse_id(str(UUID(digits))) if dot and len(digits) == 32 else None
    except ValueError:
        return None
