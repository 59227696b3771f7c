"""The output of a run that has an output schema: its form, its check, and how it is repaired."""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from arkloop.shared import json_text
from arkloop.shared.json_schema import InvalidSchema
from arkloop.shared.json_text import InvalidJSON
from arkloop.worker.agent.model_call import Reply
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.contract.argument_schema import OUTPUT, ArgumentSchema
from arkloop.worker.contract.cpu_slices import cpu_slice
from arkloop.worker.contract.messages import AssistantMessage, ModelRequest, ToolSpec, TurnEnd
from arkloop.worker.contract.outcomes import ProviderError, RunFailure
from arkloop.worker.providers import output_modes
from arkloop.worker.providers.output_modes import FINAL_TOOL, REJECTED, OutputMode

#: Further model calls after an answer that does not fit.
MAX_REPAIRS = 2
#: Longer texts take milliseconds to read.
_MAX_CHARACTERS_UNFELT = 65_536

_TOOL_DESCRIPTION = (
    "Gives your final answer. Call it exactly once and alone, when you have everything that you"
    " need; do not answer in text."
)
#: The result of a call of the final tool together with other calls.
NOT_ALONE = f"Not accepted: call {FINAL_TOOL!r} alone, when you have all results."
_PROMPT = "Your final answer is JSON alone, without a code fence, that fits this JSON Schema:"


class OutputSchema:
    """The output schema of a run."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.schema = schema

    @cached_property
    def tool(self) -> ToolSpec:
        """The tool whose arguments are the output."""
        return ToolSpec(FINAL_TOOL, _TOOL_DESCRIPTION, self.schema)

    def requested(self, request: ModelRequest, chain: RouteChain) -> ModelRequest:
        """Return the request as one for the output, in the way of the route in use."""
        match self._mode(chain, has_tools=bool(request.tools)):
            case OutputMode.TOOL:
                tools, settings = [*request.tools, self.tool.portable], request.settings
                if settings.get("tool_choice") == "none":  # but for this tool
                    # Alone: newer models refuse to be forced, and so may choose.
                    tools = tools[-1:]
                    settings = {**settings, "tool_choice": {"name": FINAL_TOOL}}
                return replace(request, tools=tools, settings=settings)
            case OutputMode.CONSTRAINED:
                request = replace(request, system_prompt=self.extended(request.system_prompt))
        return replace(request, settings={**request.settings, output_modes.SETTING: self.schema})

    def _mode(self, chain: RouteChain, *, has_tools: bool) -> OutputMode:
        if output_modes.SETTING in chain.dropped_settings:
            return OutputMode.TOOL
        try:
            return chain.provider.output_mode(self.schema, has_tools=has_tools)
        except ProviderError:  # the call itself will raise it, where the next route takes over
            return OutputMode.TOOL

    def extended(self, prompt: str) -> str:
        """Return the system prompt with the schema, for models that see it nowhere else."""
        text = json.dumps(self.schema, ensure_ascii=False)
        return f"{prompt}\n\n{_PROMPT}\n{text}".lstrip("\n")

    def read(self, content: str, stop_reason: str) -> "Output":
        """Read a final answer.

        Raises:
            RunFailure: the model refused to answer, which no repair changes; or as `validator`.
        """
        if stop_reason == "content_filter":
            raise RunFailure("output.invalid", "The model refused to give the output.")
        try:
            value = _json(content)
            errors = self.validator.errors(value)
        except InvalidJSON as error:
            value, errors = None, [_sentence(*problem) for problem in error.problems.items()]
        if errors and stop_reason == "length":
            errors = ["The answer was cut off at the limit of its length: be brief.", *errors]
        return Output(None if errors else value, errors)

    @cached_property
    def validator(self) -> ArgumentSchema:
        """The validator of final answers.

        Raises:
            RunFailure: the release that stored the schema could use it, and this one cannot.
        """
        try:
            with cpu_slice():
                return ArgumentSchema(self.schema, OUTPUT)
        except InvalidSchema as error:
            why = f"This release of the server does not support the run's `output_schema`: {error}"
            raise RunFailure("output.invalid", why) from None


class Output(NamedTuple):
    """The output that a final answer is, or the `errors` because of which it is none."""

    value: dict[str, Any] | None = None
    errors: Sequence[str] = ()


def _json(content: str) -> Any:
    with cpu_slice() if len(content) > _MAX_CHARACTERS_UNFELT else nullcontext():
        return json_text.loads(content.encode(), max_values=None, takes_long_integers=True)


def as_text(reply: Reply) -> Reply | None:
    """Return a reply that calls the final tool as one that says the call's arguments; else None.

    A reply with more text than its final answer is returned as one that says the answer alone.

    Of several calls the last one counts. Together with other calls it is no answer, since their
    results may change it, unless the request was for the answer alone: no call follows then.
    """
    calls, reason = reply.message.tool_calls, reply.end.stop_reason
    if reply.end.final_answer not in ("", reply.message.content):
        return replace(reply, message=AssistantMessage(reply.end.final_answer))
    final = [call for call in calls if call.name == FINAL_TOOL]
    if not final or (len(final) < len(calls) and not reply.request.answer_only):
        return None
    call = final[-1]
    # A text is of arguments that are no object: some servers encode them twice.
    said = call.arguments if isinstance(call.arguments, str) else call.text or call.arguments
    text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    end = TurnEnd(
        "stop" if reason == "tool_calls" else reason, is_context_full=reply.end.is_context_full
    )
    return replace(reply, message=AssistantMessage(text), end=end)


def repair_request(errors: Sequence[str]) -> str:
    """Return the message about an answer that does not fit, for the model."""
    reasons = "\n".join(f"- {error}" for error in errors)
    return (
        f"{REJECTED}\n{reasons}\n"
        "Give the whole answer again, in the required form and without any other text."
    )


def check_attempts(rejected: Sequence[Sequence[str]]) -> None:
    """Check that another attempt is left after those that were `rejected`, each with its errors.

    Raises:
        RunFailure: `output.invalid`, with the errors of the last one.
    """
    if len(rejected) > MAX_REPAIRS:
        why = " ".join(rejected[-1])
        message = f"The model's output did not fit the schema in {len(rejected)} attempts. {why}"
        raise RunFailure("output.invalid", message)


def _sentence(field: str, why: str) -> str:
    return f"The output {why}." if field == "body" else f"The property {field!r}: {why}."
