"""The calls that a lost process had begun, for agents that continue by the conversation alone."""

from arkloop.agents import UNKNOWN_OUTCOME, AgentRun


def record_unknown(run: AgentRun) -> None:
    """Record their results as `run.messages` has them, before the model is called again."""
    for call in run.pending_calls:
        run.tool_result(call["id"], UNKNOWN_OUTCOME, is_error=True)
