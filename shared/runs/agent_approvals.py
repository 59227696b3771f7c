"""Approvals of what a custom agent is about to do, by the questions that every agent can ask."""

import json
from typing import Any

from arkloop.shared.agents import approvals
from arkloop.shared.agents.agent_run import AgentRun
from arkloop.shared.agents.approvals import ApprovalReply
from arkloop.shared.errors import InvalidRequest

OPTIONS = ("approve", "deny", "edit")
#: Of the arguments, as a person sees them.
MAX_SHOWN_CHARACTERS = 4000


def approve(run: AgentRun, name: str, arguments: Any, *, tool_call_id: str) -> ApprovalReply:
    """Ask a person whether the tool may be called, before the call is recorded.

    As `AgentRun.ask`, it returns once there is an answer. The reply is as those to the built-in
    loop's calls: `approved`, `arguments` in place of the given ones, or the `reason` of a denial.
    An answer that is neither denies the call.
    """
    shown = json.dumps(arguments, ensure_ascii=False)
    if len(shown) > MAX_SHOWN_CHARACTERS:
        shown = f"{shown[:MAX_SHOWN_CHARACTERS]}…"
    answer = run.ask(f"Allow the call of {name}? {shown}", OPTIONS, key=tool_call_id)
    try:
        return approvals.read(answer)
    except InvalidRequest:
        return ApprovalReply(approved=False, reason=answer, is_clear=False)
