"""The tool that asks a person; the loop waits for the answer, so it never runs by itself."""

from typing import Annotated

from pydantic import Field

from arkloop.worker.contract.context import ToolContext
from arkloop.worker.tools import tool

Option = Annotated[str, Field(min_length=1, max_length=200)]


@tool(idempotent=True)
def ask_user(
    context: ToolContext,
    question: Annotated[
        str,
        Field(
            description="What you want to know, in one or two sentences.",
            min_length=1,
            max_length=8192,  # lists of runs carry it
        ),
    ],
    options: Annotated[
        list[Option] | None,
        Field(description="Answers to choose from, if there are only a few.", max_length=20),
    ] = None,
) -> str:
    """Ask the person who started this a question, and wait for their answer."""
    raise AssertionError("the loop answers ask_user")
