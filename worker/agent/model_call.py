"""One model call: the stream passed on as it comes, failures tried again, here or elsewhere."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from shared import fault_points
from shared.catalog.model_routes import Route
from shared.events import types
from shared.events.types import Event, ProviderState, Usage, is_too_deep, plain
from worker.agent.route_chain import RouteChain
from worker.contract.context import Admission, RunContext, Transcript
from worker.contract.messages import (
    MAX_STATE_BYTES,
    AssistantMessage,
    CallDelta,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    TurnEnd,
    UsageUpdate,
    has_state,
    state_text,
    without_state,
)
from worker.contract.outcomes import ProviderError, TooLarge
from worker.contract.patience import Patience
from worker.contract.stop_signal import StopSignal
from worker.providers import Provider

#: Of one route, before the next one takes over.
MAX_TRIES = 4
#: After a call that the provider accepted and did not finish in time: each of them is billed.
MAX_TRIES_AFTER_TIMEOUT = 2
FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 30.0
#: Far beyond what any model writes in a turn, and what one event can still hold.
MAX_TURN_CHARACTERS = 4 * 1024 * 1024
MAX_ARGUMENTS_CHARACTERS = 1024 * 1024
MAX_RETRY_AFTER_SECONDS = 30.0
#: Under a budget every call needs a bound: this one, where neither persona nor route has one.
DEFAULT_OUTPUT_TOKENS = 4096
#: Or what a small context leaves for it, but not less than this: our count is rather too high.
LEAST_OUTPUT_TOKENS = 256

#: Of one route: requests that were too large, each smaller than the one before.
MAX_SHRINKS = 8

#: What is sent to the model of a route.
BuildRequest = Callable[[Route], ModelRequest]
#: A smaller request than one that the model of a route has refused; None: it cannot be smaller.
ShrinkRequest = Callable[[Route, ModelRequest, TooLarge], ModelRequest | None]


def _never_smaller(_route: Route, _request: ModelRequest, _refused: TooLarge) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A finished model turn; `cost` is the event to be written with it."""

    request: ModelRequest
    message: AssistantMessage
    end: TurnEnd
    usage: Usage
    cost: Event


@dataclass(slots=True)
class _Streamed:
    """What came of a try so far; `usage` is what its provider has told of it."""

    pieces: list[str] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)

    @property
    def output(self) -> str:
        return "".join(self.pieces)


def call_model(
    chain: RouteChain,
    build: BuildRequest,
    context: RunContext,
    stop: StopSignal,
    shrink: ShrinkRequest = _never_smaller,
) -> Reply:
    """Stream one turn; retryable failures are tried again after a pause, then by the next route.

    A request that is too large is made smaller first, as often as it takes within bounds.

    Every try is counted, by its provider's report, else estimated; one that broke off by what was
    reported until then, with its output at least as it was streamed.

    Raises:
        ProviderError: not retryable, or tried often enough on every route.
        LimitExceeded: `budget.exhausted`.
    """
    admission = context.admission
    route, request = chain.route, build(chain.route)
    tries = number = 1  # of this route; of the call
    shrinks = 0  # of this route
    refusals, patience = 0, Patience(has_next=chain.has_next)  # 429s are no tries
    while True:
        streamed = _Streamed()
        try:
            provider = chain.provider
            request = bounded(replace(request, try_number=number), admission)
            admission.admit(route, _size(provider, request), patience)
            if admission.is_limited:
                admission.reserve(route, provider.worst_case(request))
            message, end = _stream_turn(provider, request, context, stop, streamed)
            usage = end.usage or _estimated(provider, request, streamed)
            cost = admission.add_usage(route, usage)
            message = replace(message, state=_state(route, end))
            return Reply(request=request, message=message, end=end, usage=usage, cost=cost)
        except ProviderError as error:
            counted = _count_broken(
                chain, request, admission, streamed, was_accepted=error.was_accepted
            )
            error = _never_fits(error, chain, request)
            is_throttled = error.code == "provider.rate_limited"
            if is_throttled and patience.outlasts(pause := _pause(error, refusals + 1)):
                refusals += 1
                _void(context, error, counted)
                admission.settle()  # what the call might have cost is for others meanwhile
                admission.back_off(route, pause, is_shared=error.is_shared)
            elif not is_throttled and error.retryable and tries < _max_tries(error, chain):
                context.wait(_pause(error, tries))
                _void(context, error, counted)
                tries += 1
            elif (
                shrinks < MAX_SHRINKS
                and (too_large := _shrinkable(error, chain)) is not None
                and (smaller := shrink(route, request, too_large)) is not None
            ):
                _void(context, error, counted)
                request, shrinks = smaller, shrinks + 1
            elif _may_refuse_state(error) and has_state(request.messages):
                # Some servers refuse the very fields that they stream.
                _void(context, error, counted)
                request = replace(request, messages=without_state(request.messages))
            elif error.is_of_route and chain.has_next:
                _void(context, error, counted)
                admission.settle()  # the next route may have to be waited for
                if is_throttled and error.retry_after:
                    admission.pause_route(route, _pause(error, 1), is_shared=error.is_shared)
                left, route = route, chain.advance()
                context.emit(types.RunFallback(left.id, route.id, route.model, error.code))
                request, tries, shrinks = build(route), 1, 0
                refusals, patience = 0, Patience(has_next=chain.has_next)
            else:
                raise error
            number += 1
        except BaseException:
            _count_broken(chain, request, admission, streamed)
            raise


def bounded(request: ModelRequest, admission: Admission) -> ModelRequest:
    """The request with a bound on its output, where money is reserved for it."""
    if not admission.is_limited or request.max_output_tokens is not None:
        return request
    room = DEFAULT_OUTPUT_TOKENS if request.room_tokens is None else request.room_tokens
    most = min(DEFAULT_OUTPUT_TOKENS, max(room, LEAST_OUTPUT_TOKENS))
    return replace(request, max_output_tokens=most)


def _max_tries(error: ProviderError, chain: RouteChain) -> int:
    """How often this route may be called; a timeout is better retried on the next one."""
    if not error.was_accepted:
        return MAX_TRIES
    return 1 if chain.has_next else MAX_TRIES_AFTER_TIMEOUT


def _count_broken(
    chain: RouteChain,
    request: ModelRequest,
    admission: Admission,
    streamed: _Streamed,
    *,
    was_accepted: bool = False,
) -> tuple[Event, ...]:
    """Count a call that broke off; it is free if nothing came of it and it was not accepted.

    Few providers report the output before the end, so it is estimated by what was streamed.
    """
    if not was_accepted and not streamed.pieces and streamed.usage == Usage():
        return ()
    usage = _estimated(chain.provider, request, streamed)
    return (admission.add_usage(chain.route, usage),)


def _estimated(provider: Provider, request: ModelRequest, streamed: _Streamed) -> Usage:
    """What the provider has told, if anything, with an estimate of what it has not."""
    told, estimated = streamed.usage, provider.estimate(request, streamed.output)
    return replace(
        told,
        input_tokens=told.input_tokens or estimated.input_tokens,
        output_tokens=max(told.output_tokens, estimated.output_tokens),
        source="estimated",
    )


def _never_fits(error: ProviderError, chain: RouteChain, request: ModelRequest) -> ProviderError:
    """The error, as what it is if the request alone exceeds the account's tokens per minute.

    Not every vendor says so in words: but a limit that is not used at all refuses nothing smaller.
    """
    if error.idle_tokens is None or _size(chain.provider, request) <= error.idle_tokens:
        return error
    too_large = TooLarge(limit_tokens=error.idle_tokens, is_per_minute=True)
    return ProviderError("invalid_request", str(error), too_large=too_large)


def _shrinkable(error: ProviderError, chain: RouteChain) -> TooLarge | None:
    """What is too large for this route; another route may have more tokens per minute."""
    too_large = error.too_large
    return None if too_large and too_large.is_per_minute and chain.has_next else too_large


def _may_refuse_state(error: ProviderError) -> bool:
    return error.code == "provider.invalid_request" and error.too_large is None


def _void(context: Transcript, error: ProviderError, counted: tuple[Event, ...]) -> None:
    if counted:
        context.void_text(error.code, *counted)


def _size(provider: Provider, request: ModelRequest) -> int:
    """About how many tokens a provider takes into account when it lets the call in."""
    return provider.estimate(request, "").input_tokens + (request.max_output_tokens or 0)


def _stream_turn(
    provider: Provider,
    request: ModelRequest,
    context: Transcript,
    stop: StopSignal,
    streamed: _Streamed,
) -> tuple[AssistantMessage, TurnEnd]:
    text: list[str] = []
    length = 0
    for chunk in provider.stream(request, stop):
        if isinstance(chunk, TextDelta | ThinkingDelta | CallDelta):
            length += len(chunk.text)
            if length > MAX_TURN_CHARACTERS:
                message = f"The model's response exceeded {MAX_TURN_CHARACTERS:,} characters."
                raise ProviderError("malformed", message)
            streamed.pieces.append(chunk.text)
        match chunk:
            case TextDelta(piece):
                text.append(piece)
                context.stream_text(piece)
                fault_points.reach("worker.mid_stream")
            case ThinkingDelta(piece):
                context.stream_thinking(piece)
            case UsageUpdate(usage):
                streamed.usage = usage
            case TurnEnd():
                streamed.usage = chunk.usage or streamed.usage
                _check_arguments(chunk)
                end = _as_far_as_it_came(chunk)
                return AssistantMessage("".join(text), end.tool_calls), end
    raise ProviderError("malformed", "The model's stream ended without a final chunk.")


def _as_far_as_it_came(end: TurnEnd) -> TurnEnd:
    """A last call that was cut off before its arguments is none without any: it is refused."""
    if end.stop_reason not in ("length", "content_filter") or not end.tool_calls:
        return end
    *others, last = end.tool_calls
    if last.arguments != {}:
        return end
    return replace(end, tool_calls=(*others, replace(last, arguments="")))


def _state(route: Route, end: TurnEnd) -> ProviderState | None:
    """What is kept of what the vendor wants back with the turn; nothing after a last word."""
    if not end.tool_calls or (end.state is None and not end.call_states):
        return None
    if is_too_deep([end.state, *end.call_states]):
        return None
    calls = tuple(map(plain, end.call_states))
    state = ProviderState(route.provider, route.model, plain(end.state), calls, route.server)
    return state if len(state_text(state).encode()) <= MAX_STATE_BYTES else None


def _check_arguments(end: TurnEnd) -> None:
    for call in end.tool_calls:
        # Text that is no JSON stays text; both are written into one event.
        if len(json.dumps(call.arguments, default=str)) > MAX_ARGUMENTS_CHARACTERS:
            raise ProviderError(
                "malformed",
                f"The model's arguments for {call.name[:100]!r} exceeded"
                f" {MAX_ARGUMENTS_CHARACTERS:,} characters.",
            )


def _pause(error: ProviderError, tries: int) -> float:
    """Seconds until the next try: what the provider asks for, else 0.5, 1, 2, … with jitter."""
    if error.retry_after:  # by 0, or a date that is past, it asks for nothing
        return min(error.retry_after, MAX_RETRY_AFTER_SECONDS)
    seconds = FIRST_BACKOFF_SECONDS * 2 ** min(tries - 1, 16) * random.uniform(0.75, 1.25)
    return float(min(seconds, MAX_BACKOFF_SECONDS))
