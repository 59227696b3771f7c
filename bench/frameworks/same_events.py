"""The events of a run without ids, times and numbers, and without the pieces of its text."""

from collections.abc import Iterable, Mapping
from typing import Any

#: A type, and what clients show of the event.
Shown = tuple[str, Any]

_FIELDS: Mapping[str, tuple[str, ...]] = {
    "message.completed": ("content",),
    "message.reset": ("reason",),
    "tool.call": ("tool_call_id", "name", "arguments"),
    "tool.result": ("tool_call_id", "name", "output", "is_error"),
    "run.resumed": ("reason", "attempt"),
    "run.completed": ("stop_reason",),
    "run.cancelled": (),
    "run.cancel_requested": (),
    "run.failed": ("error",),
}


def shown(events: Iterable[Mapping[str, Any]]) -> list[Shown]:
    """Return the events in order; results of one turn's calls are in the order of their ids.

    Pieces of text are joined. Costs are left out, since agents and the built-in loop report them
    at other moments: the turns have their tokens.
    """
    found: list[Shown] = []
    for event in events:
        kind, data = event["type"], event["data"]
        if kind == "message.delta":
            if found and found[-1][0] == kind:
                found[-1] = (kind, found[-1][1] + data["content"])
            else:
                found.append((kind, data["content"]))
        elif kind == "message.completed":
            tokens = {name: data["usage"][name] for name in ("input_tokens", "output_tokens")}
            found.append((kind, {"content": data["content"], **tokens}))
        elif kind == "run.started":
            found.append((kind, None))
        elif kind in _FIELDS:
            found.append((kind, {name: data.get(name) for name in _FIELDS[kind]}))
    return _in_order(found)


def _in_order(events: list[Shown]) -> list[Shown]:
    """Sort results that follow each other: calls of one turn are made side by side."""
    sorted_events: list[Shown] = []
    results: list[Shown] = []
    for event in events:
        if event[0] == "tool.result":
            results.append(event)
            continue
        sorted_events += sorted(results, key=lambda one: str(one[1]["tool_call_id"]))
        results = []
        sorted_events.append(event)
    return [*sorted_events, *results]
