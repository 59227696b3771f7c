"""The tool calls of one turn: what a person must approve first, then all of them side by side."""

import threading
import time
from typing import Any

from shared import events, fault_points
from shared.errors import LeaseLost
from worker.agent import Agent
from worker.context import RunContext
from worker.conversation import Turn
from worker.messages import ToolCall, ToolMessage
from worker.outcomes import ShuttingDown, WaitForInput
from worker.tools import CallInfo, Tool, ToolFailed

MAX_OUTPUT_BYTES = 65_536
#: More calls than any model makes on purpose; each is a thread while it lasts.
MAX_CALLS_PER_TURN = 64

UNKNOWN_OUTCOME = (
    "The outcome of this call is unknown: the process that made it was lost. It may or may not"
    " have had its effect, and it was not repeated."
)


def call_tools(agent: Agent, context: RunContext, turn: Turn) -> None:
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
