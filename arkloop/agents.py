"""The names that the author of an agent needs; `docs/how-to/agents.md` shows their use."""

from arkloop.shared.agents.agent_run import (
    UNKNOWN_OUTCOME,
    AgentRun,
    Call,
    DelegatedTask,
    Message,
    RunStopped,
    SubRunResult,
    ToolFailed,
)
from arkloop.shared.agents.approvals import ApprovalReply
from arkloop.shared.agents.transcript import InvalidCallId

__all__ = [
    "UNKNOWN_OUTCOME",
    "AgentRun",
    "ApprovalReply",
    "Call",
    "DelegatedTask",
    "InvalidCallId",
    "Message",
    "RunStopped",
    "SubRunResult",
    "ToolFailed",
]
