"""Chunks of the AI SDK's UI message stream that depend on one event or call alone."""

from collections.abc import Mapping
from typing import Any

from arkloop.shared.agents.approvals import ApprovalReply

Chunk = dict[str, Any]

#: Events that a page may show while they are news; they do not become part of the message.
NOTICES = frozenset(
    {
        *("tool.progress", "run.throttled", "run.retrying", "run.fallback"),
        *("run.limit_reached", "run.delegated", "run.suspended", "run.resumed"),
    }
)


def notice(kind: str, data: Mapping[str, Any]) -> Chunk:
    """Return the chunk of an event that is one of `NOTICES`."""
    name = "data-arkloop-" + kind.removeprefix("run.").replace(".", "-")
    return {"type": name, "data": data, "transient": True}


def call_input(call_id: str, call: Mapping[str, Any], *, by_client: bool = False) -> Chunk:
    """Return the chunk that shows a call with its arguments."""
    # `providerExecuted` keeps the client from executing a call, and from waiting for its result.
    shown = {"toolCallId": call_id, "toolName": call["name"], "input": call["arguments"]}
    return {"type": "tool-input-available", **shown, "providerExecuted": not by_client}


def approval_reply(request_id: str, reply: ApprovalReply) -> Chunk:
    """Return the chunk that shows the reply to a request for approval."""
    response: Chunk = {"approvalId": request_id, "approved": reply.approved}
    if reply.reason:
        response["reason"] = reply.reason
    return {"type": "tool-approval-response", **response}
