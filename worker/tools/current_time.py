"""The time of day."""

from arkloop.shared import times
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.tools import tool


@tool(idempotent=True)
def current_time(context: ToolContext) -> str:
    """Return the current date and time in UTC."""
    return times.rfc3339(times.now())
