"""The summary of what a truncation omits, made by one more call of the run's model."""

from dataclasses import replace
from typing import cast

from arkloop.shared.catalog import model_settings
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.plain import clean
from arkloop.shared.events.types import Event
from arkloop.worker.agent import landing
from arkloop.worker.agent.model_call import call_model
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.contract.context import RunContext
from arkloop.worker.contract.messages import Message, ModelRequest, UserMessage
from arkloop.worker.contract.outcomes import RunFailure
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.contract.token_estimates import beginning
from arkloop.worker.providers import output_modes

#: The most tokens of a summary, by our own estimate; less where the context is small.
SUMMARY_TOKENS = 4096
#: Calls in a row for one truncation, each with as much of the conversation as fits.
MAX_CALLS = 8
#: What the instruction adds to a request.
INSTRUCTION_TOKENS = 200

_INSTRUCTION = (
    "Do not answer now. The conversation so far is about to be removed from your context; only"
    " what you write next is kept of it. Summarize it in at most {words} words: requests of the"
    " user, facts, names, numbers, decisions, results of tools, and what is still to be done."
    " Keep what an earlier summary says. Write the summary only, and call no tool."
)
_HEADING = "Summary of the earlier conversation, which is no longer shown:\n"


def as_message(summary: str) -> Message:
    """Return the message that stands for the omitted part of the conversation."""
    return UserMessage(_HEADING + summary)


def request_for(
    request: ModelRequest, messages: list[Message], tokens: int, route: Route
) -> ModelRequest:
    """Ask for a summary of these messages, with which `request` begins.

    All before the instruction is as in `request`, so that the vendor may have it in its cache.
    """
    instruction = UserMessage(_INSTRUCTION.format(words=max(tokens // 2, 50)))
    settings = model_settings.without(request.settings, [output_modes.SETTING])
    if route.provider == "anthropic":
        # With another `tool_choice` than the steps' its cache has none of the messages.
        if settings.get("tool_choice") != "none":
            settings = model_settings.without(settings, ["tool_choice"])
    elif request.tools:
        settings = {**settings, "tool_choice": "none"}
    most = min(SUMMARY_TOKENS, (route.context_tokens or 2 * SUMMARY_TOKENS) // 2)
    return replace(
        request,
        messages=[*messages, instruction],
        counted_messages=min(request.counted_messages, len(messages)),
        # Servers such as vLLM refuse a request whose input and this are more than the context.
        max_output_tokens=max(request.max_output_tokens or most, 2 * tokens),
        settings=settings,
        answer_only=True,
        is_summary=True,
        # Without the steps' schema the cache does not apply, and to write it costs more.
        may_cache=output_modes.SETTING not in request.settings,
    )


def summarize(
    chain: RouteChain, request: ModelRequest, tokens: int, context: RunContext, stop: StopSignal
) -> tuple[str, Event] | None:
    """Make the call on the run's route; return the summary and what the run has cost with it.

    None, with the costs emitted, if there is no summary: the conversation is then truncated.
    """
    admission = context.admission
    quiet = cast(RunContext, _Quiet(context))
    try:
        reply = call_model(
            chain.alone(),
            lambda _route: request,
            quiet,
            stop,
            last_call=landing.last_within_budget,
        )
    except RunFailure:
        context.emit(admission.cost())
        return None
    finally:
        admission.settle()
    summary = beginning(clean(reply.message.content.strip()), tokens)
    # A refusal sums up nothing, nor does what is said before a call.
    is_refused = reply.end.stop_reason == "content_filter"
    if not summary or is_refused or reply.message.tool_calls:
        context.emit(reply.cost)
        return None
    return summary, reply.cost


class _Quiet:
    """The run as the call of a summary sees it: its text is not a part of the run's answer."""

    def __init__(self, context: RunContext) -> None:
        self._context = context

    def __getattr__(self, name: str) -> object:
        return getattr(self._context, name)

    def stream_text(self, text: str) -> None:
        pass

    def stream_thinking(self, text: str) -> None:
        pass

    def stream_arguments(self, tool_call_id: str, name: str, text: str) -> None:
        pass

    def void_text(self, reason: str, *then: Event) -> None:
        if then:
            self._context.emit(*then)
