"""Calls that an earlier execution left open, for agents that continue by the conversation alone."""

from arkloop.agents import UNKNOWN_OUTCOME, AgentRun, Message


def conversation(run: AgentRun) -> list[Message]:
    """Return the messages to continue from; lost calls get their unknown outcome as a result.

    If the last turn has calls that have not begun, because the run waited for a person, the
    messages end with it. Make all its calls then, before the model is called: a step whose result
    is recorded returns it.
    """
    for call in run.pending_calls:
        run.tool_result(call["id"], UNKNOWN_OUTCOME, is_error=True)
    messages = [*run.messages]
    made = {message.get("tool_call_id") for message in messages}
    for place, message in enumerate(messages):
        if any(call["id"] not in made for call in message.get("tool_calls", ())):
            return messages[: place + 1]
    return messages
