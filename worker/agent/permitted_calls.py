"""The calls that may be made, and their beginning in the ledger."""

from arkloop.shared import fault_points
from arkloop.worker.agent.agent import Agent
from arkloop.worker.agent.conversation import Turn
from arkloop.worker.agent.questions import MAX_CALLS_PER_TURN, is_another, is_too_many, tool_of
from arkloop.worker.agent.structured_output import NOT_ALONE
from arkloop.worker.contract.context import ToolLedger
from arkloop.worker.contract.input_requests import Replies
from arkloop.worker.contract.messages import ToolCall
from arkloop.worker.providers.output_modes import FINAL_TOOL
from arkloop.worker.tools import Tool, ToolFailed

UNKNOWN_OUTCOME = (
    "The outcome of this call is unknown: the process that made it crashed. The call"
    " may or may not have taken effect, and was not repeated."
)


def permitted(
    agent: Agent, context: ToolLedger, turn: Turn, call: ToolCall
) -> tuple[Tool, ToolCall]:
    """Return the tool and the call as it is to be made.

    Raises:
        ToolFailed: there is no such tool, the arguments do not fit, a user has denied it, or
            has approved another one.
    """
    tool = tool_of(agent, turn, call)
    reply = None if call.name == "ask_user" else turn.approval_reply(call)
    # Also of a tool that is gone: the model reads why people did not want this.
    if reply is not None and not reply.approved and (tool is not None or reply.is_clear):
        raise ToolFailed(f"The call was denied: {reply.reason}".removesuffix(": "))
    if tool is None:
        raise _not_made(context, turn, call, _why_missing(agent, turn, call))
    if is_too_many(turn, call):
        raise ToolFailed(f"Not executed: a turn may contain at most {MAX_CALLS_PER_TURN} calls.")
    if reply is not None and is_another(turn, call, tool):
        why = f"Not executed: tool {call.name!r} has changed since it was approved."
        raise _not_made(context, turn, call, f"{why} Call it again to request a new approval.")
    made = turn.as_made(call)
    tool.check(made.arguments)
    return tool, made


def _why_missing(agent: Agent, turn: Turn, call: ToolCall) -> str:
    if call.id in turn.input_requests:  # the tool was called, and has asked people
        return f"Not completed: tool {call.name!r} is no longer available."
    if call.id in turn.asked_of:
        return f"Not executed: tool {call.name!r} is no longer available."
    if call.name == FINAL_TOOL and agent.output is not None:
        return NOT_ALONE
    if not agent.may_call_tools:
        return "Not executed: `tool_choice` is `none`."
    return f"Unknown tool {call.name!r}."


def _not_made(context: ToolLedger, turn: Turn, call: ToolCall, why: str) -> ToolFailed:
    """Build the error of a refused call, or of one that an earlier attempt may have made."""
    if call.id in turn.input_requests:  # it has begun, has asked people, and is in the ledger
        is_new = context.continue_tool_call(call.id)
    else:
        is_new = not context.is_resumed or context.begin_tool_call(call.id)
    return ToolFailed(why if is_new else UNKNOWN_OUTCOME)


def begin(context: ToolLedger, tool: Tool, turn: Turn, call: ToolCall) -> Replies | None:
    """Write the call into the ledger, before it can have an effect; return people's replies."""
    if (request := turn.input_requests.get(call.id)) is not None:
        if request.mcp_tool != tool.mcp_tool:
            raise ToolFailed(f"Not executed: tool {call.name!r} has changed since it asked.")
        if not context.continue_tool_call(call.id):
            raise ToolFailed(UNKNOWN_OUTCOME)
        fault_points.reach("worker.tool_begun")
        responses = request.responses(turn.replies_to(call.id))
        turn.shared_replies.pop(call.id, None)
        return Replies(responses, request.state, request.held)
    if not context.begin_tool_call(call.id, tool.result_from) and not tool.idempotent:
        raise ToolFailed(UNKNOWN_OUTCOME)
    fault_points.reach("worker.tool_begun")
    return None
