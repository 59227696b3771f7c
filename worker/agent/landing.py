"""The landing of a run at a limit: one last model call without tools, to leave an answer."""

from collections.abc import Sequence
from dataclasses import replace

from arkloop.shared.catalog.personas import Persona
from arkloop.shared.runs.limits_reached import LIMITS, STOP_REASONS
from arkloop.worker.agent.structured_output import OutputSchema
from arkloop.worker.contract.messages import ModelRequest, UserMessage
from arkloop.worker.contract.outcomes import RunFailure

#: The `stop_reason` of runs that have no time or no money for more than their last call.
WITHOUT_SUMMARIES = ("timeout", "budget")


def stop_reason_of(failure: RunFailure, persona: Persona) -> str | None:
    """Return the `stop_reason` with which the run lands; None: it fails."""
    return STOP_REASONS.get(failure.code) if persona.on_limit == "answer" else None


def last_request(
    request: ModelRequest, stop_reason: str, output: OutputSchema | None = None
) -> ModelRequest:
    """Ask for the answer: the request without the right to call tools, and an instruction."""
    how = " with what you know, as briefly as the question allows, and say what is missing."
    if output is not None:
        how = output.extended(" with what you know.")
    instruction = UserMessage(
        f"This run has reached its {LIMITS[stop_reason]}: no more tools can be called. Answer now"
        + how
    )
    return replace(
        request,
        messages=[*request.messages, instruction],
        # The tools stay: some vendors require those that the conversation calls.
        settings={**request.settings, "tool_choice": "none"} if request.tools else request.settings,
        answer_only=True,
        may_cache=False,
    )


def no_output(stop_reason: str, errors: Sequence[str]) -> str:
    """Return why a run fails whose last call gave text that is not its output."""
    why = " ".join(errors)
    return f"This run reached its {LIMITS[stop_reason]}, and its output does not fit. {why}"


def last_within_budget(request: ModelRequest) -> ModelRequest:
    """Ask for the answer because no further step can be paid."""
    return last_request(request, "budget")
