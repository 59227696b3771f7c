"""The agent loop: model call, tools, model call, … until the model has its last word.

It knows nothing of SQL, Redis, Celery or Flask; `context` is all it has of the run.
"""

import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shared import events, fault_points, ids
from shared.egress import Policy
from shared.errors import LeaseLost
from shared.events import Usage
from shared.model_routes import Route
from shared.personas import Persona
from worker import context_window, tool_loops
from worker.context import RunContext
from worker.conversation import Turn
from worker.messages import Message, ModelRequest, ToolCall, ToolMessage, without_state
from worker.model_call import bounded, call_model
from worker.outcomes import LimitExceeded, ShuttingDown, WaitForInput
from worker.route_chain import RouteChain
from worker.stop_signal import StopSignal
from worker.tools import CallInfo, Tool, ToolFailed

MAX_OUTPUT_BYTES = 65_536
#: More calls than any model makes on purpose; each is a thread while it lasts.
MAX_CALLS_PER_TURN = 64
#: Beyond it an id would not fit into an index of the ledger.
MAX_CALL_ID_CHARACTERS = 256
#: Of a model's context, where nothing says how long its answer may get.
ANSWER_TOKENS = 4096

UNKNOWN_OUTCOME = (
    "The outcome of this call is unknown: the process that made it was lost. It may or may not"
    " have had its effect, and it was not repeated."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """What stays the same through all the steps of a run."""

    run_id: str
    persona: Persona
    chain: RouteChain
    tools: Mapping[str, Tool]
    history: Sequence[Message]  # the thread up to this run
    unread: int = 0  # messages of the thread before those
    egress: Policy = field(default_factory=Policy)  # what tools may reach
    draining: threading.Event  # set when the process ends: let go at the next step


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The model's last word: what the run is completed with."""

    message_id: str
    content: str
    stop_reason: str
    closing: tuple[events.Event, ...] = field(default=())  # still to be written, with the end


def run(agent: Agent, context: RunContext, stop: StopSignal, turns: list[Turn]) -> Answer:
    """Go on from `turns`, the finished turns of this run, to the model's last word.

    Raises:
        RunFailure: the run fails. StopRun, LeaseLost: this attempt ends.
    """
    dropped = Dropped()
    while True:
        if turns and turns[-1].is_open:
            _call_tools(agent, context, turns[-1])
            tool_loops.check(turns)
        elif turns and not turns[-1].calls:
            return Answer(
                message_id=turns[-1].message_id, content=turns[-1].content, stop_reason="stop"
            )
        context.check()
        if turns and agent.draining.is_set():
            raise ShuttingDown()
        if len(turns) >= agent.persona.max_steps:
            raise LimitExceeded(
                "run.max_steps", f"The run took {len(turns)} steps, as many as its persona allows."
            )
        answer = _step(agent, context, stop, turns, dropped)
        if answer is not None:
            return answer


@dataclass(slots=True)
class Dropped:
    """How many messages the model was last said not to see."""

    messages: int = 0


def _step(
    agent: Agent, context: RunContext, stop: StopSignal, turns: list[Turn], dropped: Dropped
) -> Answer | None:
    """One model call. Appends the turn; returns the answer if it calls no tool."""

    def build(route: Route) -> ModelRequest:
        request, left_out = _request(agent, context, route, turns)
        if left_out > dropped.messages:
            context.emit(events.ContextTruncated(left_out))
        dropped.messages = left_out
        return request

    fault_points.reach("worker.before_model")
    reply = call_model(agent.chain, build, context, stop)
    fault_points.reach("worker.after_model")
    message_id = str(ids.new_id())
    content, tool_calls = reply.message.content, reply.message.tool_calls
    state = reply.message.state
    completed = events.MessageCompleted(message_id, events.clean(content), reply.usage, state)
    if not tool_calls:
        return Answer(
            message_id=message_id,
            content=content,
            stop_reason=reply.end.stop_reason,
            closing=(completed, reply.cost),
        )
    calls = _with_own_ids(tool_calls, turns)
    # All or nothing: a turn without its calls would be taken for the last word.
    requested = [events.ToolCallRequested(c.id, c.name, c.arguments) for c in calls]
    context.emit(completed, *requested, reply.cost)
    context.settle()
    turns.append(Turn(message_id, content, calls, state=state))
    return None


def _request(
    agent: Agent, context: RunContext, route: Route, turns: Sequence[Turn]
) -> tuple[ModelRequest, int]:
    """What the model of the route is sent, and how many messages were left out."""
    specs = [tool.spec for tool in agent.tools.values()]
    prompt = agent.persona.system_prompt
    most = agent.persona.max_output_tokens or route.max_output_tokens
    history = without_state(agent.history, but_of=route)
    own = [without_state(turn.messages(), but_of=route) for turn in turns]
    room = None
    if route.context_tokens is None:
        messages, left_out = [*history, *itertools.chain(*own)], 0
    else:
        room = route.context_tokens - context_window.tokens_of_frame(prompt, specs)
        answer = min(most or ANSWER_TOKENS, route.context_tokens // 2)
        messages, left_out = context_window.fit(history, own, room - answer)
        room -= sum(map(context_window.tokens_of, messages))
        most = most and min(most, max(room, answer))
    request = ModelRequest(
        model=route.model,
        system_prompt=prompt,
        messages=messages,
        tools=specs,
        max_output_tokens=most,
        room_tokens=room,
        turn=len(turns),
        attempt=context.attempt,
    )
    return request, agent.unread + left_out


def estimate_lost(agent: Agent, context: RunContext, turns: Sequence[Turn], text: str) -> Usage:
    """What the call has used in which an earlier attempt was lost after it had streamed `text`."""
    request, _ = _request(agent, context, agent.chain.route, turns)
    return agent.chain.provider.estimate(bounded(request, context), text)


def _with_own_ids(calls: Sequence[ToolCall], turns: Sequence[Turn]) -> list[ToolCall]:
    """The calls with ids that are unique in the run; some servers begin anew in each turn.

    What a person says to one call must never be taken for an answer to another.
    """
    taken = {call.id for turn in turns for call in turn.calls}
    unique: list[ToolCall] = []
    for number, call in enumerate(calls, 1):
        call_id, others = events.clean(call.id), itertools.count(number)
        while not 0 < len(call_id) <= MAX_CALL_ID_CHARACTERS or call_id in taken:
            call_id = f"call_{len(turns) + 1}_{next(others)}"
        taken.add(call_id)
        unique.append(replace(call, id=call_id, name=events.clean(call.name)))
    return unique


def _call_tools(agent: Agent, context: RunContext, turn: Turn) -> None:
    """Ask people first, one question at a time; then make the calls side by side."""
    waiting = [call for call in turn.calls if call.id not in turn.results]
    for call in waiting:
        if question := _question(agent, turn, call):
            raise question
    context.checkpoint()
    calls = [_SideBySide(agent, context, turn, call) for call in waiting]
    stopped: BaseException | None = None
    for made in calls:
        made.join()
        stopped = stopped or made.stopped
        # Where the run goes on elsewhere, results come in call order there: the ledger has them.
        if made.stopped is None and not isinstance(stopped, ShuttingDown | LeaseLost):
            context.emit(made.result)
            turn.results[made.call.id] = ToolMessage(
                made.call.id, made.call.name, made.result.output
            )
    if stopped is not None:
        raise stopped
    # The step is over: a crash in the next one must not ask what became of these calls.
    context.checkpoint()
    fault_points.reach("worker.step_finished")


class _SideBySide(threading.Thread):
    """A tool call under way; `stopped` is what ended it if the run has to stop."""

    def __init__(self, agent: Agent, context: RunContext, turn: Turn, call: ToolCall) -> None:
        super().__init__(name=f"tool-{call.name}", daemon=True)
        self.call = call
        self.result: events.ToolResult
        self.stopped: BaseException | None = None
        self._arguments = (agent, context, turn, call)
        self.start()

    def run(self) -> None:
        self.result, self.stopped = _call(*self._arguments)


def _question(agent: Agent, turn: Turn, call: ToolCall) -> WaitForInput | None:
    """What a person must answer before this call, if anything still."""
    tool = agent.tools.get(call.name)
    if tool is None or _is_too_many(turn, call) or _misfit(tool, call.arguments):
        return None
    if call.name == "ask_user":
        if call.id in turn.answers:
            return None
        options = [events.clean(option) for option in call.arguments.get("options") or ()]
        question = events.clean(call.arguments["question"])
        return WaitForInput("question", question, call.id, options or None)
    if not agent.persona.confirm & {call.name, "*"}:
        return None
    prompt = f"Allow the call of {call.name}?"
    if (decision := turn.decision(call)) is not None:
        if _is_another(turn, call, tool):
            return None  # it is not made
        if decision.arguments is None or not (why := _misfit(tool, decision.arguments)):
            return None
        prompt = f"The arguments do not fit: {why} {prompt}"
    return WaitForInput(
        "tool_confirmation",
        prompt,
        call.id,
        ["approve", "deny", "edit"],
        tool_name=call.name,
        arguments=call.arguments,
        mcp_tool=tool.mcp_tool,
    )


def _is_too_many(turn: Turn, call: ToolCall) -> bool:
    return turn.calls.index(call) >= MAX_CALLS_PER_TURN


def _is_another(turn: Turn, call: ToolCall, tool: Tool) -> bool:
    """Whether a person was asked about another tool, which had this one's name then."""
    return turn.asked_of.get(call.id) != tool.mcp_tool


def _misfit(tool: Tool, arguments: Any) -> str | None:
    try:
        tool.check(arguments)
    except ToolFailed as error:
        return str(error)
    return None


def _call(
    agent: Agent, context: RunContext, turn: Turn, call: ToolCall
) -> tuple[events.ToolResult, BaseException | None]:
    """The call's result, and what stopped it if the run has to stop."""
    if call.id in turn.done:
        return turn.done[call.id], None
    start = time.monotonic()
    stopped: BaseException | None = None
    begun = is_error = False
    output = ""
    try:
        tool, made = _permitted(agent, context, turn, call)
        if call.name == "ask_user":
            output = turn.answers.get(call.id, "")
        else:
            context.check()
            _begin(context, tool, call)
            begun = True
            output = _make(agent, context, tool, made)
    except ToolFailed as error:
        output, is_error = str(error), True
    except Exception as error:
        output, is_error = f"The tool failed: {type(error).__name__}: {error}", True
    except BaseException as error:
        stopped = error
    duration_ms = round((time.monotonic() - start) * 1000)
    result = events.ToolResult(call.id, call.name, cut(output), is_error, duration_ms)
    if begun and stopped is None and len(turn.calls) - len(turn.results) > 1:
        # Its event waits for the calls before it; a crash meanwhile must not lose what came of it.
        try:
            context.end_tool_call(result)
        except BaseException as error:
            stopped = error
    return result, stopped


def _permitted(
    agent: Agent, context: RunContext, turn: Turn, call: ToolCall
) -> tuple[Tool, ToolCall]:
    """The tool and the call as it is to be made.

    Raises:
        ToolFailed: there is no such tool, the arguments do not fit, somebody has denied it, or
            has confirmed another one.
    """
    tool = agent.tools.get(call.name)
    if tool is None:
        raise _not_made(context, call, f"There is no tool {call.name!r}.")
    if _is_too_many(turn, call):
        raise ToolFailed(f"Not made: one turn may have {MAX_CALLS_PER_TURN} calls.")
    decision = None if call.name == "ask_user" else turn.decision(call)
    if decision is not None and not decision.approved:
        raise ToolFailed(f"The call was denied: {decision.reason}".removesuffix(": "))
    if decision is not None and _is_another(turn, call, tool):
        why = f"Not made: {call.name!r} is another tool now than the one that was confirmed."
        raise _not_made(context, call, f"{why} Call it again to have it confirmed anew.")
    made = turn.as_made(call)
    tool.check(made.arguments)
    return tool, made


def _not_made(context: RunContext, call: ToolCall, why: str) -> ToolFailed:
    """Unless an earlier attempt has begun it, while the tool was there: nobody knows of that."""
    is_new = context.attempt == 1 or context.begin_tool_call(call.id)
    return ToolFailed(why if is_new else UNKNOWN_OUTCOME)


def _begin(context: RunContext, tool: Tool, call: ToolCall) -> None:
    """Write the call into the ledger, before it can have an effect."""
    if not context.begin_tool_call(call.id) and not tool.repeatable:
        raise ToolFailed(UNKNOWN_OUTCOME)
    fault_points.reach("worker.tool_begun")


def _make(agent: Agent, context: RunContext, tool: Tool, call: ToolCall) -> str:
    info = CallInfo(idempotency_key=f"{agent.run_id}:{call.id}", egress=agent.egress)
    output = tool(context, info, call.arguments)
    fault_points.reach("worker.tool_returned")
    return output


def cut(output: str) -> str:
    """At most 64 KiB of UTF-8; what is longer is cut and says so."""
    # Cut by characters first: cleaning and encoding 100 MB would stop the whole process.
    encoded = events.clean(output[: MAX_OUTPUT_BYTES + 1]).encode()
    if len(encoded) <= MAX_OUTPUT_BYTES:
        return encoded.decode()
    mark = f"\n[cut: the output had {len(output)} characters]"
    return encoded[: MAX_OUTPUT_BYTES - len(mark)].decode(errors="ignore") + mark
