"""The custom agents that are installed next to this worker, by the name that personas use."""

from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from arkloop.shared.agents.agent_run import AgentRun

#: A function, or a coroutine function: it returns the answer, or None if it has streamed it.
AgentFunction = Callable[[AgentRun], Any]
GROUP = "arkloop.agents"


class AgentNotInstalled(LookupError):
    """An agent that no installed package has."""


@cache
def find(name: str) -> AgentFunction:
    """Return the agent of this name.

    Raises:
        AgentNotInstalled
        Exception: its module raised.
    """
    for entry in entry_points(group=GROUP, name=name):
        function: AgentFunction = entry.load()
        return function
    raise AgentNotInstalled(name)
