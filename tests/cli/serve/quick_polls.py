"""A tool and an agent of a worker that makes short pauses, for tests that wait for some of them."""

from arkloop.agents import AgentRun
from arkloop.cli.serve import pauses
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.tools import tool

pauses.MAX_PAUSE_SECONDS = 0.2


@tool(idempotent=True)
def greet(context: ToolContext) -> str:
    """Return a greeting."""
    return "hello"


def agent(run: AgentRun) -> str:
    return "hello"
