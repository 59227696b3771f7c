"""A tool of the fault tests: a side effect that a test can count."""

from arkloop.shared import fault_points
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.tools import ToolFailed, tool


@tool(idempotent=False)
def append_line(context: ToolContext, path: str, line: str) -> str:
    """Append a line to a file."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise ToolFailed(str(error)) from None
    fault_points.reach("worker.in_tool")
    return "appended"
