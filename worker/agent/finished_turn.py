"""The end of a model's turn: what of it can be used, and what is kept."""

import json
from dataclasses import replace

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.plain import is_too_deep, plain
from arkloop.shared.events.types import ProviderState
from arkloop.worker.contract.messages import MAX_STATE_BYTES, TurnEnd, state_text
from arkloop.worker.contract.outcomes import ProviderError

MAX_ARGUMENTS_CHARACTERS = 1024 * 1024
#: The reasons, in lower case, after which a call without arguments is whole: those of the vendors,
#: and what other servers call them. Any other may mean that the model was cut off.
_WHOLE = {
    "stop",
    "tool_calls",
    "tool_call",
    "tool_use",
    "function_call",
    "stop_sequence",
    "end_turn",
    "eos",
    "eos_token",
    "complete",
    "completed",
    "done",
}


def as_far_as_it_came(end: TurnEnd) -> TurnEnd:
    """Mark a last call that was cut off before its arguments: it must not pass for one without."""
    if not end.tool_calls or end.stop_reason.lower() in _WHOLE:
        return end
    *others, last = end.tool_calls
    if last.arguments != {}:
        return end
    return replace(end, tool_calls=(*others, replace(last, arguments="")))


def state_of(route: Route, end: TurnEnd) -> ProviderState | None:
    """Return the provider state to keep for the next request; None after a final message."""
    if not end.tool_calls or (end.state is None and not end.call_states):
        return None
    if is_too_deep([end.state, *end.call_states]):
        return None
    calls = tuple(map(plain, end.call_states))
    state = ProviderState(route.provider, route.model, plain(end.state), calls, route.server)
    return state if len(state_text(state).encode()) <= MAX_STATE_BYTES else None


def check_arguments(end: TurnEnd) -> None:
    for call in end.tool_calls:
        # Text that is no JSON stays text; both are written into one event.
        if len(json.dumps(call.arguments, default=str)) > MAX_ARGUMENTS_CHARACTERS:
            raise ProviderError(
                "malformed",
                f"The model's arguments for {call.name[:100]!r} exceeded"
                f" {MAX_ARGUMENTS_CHARACTERS:,} characters.",
            )
