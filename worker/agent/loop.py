"""The agent loop: model call, tools, model call, … until the model has its last word.

It knows nothing of SQL, Redis, Celery or Flask; `context` is all it has of the run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from shared import fault_points, ids
from shared.events import types
from shared.events.types import Usage
from worker.agent import tool_loops
from worker.agent.agent import Agent
from worker.agent.conversation import Turn
from worker.agent.model_call import Reply, bounded, call_model
from worker.agent.request_builder import RequestBuilder
from worker.agent.tool_calls import call_tools
from worker.contract.context import RunContext
from worker.contract.outcomes import LimitExceeded, RunFailure, ShuttingDown
from worker.contract.stop_signal import StopSignal


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The model's last word: what the run is completed with."""

    message_id: str
    content: str
    stop_reason: str
    closing: tuple[types.Event, ...] = field(default=())  # still to be written, with the end


def run(agent: Agent, context: RunContext, stop: StopSignal, turns: list[Turn]) -> Answer:
    """Run the loop from `turns`, the run's finished turns, to the model's final answer.

    Raises:
        RunFailure: the run fails. StopRun, LeaseLost: this attempt ends.
    """
    requests = RequestBuilder(agent, context, turns)
    while True:
        if turns and turns[-1].is_open:
            call_tools(agent, context, turns[-1])
            tool_loops.check(turns, agent.persona.max_equal_turns)
        elif turns and not turns[-1].calls:
            return Answer(
                message_id=turns[-1].message_id, content=turns[-1].content, stop_reason="stop"
            )
        context.check()
        if turns and agent.draining.is_set():
            raise ShuttingDown()
        if len(turns) >= agent.persona.max_steps:
            raise LimitExceeded(
                "run.max_steps", f"The run reached its persona's limit of {len(turns)} steps."
            )
        answer = _step(agent, context, stop, turns, requests)
        if answer is not None:
            return answer


def _step(
    agent: Agent,
    context: RunContext,
    stop: StopSignal,
    turns: list[Turn],
    requests: RequestBuilder,
) -> Answer | None:
    """Make one model call. Appends the turn; returns the answer if it calls no tool."""
    fault_points.reach("worker.before_model")
    reply = call_model(agent.chain, requests.build, context, stop, requests.shrink)
    fault_points.reach("worker.after_model")
    requests.measured(agent.chain.route, reply.request, reply.usage)
    message_id = str(ids.new_id())
    content, tool_calls = reply.message.content, reply.message.tool_calls
    state = reply.message.state
    completed = types.MessageCompleted(message_id, types.clean(content), reply.usage, state)
    if not tool_calls:
        _check_for_answer(reply)
        return Answer(
            message_id=message_id,
            content=content,
            stop_reason=reply.end.stop_reason,
            closing=(completed, reply.cost),
        )
    # All or nothing: a turn without its calls would be taken for the last word.
    requested = [types.ToolCallRequested(c.id, c.name, c.arguments) for c in tool_calls]
    context.emit(completed, *requested, reply.cost)
    context.admission.settle()
    turns.append(Turn(message_id, content, list(tool_calls), state=state))
    return None


def _check_for_answer(reply: Reply) -> None:
    """Check for an answer. Raises: RunFailure: the model's reasoning has used up its output."""
    if reply.end.stop_reason != "length" or reply.message.content.strip():
        return
    used = reply.usage
    raise RunFailure(
        "provider.output_limit",
        "The model reached its output limit before it produced an answer: it used"
        f" {used.output_tokens}"
        f" tokens, {used.reasoning_tokens} of them for reasoning. Raise `max_output_tokens`.",
    )


def estimate_lost(agent: Agent, context: RunContext, turns: Sequence[Turn], text: str) -> Usage:
    """Estimate the usage of a call that was lost after it had streamed `text`."""
    request = RequestBuilder(agent, context, turns).lost(agent.chain.route)
    return agent.chain.provider.estimate(bounded(request, context.admission), text)
