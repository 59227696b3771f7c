"""A tool of the fault tests: it takes time and does nothing."""

from arkloop.worker.contract.context import ToolContext
from arkloop.worker.tools import tool


@tool(idempotent=True, timeout_seconds=3600)
def sleep(context: ToolContext, seconds: float) -> str:
    """Wait for this number of seconds."""
    context.wait(seconds)
    return f"slept {seconds:g} s"
