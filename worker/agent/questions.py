"""Questions to people before a tool call: those of `ask_user`, and requests for approval."""

from collections.abc import Mapping
from typing import Any

from arkloop.shared.events.plain import clean
from arkloop.shared.runs import form_replies
from arkloop.worker.agent.agent import Agent
from arkloop.worker.agent.conversation import Turn
from arkloop.worker.contract.input_requests import InputRequest
from arkloop.worker.contract.messages import ToolCall
from arkloop.worker.contract.outcomes import BOUND_TO, WaitForInput
from arkloop.worker.tools import AUTOMATIC_TOOLS, Tool, ToolFailed

#: More calls than any model makes on purpose; each is a thread while it lasts.
MAX_CALLS_PER_TURN = 64
#: A reply that is still unclear then denies the call.
MAX_ASKED = 3


def question(agent: Agent, turn: Turn, call: ToolCall) -> WaitForInput | None:
    """Return what a user must still answer before this call, None if nothing."""
    tool = tool_of(agent, turn, call)
    if tool is None or is_too_many(turn, call) or misfit(tool, call.arguments):
        return None
    if call.name == "ask_user":
        if call.id in turn.answers:
            return None
        options = [clean(option) for option in call.arguments.get("options") or ()]
        asked = clean(call.arguments["question"])
        return WaitForInput(
            persona=agent.persona,
            kind="question",
            prompt=asked,
            tool_call_id=call.id,
            options=options or None,
        )
    if (request := turn.input_requests.get(call.id)) is not None:
        return _form(agent, turn, call, request)
    if call.name in AUTOMATIC_TOOLS or not agent.persona.require_approval & {call.name, "*"}:
        return None
    prompt = f"Allow the call of {call.name}?"
    if (reply := turn.approval_reply(call)) is not None:
        if is_another(turn, call, tool):
            return None  # it is not made
        if not reply.is_clear and turn.asked[call.id] < MAX_ASKED:
            prompt = f"The reply was neither yes nor no. {prompt}"
        elif reply.arguments is not None and (why := misfit(tool, reply.arguments)):
            prompt = f"Invalid arguments: {why} {prompt}"
        else:
            return None
    return WaitForInput(
        persona=agent.persona,
        kind="tool_confirmation",
        prompt=prompt,
        tool_call_id=call.id,
        options=["approve", "deny", "edit"],
        tool_name=call.name,
        arguments=call.arguments,
        **{name: getattr(tool, name) for name in BOUND_TO},
    )


def _form(agent: Agent, turn: Turn, call: ToolCall, request: InputRequest) -> WaitForInput | None:
    """Return what the tool still asks people for, None if there is a reply to all of it."""
    asked = request.next(turn.replies_to(call.id))
    if asked is not None and (reply := _reply_to_other_call(turn, asked)) is not None:
        turn.shared_replies.setdefault(call.id, []).append(reply)
        asked = request.next(turn.replies_to(call.id))
    if asked is None:
        return None
    return WaitForInput(
        persona=agent.persona,
        kind=asked["kind"],
        prompt=asked["prompt"],
        tool_call_id=call.id,
        options=list(form_replies.ACTIONS),
        tool_name=call.name,
        mcp_tool=request.mcp_tool,
        schema=asked.get("schema"),
        url=asked.get("url"),
        is_held=request.held is not None,
        gives_access=bool(asked.get("is_shared")),
    )


def _reply_to_other_call(turn: Turn, asked: Mapping[str, Any]) -> str | None:
    """Return the reply that another call of the turn has had, if one is enough for both."""
    if not asked.get("is_shared"):
        return None
    for call_id, other in turn.input_requests.items():
        replies = turn.replies.get(call_id, [])[other.earlier :]
        for one, reply in zip(other.asked, replies, strict=False):
            if one.get("is_shared") and one["url"] == asked["url"]:
                return reply
    return None


def tool_of(agent: Agent, turn: Turn, call: ToolCall) -> Tool | None:
    """Return the tool of the call, None if there is none that the run may call.

    A tool that people were asked about is found under its new name, too: the names of tools of MCP
    servers and of pools depend on which other tools there are.
    """
    if not agent.may_call_tools:
        return None
    request = turn.input_requests.get(call.id)
    asked_of = turn.asked_of.get(call.id) if request is None else request.mcp_tool
    if asked_of is not None:
        for tool in agent.tools.values():
            if tool.bound_to == asked_of:
                return tool
    return agent.tools.get(call.name)


def is_too_many(turn: Turn, call: ToolCall) -> bool:
    """Return whether the turn has too many calls before this one."""
    return turn.calls.index(call) >= MAX_CALLS_PER_TURN


def is_another(turn: Turn, call: ToolCall, tool: Tool) -> bool:
    """Return whether the user was asked about another tool, which had this one's name then."""
    asked_of = turn.asked_of.get(call.id)
    if asked_of is None:  # built in, or asked by the release before, which named MCP tools alone
        return tool.mcp_tool is not None
    return asked_of != tool.bound_to


def misfit(tool: Tool, arguments: Any) -> str | None:
    """Return why the arguments do not fit the tool, None if they do."""
    try:
        tool.check(arguments)
    except ToolFailed as error:
        return str(error)
    return None
