"""Ids of calls that are unique in a run: some models' servers count the calls of each turn anew."""

import hashlib
import re

from arkloop.agents import AgentRun

#: The ids that a run can record.
_RECORDABLE = re.compile("[!-~]{1,128}")


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
        while recorded(unique) in self._used:
            number += 1
            unique = f"{given}-{number}"
        self._used.add(recorded(unique))
        return unique


def recorded(call_id: str) -> str:
    """Return the id under which the run records the call that has this id in the framework.

    Some servers keep more in an id than that, which the model needs with the call's result, such as
    LiteLLM a signature of Gemini: the framework's messages have the id as it is.
    """
    if _RECORDABLE.fullmatch(call_id):
        return call_id
    beginning = re.sub("[^!-~]", "", call_id[:64])
    return f"{beginning}-{hashlib.sha256(call_id.encode()).hexdigest()[:32]}"
