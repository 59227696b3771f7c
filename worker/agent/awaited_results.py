"""The calls of a turn whose results come from outside, and the wait for these results."""

from collections.abc import Sequence

from arkloop.shared.runs.states import ResultSource
from arkloop.worker.agent.agent import Agent
from arkloop.worker.agent.conversation import Turn
from arkloop.worker.contract.messages import ToolCall
from arkloop.worker.contract.outcomes import PendingCall, WaitForInput
from arkloop.worker.tools import CallInfo

#: Of the identity of a call, those that all calls of a run have in common.
_RUN_FIELDS = ("run_id", "thread_id", "org_id", "end_user_id", "metadata")


def result_source(agent: Agent, call: ToolCall) -> ResultSource | None:
    """Return who sends the results of the call's tool, None if there is no such tool."""
    tool = agent.tools.get(call.name)
    return tool.result_from if tool else None


def may_wait(agent: Agent, turn: Turn, call: ToolCall) -> bool:
    """Return whether the result of the call comes from outside, or may do so."""
    return call.id in turn.accepted or result_source(agent, call) is not None


def wait_for_results(agent: Agent, turn: Turn, pending: Sequence[ToolCall]) -> WaitForInput:
    """Return the wait for the results of these calls."""
    made = [turn.as_made(call) for call in pending]
    calls = [_pending(agent, call) for call in made]
    identity = CallInfo.of(agent.identity, pending[0].id).wire()
    return WaitForInput(
        persona=agent.persona,
        kind="tool_results",
        prompt=f"Waiting for the results of {', '.join(dict.fromkeys(c.name for c in made))}.",
        calls=calls,
        identity={name: identity[name] for name in _RUN_FIELDS},
    )


def _pending(agent: Agent, call: ToolCall) -> PendingCall:
    """Return the call as those who send its result get it."""
    tool, info = agent.tools.get(call.name), CallInfo.of(agent.identity, call.id)
    own = next((one for one in agent.persona.client_tools if one.name == call.name), None)
    # An HTTP tool that has accepted the call sends its result, also if it was deleted or renamed
    # since. A run's other tools of this kind are those of its persona, which stay.
    is_idempotent = tool is not None and tool.idempotent
    return PendingCall(
        call.id,
        call.name,
        call.arguments,
        tool.result_from if tool else ResultSource.HTTP,
        {
            "idempotent": is_idempotent if own is None else own.idempotent,
            "idempotency_key": info.idempotency_key,
            "traceparent": info.traceparent,
        },
        None if own is None else own.timeout_seconds,
    )
