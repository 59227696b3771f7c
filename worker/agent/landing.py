"""The landing of a run at a limit: one last model call without tools, to leave an answer."""

from dataclasses import replace

from shared.catalog.personas import Persona
from worker.contract.messages import ModelRequest, UserMessage
from worker.contract.outcomes import RunFailure

#: The `stop_reason` of a run that lands, by the code with which it would fail.
STOP_REASONS = {
    "run.max_steps": "max_steps",
    "run.tool_loop": "tool_loop",
    "budget.exhausted": "budget",
    "run.timeout": "timeout",
}
_LIMITS = {
    "max_steps": "limit of steps",
    "tool_loop": "limit of repeated tool calls",
    "budget": "limit of cost",
    "timeout": "time limit",
}


def stop_reason_of(failure: RunFailure, persona: Persona) -> str | None:
    """Return the `stop_reason` with which the run lands; None: it fails."""
    return STOP_REASONS.get(failure.code) if persona.on_limit == "answer" else None


def last_request(request: ModelRequest, stop_reason: str) -> ModelRequest:
    """Ask for the answer: the request without the right to call tools, and an instruction."""
    instruction = UserMessage(
        f"This run has reached its {_LIMITS[stop_reason]}: no more tools can be called. Answer now"
        " with what you know, as briefly as the question allows, and say what is missing."
    )
    return replace(
        request,
        messages=[*request.messages, instruction],
        # The tools stay: some vendors require those that the conversation calls.
        settings={**request.settings, "tool_choice": "none"} if request.tools else request.settings,
        answer_only=True,
    )


def no_answer(stop_reason: str) -> str:
    """Return the message of a run for which even the last call gave no text."""
    return f"No answer: this run reached its {_LIMITS[stop_reason]} before the model had one."
