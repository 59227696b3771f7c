"""The names that the author of an agent needs; `docs/how-to/agents.md` shows their use."""

from arkloop.shared.agents.agent_run import UNKNOWN_OUTCOME, AgentRun, Call, Message, RunStopped

__all__ = ["UNKNOWN_OUTCOME", "AgentRun", "Call", "Message", "RunStopped"]
