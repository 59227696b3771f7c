"""The limits at which a run lands: it completes with an answer, and does not fail."""

#: The `stop_reason` of a run that lands, by the code with which it would fail.
STOP_REASONS = {
    "run.max_steps": "max_steps",
    "run.tool_loop": "tool_loop",
    "budget.exhausted": "budget",
    "run.timeout": "timeout",
}
LIMITS = {
    "max_steps": "limit of steps",
    "tool_loop": "limit of repeated tool calls",
    "budget": "limit of cost",
    "timeout": "time limit",
}


def no_answer(stop_reason: str) -> str:
    """Return the message of a run that has no text when it lands."""
    return f"No answer: this run reached its {LIMITS[stop_reason]} before the model had one."
