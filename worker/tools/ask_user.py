"""The tool that asks a person; the loop waits for the answer, so it never runs by itself."""

from typing import Annotated

from worker.context import RunContext
from worker.tools import tool

Option = Annotated[str, {"minLength": 1, "maxLength": 200}]


@tool(repeatable=True)
def ask_user(
    context: RunContext,
    question: Annotated[
        str,
        "What you want to know, in one or two sentences.",
        # Lists of runs carry it.
        {"minLength": 1, "maxLength": 8192},
    ],
    options: Annotated[
        list[Option] | None,
        "Answers to choose from, if there are only a few.",
        {"maxItems": 20},
    ] = None,
) -> str:
    """Ask the person who started this a question, and wait for their answer."""
    raise AssertionError("the loop answers ask_user")
