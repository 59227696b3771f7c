"""One model call: the stream passed on as it comes, failures tried again."""

import json
import random
from collections.abc import Callable
from dataclasses import replace

from shared import fault_points
from shared.events import Usage
from worker.context import RunContext
from worker.messages import (
    AssistantMessage,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    TurnEnd,
)
from worker.outcomes import ProviderError
from worker.providers import Provider
from worker.stop_signal import StopSignal

MAX_TRIES = 4
FIRST_BACKOFF_SECONDS = 0.5
#: Far beyond what any model writes in a turn, and what one event can still hold.
MAX_TURN_CHARACTERS = 4 * 1024 * 1024
MAX_ARGUMENTS_CHARACTERS = 1024 * 1024
MAX_RETRY_AFTER_SECONDS = 30.0

CountUsage = Callable[[Usage], None]


def call_model(
    provider: Provider,
    request: ModelRequest,
    context: RunContext,
    stop: StopSignal,
    count: CountUsage,
) -> tuple[AssistantMessage, TurnEnd]:
    """Stream one turn; retryable failures are tried again after a pause.

    `count` is called with the estimated usage of every try that broke off, also
    when the run is stopped in it; the usage of the finished turn is the result's.

    Raises:
        ProviderError: not retryable, or tried often enough.
    """
    while True:
        streamed: list[str] = []
        try:
            return _stream_turn(provider, request, context, stop, streamed)
        except ProviderError as error:
            if streamed:
                count(provider.estimate(request, "".join(streamed)))
            if not error.retryable or request.try_number >= MAX_TRIES:
                raise
            context.wait(_pause(error, request.try_number))
            if streamed:
                context.void_text(error.code)
            request = replace(request, try_number=request.try_number + 1)
        except BaseException:
            if streamed:
                count(provider.estimate(request, "".join(streamed)))
            raise


def _stream_turn(
    provider: Provider,
    request: ModelRequest,
    context: RunContext,
    stop: StopSignal,
    streamed: list[str],
) -> tuple[AssistantMessage, TurnEnd]:
    text: list[str] = []
    length = 0
    for chunk in provider.stream(request, stop):
        if isinstance(chunk, TextDelta | ThinkingDelta):
            length += len(chunk.text)
            if length > MAX_TURN_CHARACTERS:
                raise ProviderError("malformed", _too_long("answer"))
        match chunk:
            case TextDelta(piece):
                text.append(piece)
                streamed.append(piece)
                context.stream_text(piece)
                fault_points.reach("worker.mid_stream")
            case ThinkingDelta(piece):
                streamed.append(piece)
                context.stream_thinking(piece)
            case TurnEnd():
                answer = "".join(text)
                usage = chunk.usage or provider.estimate(request, "".join(streamed))
                end = replace(chunk, usage=usage)
                _check_arguments(end)
                return AssistantMessage(answer, end.tool_calls), end
    raise ProviderError("malformed", "The model's stream ended without an end.")


def _check_arguments(end: TurnEnd) -> None:
    for call in end.tool_calls:
        # Text that is no JSON stays text; both are written into one event.
        if len(json.dumps(call.arguments, default=str)) > MAX_ARGUMENTS_CHARACTERS:
            raise ProviderError("malformed", _too_long(f"arguments for {call.name[:100]!r}"))


def _too_long(what: str) -> str:
    return f"The model's {what} got too long."


def _pause(error: ProviderError, try_number: int) -> float:
    """Seconds until the next try: what the provider asks for, else 0.5, 1, 2 with jitter."""
    if error.retry_after is not None:
        return min(error.retry_after, MAX_RETRY_AFTER_SECONDS)
    return float(FIRST_BACKOFF_SECONDS * 2 ** (try_number - 1) * random.uniform(0.75, 1.25))
