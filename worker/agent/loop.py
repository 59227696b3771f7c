"""The agent loop: model call, tools, model call, … until the model has its last word.

It knows nothing of SQL, Redis, Celery or Flask; `context` is all it has of the run.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from arkloop.shared import fault_points, ids
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.events import types
from arkloop.shared.events.plain import clean
from arkloop.shared.events.usage import Usage
from arkloop.shared.runs import limits_reached
from arkloop.shared.runs.states import ResultSource
from arkloop.worker.agent import landing, structured_output, tool_loops
from arkloop.worker.agent.agent import Agent
from arkloop.worker.agent.awaited_results import result_source
from arkloop.worker.agent.conversation import Turn, steered_by
from arkloop.worker.agent.model_call import Reply, bounded, call_model
from arkloop.worker.agent.request_builder import RequestBuilder
from arkloop.worker.agent.structured_output import Output
from arkloop.worker.agent.tool_calls import call_tools, cut_off_calls
from arkloop.worker.contract.context import RunContext
from arkloop.worker.contract.messages import ModelRequest, ToolCall
from arkloop.worker.contract.outcomes import (
    DeadlineExceeded,
    LimitExceeded,
    RunFailure,
    ShuttingDown,
    TimeToLand,
    TooLarge,
)
from arkloop.worker.contract.stop_signal import StopSignal

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The model's last word: what the run is completed with."""

    message_id: str
    content: str
    stop_reason: str
    output: dict[str, Any] | None = None  # of a run with an output schema: what `content` means
    closing: tuple[types.Event, ...] = field(default=())  # still to be written, with the end


def run(
    agent: Agent,
    context: RunContext,
    stop: StopSignal,
    turns: list[Turn],
    limit_reached: str | None = None,
) -> Answer:
    """Run the loop from `turns`, the run's finished turns, to the model's final answer.

    At a limit the run lands, with one last call, unless its persona says that it fails.
    `limit_reached` is the `stop_reason` of a run that reached a limit in an earlier attempt.

    Raises:
        RunFailure: the run fails. StopRun, LeaseLost: this attempt ends.
    """
    if agent.output:
        _ = agent.output.validator  # before the run pays for an answer that nothing can validate
    requests = RequestBuilder(agent, context, turns, stop)
    if turns and not turns[-1].calls and not turns[-1].output_errors:
        content, reason = turns[-1].content, limit_reached or "stop"
        output = agent.output.read(content, reason).value if agent.output else None
        return Answer(
            message_id=turns[-1].message_id, content=content, stop_reason=reason, output=output
        )
    if limit_reached is None:
        stop.can_land = agent.persona.on_limit == "answer"
        try:
            return _step_by_step(agent, context, stop, turns, requests)
        except LimitExceeded as limit:
            limit_reached, message = landing.stop_reason_of(limit, agent.persona), str(limit)
            if limit_reached is None:
                raise
            stop.begin_landing()
        except TimeToLand:
            limit_reached = "timeout"
            message = f"The run's {agent.persona.timeout_seconds:g} s are nearly over."
            stop.begin_landing()
            agent.chain.close()  # the signal has cut the connections for good
            context.void_text("run.timeout", context.admission.cost())
        results = cut_off_calls(context, turns[-1]) if turns else []
        context.emit(*results, types.RunLimitReached(limit_reached, message))
    return _land(agent, context, stop, turns, requests, limit_reached)


def _step_by_step(
    agent: Agent,
    context: RunContext,
    stop: StopSignal,
    turns: list[Turn],
    requests: RequestBuilder,
) -> Answer:
    """Make steps until one of them is the answer. Raises: LimitExceeded."""
    while True:
        if turns and turns[-1].is_open:
            call_tools(agent, context, turns[-1])
            tool_loops.check(_since_steered(agent, turns), agent.persona.max_equal_turns)
        elif turns and turns[-1].output_errors:
            structured_output.check_attempts([t.output_errors for t in turns if t.output_errors])
            context.checkpoint()
        context.check()
        if turns and agent.draining.is_set():
            raise ShuttingDown()
        if len(turns) >= agent.persona.max_steps:
            raise LimitExceeded(
                "run.max_steps", f"The run reached its persona's limit of {len(turns)} steps."
            )
        context.take_messages(agent.steered)
        answer = _step(agent, context, stop, turns, requests)
        if answer is not None:
            return answer


def _since_steered(agent: Agent, turns: Sequence[Turn]) -> Sequence[Turn]:
    """Return the turns after the last message that the run was steered with.

    People may ask for the same again: such turns are no loop.
    """
    if not agent.steered:
        return turns
    return [turn for turn in turns if turn.seq > agent.steered[-1].seq]


def _step(
    agent: Agent,
    context: RunContext,
    stop: StopSignal,
    turns: list[Turn],
    requests: RequestBuilder,
) -> Answer | None:
    """Make one model call. Appends the turn; returns the answer if it calls no tool.

    A turn that is not the output which the run must have is no answer.
    """
    fault_points.reach("worker.before_model")
    last_call = landing.last_within_budget if agent.persona.on_limit == "answer" else None
    reply = call_model(agent.chain, requests.build, context, stop, requests.shrink, last_call)
    fault_points.reach("worker.after_model")
    requests.measured(agent.chain.route, reply.request, reply.usage)
    reply = _with_output_as_text(agent, context, reply)
    message_id = str(ids.new_id())
    content, tool_calls = reply.message.content, reply.message.tool_calls
    state = reply.message.state
    completed = types.MessageCompleted(message_id, clean(content), reply.usage, state)
    if not tool_calls:
        is_of_output = reply.end.stop_reason == "length" and not reply.end.is_context_full
        is_cut_off = reply.is_shortened and is_of_output
        if is_cut_off and not content.strip():
            context.void_text("budget.exhausted", reply.cost)
            raise LimitExceeded(
                "budget.exhausted", "The budget paid only a part of the next output, without text."
            )
        _check_for_answer(reply)
        output = agent.output.read(content, reply.end.stop_reason) if agent.output else Output()
        if not output.errors:
            return Answer(
                message_id=message_id,
                content=content,
                stop_reason="budget" if is_cut_off else reply.end.stop_reason,
                output=output.value,
                closing=(completed, reply.cost),
            )
        completed = replace(completed, output_errors=output.errors)
    # All or nothing: a turn without its calls would be taken for the last word.
    requested = [_requested(agent, call) for call in tool_calls]
    seq = context.emit(completed, *requested, reply.cost)
    context.admission.settle()
    turn = Turn(message_id, content, list(tool_calls), state=state, seq=seq)
    turn.output_errors = completed.output_errors or ()
    turns.append(turn)
    return None


def _requested(agent: Agent, call: ToolCall) -> types.ToolCallRequested:
    is_of_client = result_source(agent, call) is ResultSource.CLIENT
    result_from = "client" if is_of_client else None
    return types.ToolCallRequested(call.id, call.name, call.arguments, result_from)


def _with_output_as_text(agent: Agent, context: RunContext, reply: Reply) -> Reply:
    """Return a reply that gives the output by the final tool as one in text, which is streamed."""
    if agent.output is None or (said := structured_output.as_text(reply)) is None:
        return reply
    if reply.message.content or agent.persona.stream_tool_arguments:
        context.void_text("output")
    context.stream_text(said.message.content)
    return said


def _land(
    agent: Agent,
    context: RunContext,
    stop: StopSignal,
    turns: Sequence[Turn],
    requests: RequestBuilder,
    reason: str,
) -> Answer:
    """Make the last call, without tools; whatever comes of it, the run leaves an answer."""
    context.check()
    if agent.draining.is_set():
        raise ShuttingDown()
    taken, unread = [*agent.steered], set[str]()
    if reason in landing.WITHOUT_SUMMARIES:
        # Messages that are not taken become runs of their own, with time and money for an answer.
        requests.truncate_only()
    else:
        # They may have arrived with the results of the last step: its limit was found before.
        offered = context.offered_messages(taken)
        unread |= {event.message_id for event in offered}
        # Their events will be behind all that the run has: any place there will do until then.
        last = max([*(turn.seq for turn in turns), *(one.seq for one in taken)], default=0)
        agent.steered.extend(steered_by(last + n, event) for n, event in enumerate(offered, 1))

    def take() -> None:
        """Take them once the answer begins: without one they become runs of their own, too."""
        if unread:
            context.take_messages(taken, unread)
            unread.clear()

    def build(route: Route) -> ModelRequest:
        return landing.last_request(requests.build(route), reason, agent.output)

    def shrink(route: Route, refused: ModelRequest, too_large: TooLarge) -> ModelRequest | None:
        without_instruction = replace(refused, messages=refused.messages[:-1])
        smaller = requests.shrink(route, without_instruction, too_large)
        return smaller and landing.last_request(smaller, reason, agent.output)

    try:
        reply = call_model(agent.chain, build, context, stop, shrink, on_output=take)
    except (RunFailure, DeadlineExceeded) as error:
        if isinstance(error, RunFailure) and error.code == "worker.crashed":
            raise  # its events cannot be stored, so that an answer would be without its steps
        log.warning("the run's last call failed: %r", error)
        return cut_off(agent.persona, context, reason, context.admission.cost())
    said = _with_output_as_text(agent, context, reply)
    if said is not reply:
        take()
    reply = said
    message_id, content = str(ids.new_id()), reply.message.content
    output = agent.output.read(content, reply.end.stop_reason) if agent.output else Output()
    if output.errors:
        raise RunFailure("output.invalid", landing.no_output(reason, output.errors))
    if not content.strip():
        content = _unanswered(context, reason)
    completed = types.MessageCompleted(message_id, clean(content), reply.usage)
    return Answer(
        message_id=message_id,
        content=content,
        stop_reason=reason,
        output=output.value,
        closing=(completed, reply.cost),
    )


def cut_off(
    persona: Persona,
    context: RunContext,
    reason: str,
    cost: types.Event,
    last_turn: types.MessageCompleted | None = None,
) -> Answer:
    """Answer with the text so far of a call that was cut off, else that there is none.

    `cost` is the run's last `run.cost`; `last_turn` is the last one of a custom agent, if it called
    no tool: without later text the run has that.

    Raises:
        RunFailure: neither would be the output that the run must have.
    """
    if persona.output_schema is not None:
        raise RunFailure("output.invalid", limits_reached.no_answer(reason))
    message_id, content = str(ids.new_id()), context.open_text
    usage = context.admission.last_usage if content else Usage()
    if not content.strip() and last_turn is not None and last_turn.content.strip():
        message_id, content = last_turn.message_id, last_turn.content
        return Answer(message_id=message_id, content=content, stop_reason=reason, closing=(cost,))
    if not content.strip():
        content = _unanswered(context, reason)
    completed = types.MessageCompleted(message_id, clean(content), usage)
    return Answer(
        message_id=message_id,
        content=content,
        stop_reason=reason,
        closing=(completed, cost),
    )


def _unanswered(context: RunContext, reason: str) -> str:
    """Stream the message that there is no answer, for those who follow the run."""
    message = limits_reached.no_answer(reason)
    context.stream_text(message)
    return message


def _check_for_answer(reply: Reply) -> None:
    """Check for an answer. Raises: RunFailure: the model's reasoning has used up its tokens."""
    if reply.end.stop_reason != "length" or reply.message.content.strip():
        return
    used, what, remedy = reply.usage, "reached its output limit", "Raise `max_output_tokens`."
    if reply.end.is_context_full:
        what = "filled its context"
        remedy = "Lower the route's `context_tokens`, or use a model with a larger context."
    raise RunFailure(
        "provider.output_limit",
        f"The model {what} before it produced an answer: it used {used.output_tokens}"
        f" tokens, {used.reasoning_tokens} of them for reasoning. {remedy}",
    )


def estimate_lost(agent: Agent, context: RunContext, turns: Sequence[Turn], text: str) -> Usage:
    """Estimate the usage of a call that was lost after it had streamed `text`."""
    request = agent.chain.supported(RequestBuilder(agent, context, turns).lost(agent.chain.route))
    return agent.chain.provider.estimate(bounded(request, context.admission), text)
