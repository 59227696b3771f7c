"""The tool that asks a person; the loop waits for the answer, so it never runs by itself."""

from worker.context import RunContext
from worker.tools import tool


@tool(repeatable=True)
def ask_user(context: RunContext, question: str, options: list[str] | None = None) -> str:
    """Ask the person who started this a question, and wait for their answer."""
    raise AssertionError("the loop answers ask_user")
