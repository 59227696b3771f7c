"""Ids of calls that are unique in a run: some models' servers count the calls of each turn anew."""

from arkloop.agents import AgentRun


class CallIds:
    """The ids of a run's calls, those of the conversation before it among them."""

    def __init__(self, run: AgentRun) -> None:
        self._used = {
            call["id"] for message in run.messages for call in message.get("tool_calls", ())
        }

    def new(self, call_id: str | None) -> str:
        """Return the id of a new call: the model's, with a number if an earlier call has it."""
        given = call_id or "call"
        unique, number = given, 1
        while unique in self._used:
            number += 1
            unique = f"{given}-{number}"
        self._used.add(unique)
        return unique
