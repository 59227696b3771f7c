"""A model call: its stream is passed on, and `retry.decide` says what follows a failed try."""

import contextlib
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from arkloop.shared import fault_points, metrics
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events import types
from arkloop.shared.events.types import Event
from arkloop.shared.events.usage import Usage
from arkloop.worker.agent import affordable, call_spans, finished_turn
from arkloop.worker.agent.attachments import DROPPED_ATTACHMENTS, attached, droppable
from arkloop.worker.agent.call_ids import CallIds
from arkloop.worker.agent.output_pace import FREE_CHARACTERS, OutputPace
from arkloop.worker.agent.retry import (
    JITTER,
    DropAttachments,
    DropSetting,
    Fail,
    LowerOutput,
    NextRoute,
    Progress,
    Retry,
    Shrink,
    StripState,
    Wait,
    decide,
)
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.contract.context import Admission, RunContext, Transcript
from arkloop.worker.contract.messages import (
    AssistantMessage,
    CallDelta,
    Chunk,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    TurnEnd,
    UsageUpdate,
    has_state,
    strip_provider_state,
)
from arkloop.worker.contract.outcomes import ProviderError, TooLarge
from arkloop.worker.contract.retry_deadline import RetryDeadline
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers import Provider, output_modes

#: How `run.settings_dropped` names an output limit above what the model allows.
LOWERED_OUTPUT = "max_output_tokens"
#: Far beyond what any model writes in a turn, and what one event can still hold.
MAX_TURN_CHARACTERS = 4 * 1024 * 1024
#: Under a budget every call needs a bound: this one, where neither persona nor route has one.
DEFAULT_OUTPUT_TOKENS = 4096
#: Or what a small context leaves for it, but not less than this: our count is rather too high.
LEAST_OUTPUT_TOKENS = 256

#: What is sent to the model of a route.
BuildRequest = Callable[[Route], ModelRequest]
#: A smaller request than one that the model of a route has refused; None: it cannot be smaller.
ShrinkRequest = Callable[[Route, ModelRequest, TooLarge], ModelRequest | None]


def _never_smaller(_route: Route, _request: ModelRequest, _refused: TooLarge) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A finished model turn; `cost` is the event to be written with it.

    `is_shortened`: a budget could not pay all the output that the model might have written.
    """

    request: ModelRequest
    message: AssistantMessage
    end: TurnEnd
    usage: Usage
    cost: Event
    is_shortened: bool = False


@dataclass(slots=True)
class _Streamed:
    """The output of a try so far; `usage` is what its provider has reported of it. `on_output` is
    called before each piece of text that is not blank.

    `cost` is the event of a try that broke off; None while it goes well, if it was free, or once
    it is written.
    """

    on_output: Callable[[], None]
    pieces: list[str] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    cost: Event | None = None

    @property
    def output(self) -> str:
        return "".join(self.pieces)

    def add(self, piece: str, *, is_text: bool) -> None:
        if is_text and piece.strip():
            self.on_output()
        self.pieces.append(piece)


def call_model(
    chain: RouteChain,
    build: BuildRequest,
    context: RunContext,
    stop: StopSignal,
    shrink: ShrinkRequest = _never_smaller,
    last_call: affordable.LastCall | None = None,
    on_output: Callable[[], None] = lambda: None,
) -> Reply:
    """Stream one turn, in as many tries and on as many routes as `decide` allows.

    `last_call` makes the run's last call of a request: money for it must be left. `on_output` is
    called before each piece of its text that is not blank.

    Every try is billed by its provider's report, else by an estimate; one that broke off by what
    was reported until then, with its output at least as it was streamed.

    Raises:
        ProviderError: not retryable, or tried often enough on every route.
        LimitExceeded: `budget.exhausted`.
    """
    admission = context.admission
    request, progress = build(chain.route), Progress(has_next=chain.has_next)
    deadline = RetryDeadline(has_next=chain.is_replaceable)
    number = 1
    while True:
        streamed = _Streamed(on_output)
        sent = bounded(chain.allowed(replace(request, try_number=number)), admission)
        route, began = chain.route.group, time.monotonic()
        try:
            with call_spans.model_call(chain.route, sent) as span:
                reply = _try_once(chain, sent, context, stop, deadline, streamed, last_call)
                call_spans.replied(span, reply.end, reply.usage)
            metrics.MODEL_CALLS.add(1, route, "ok")
            metrics.MODEL_SECONDS.add(time.monotonic() - began, route)
            return reply
        except ProviderError as error:
            metrics.MODEL_CALLS.add(1, route, error.code)
            error = _never_fits(error, chain, sent)
            to_drop = set()
            if error.refuses_attachments:
                to_drop = droppable(request.messages, chain.refused_attachments, error.most_images)
            progress = replace(
                progress,
                is_billed=streamed.cost is not None,
                has_larger=chain.has_larger,
                is_replaceable=chain.is_replaceable,
                sends_state=has_state(request.messages),
                sends_attachments=bool(to_drop),
                most_output_tokens=sent.max_output_tokens,
                seconds_left=deadline.seconds_left,
            )
            decision = decide(error, progress, random.uniform(*JITTER))
            if isinstance(decision, Shrink):
                _void(context, error, streamed)  # a move of the truncation point ends the turn
            match decision:
                case Retry(pause):
                    context.note(_retrying(chain.route, error, number + 1, pause))
                    context.wait(pause)
                    _void(context, error, streamed)
                    progress = replace(progress, tries=progress.tries + 1)
                case Wait(pause):
                    deadline.start()
                    _void(context, error, streamed)
                    admission.settle()  # other runs may spend what the try might have cost
                    admission.back_off(chain.route, pause, is_shared=error.is_shared)
                    progress = replace(
                        progress,
                        refusals=progress.refusals + 1,
                        tries=progress.tries + int(progress.is_billed),
                    )
                case Shrink(too_large) if smaller := shrink(chain.route, sent, too_large):
                    request, progress = smaller, replace(progress, shrinks=progress.shrinks + 1)
                case StripState():
                    _void(context, error, streamed)
                    request = replace(request, messages=strip_provider_state(request.messages))
                case DropSetting(name):
                    _void(context, error, streamed)
                    _drop_settings(chain, context, [name])
                    if name == output_modes.SETTING:
                        request = build(chain.route)  # with another form of it
                case DropAttachments():
                    _void(context, error, streamed)
                    chain.refused_attachments.update(to_drop)
                    _drop_settings(chain, context, [DROPPED_ATTACHMENTS])
                case LowerOutput(tokens):
                    _void(context, error, streamed)
                    if request.max_output_tokens is not None and not request.is_summary:
                        _drop_settings(chain, context, [LOWERED_OUTPUT])
                    chain.lower_output(tokens)
                    progress = replace(progress, lowered=progress.lowered + 1)
                case (NextRoute() as left) | Shrink(otherwise=NextRoute() as left):
                    _void(context, error, streamed)
                    _fall_back(chain, context, error, left)
                    request, progress = build(chain.route), Progress(has_next=chain.has_next)
                    deadline = RetryDeadline(has_next=chain.is_replaceable)
                case Fail() | Shrink():
                    raise error
        number += 1


def _try_once(
    chain: RouteChain,
    request: ModelRequest,
    context: RunContext,
    stop: StopSignal,
    deadline: RetryDeadline,
    streamed: _Streamed,
    last_call: affordable.LastCall | None,
) -> Reply:
    """Make one call; if it breaks off, `streamed` has what came of it and what that cost."""
    try:
        if chain.route.has_lost_key:
            # Not every vendor checks keys: one that does not would get the conversation.
            raise ProviderError("auth", "The stored key of this route cannot be decrypted.")
        route, provider, admission = chain.route, chain.provider, context.admission
        if request.settings:
            _drop_settings(chain, context, request.settings.keys() - set(provider.settings))
            request = chain.supported(request)
        # To count the bytes of a long conversation takes its time: only where it matters.
        tokens = 0 if route.tokens_per_minute is None else _size(provider, request)
        admission.admit(route, tokens, deadline)
        wanted = request.max_output_tokens
        if admission.is_limited:
            request = affordable.reserve(chain, request, admission, last_call)
        refused = chain.refused_attachments
        with attached(request, context.files, route.accepts, refused=refused) as sent:
            sent = replace(sent, on_send=partial(context.keep_prompt, route, sent))
            message, end = _stream_turn(provider, sent, context, stop, streamed)
        usage = end.usage or _estimated(provider, request, streamed)
        cost = admission.add_usage(route, usage)
        message = replace(message, state=finished_turn.state_of(route, end))
        return Reply(
            request=request,
            message=message,
            end=end,
            usage=usage,
            cost=cost,
            is_shortened=request.max_output_tokens != wanted,
        )
    except BaseException as error:
        was_accepted = isinstance(error, ProviderError) and error.was_accepted
        _bill_broken_try(chain, request, context.admission, streamed, was_accepted=was_accepted)
        raise


def _retrying(route: Route, error: ProviderError, number: int, pause: float) -> Event:
    return types.RunRetrying(route.id, error.code, number, round(pause, 3))


def _drop_settings(chain: RouteChain, context: Transcript, names: Iterable[str]) -> None:
    """Drop settings that the route does not support, and report each once in the run."""
    if new := chain.drop_settings(names):
        context.emit(types.RunSettingsDropped(chain.route.id, new))


def _fall_back(
    chain: RouteChain, context: RunContext, error: ProviderError, how: NextRoute
) -> None:
    """Leave the route; its pause, if there is one, is announced to other calls."""
    context.admission.settle()  # the next route may have to be waited for
    if how.pause is not None:
        context.admission.pause_route(chain.route, how.pause, is_shared=error.is_shared)
    left, route = chain.route, chain.advance(to_larger=how.to_larger)
    context.emit(types.RunFallback(left.id, route.id, route.model, error.code))


def bounded(request: ModelRequest, admission: Admission) -> ModelRequest:
    """Bound the output of a request for which money is reserved."""
    if not admission.is_limited or request.max_output_tokens is not None:
        return request
    remaining = (
        DEFAULT_OUTPUT_TOKENS if request.remaining_tokens is None else request.remaining_tokens
    )
    most = min(DEFAULT_OUTPUT_TOKENS, max(remaining, LEAST_OUTPUT_TOKENS))
    return replace(request, max_output_tokens=most)


def _bill_broken_try(
    chain: RouteChain,
    request: ModelRequest,
    admission: Admission,
    streamed: _Streamed,
    *,
    was_accepted: bool,
) -> None:
    """Bill a try that broke off; it is free if nothing came of it and it was not accepted.

    Few providers report the output before the end, so it is estimated by what was streamed. After
    a timeout the provider may work on, and bill it: the worst case counts, where a limit bounds it.
    """
    if was_accepted or streamed.pieces or streamed.usage != Usage():
        usage = _estimated(chain.provider, request, streamed)
        if was_accepted:
            with contextlib.suppress(ValueError):
                worst = chain.provider.worst_case(request)
                usage = replace(
                    usage,
                    input_tokens=streamed.usage.input_tokens or worst.input_tokens,
                    output_tokens=max(usage.output_tokens, worst.output_tokens),
                )
        streamed.cost = admission.add_usage(chain.route, usage)


def _estimated(provider: Provider, request: ModelRequest, streamed: _Streamed) -> Usage:
    """Return what the provider has reported, if anything, and estimate what it has not."""
    reported, estimated = streamed.usage, provider.estimate(request, streamed.output)
    return replace(
        reported,
        input_tokens=reported.input_tokens or estimated.input_tokens,
        output_tokens=max(reported.output_tokens, estimated.output_tokens),
        source="estimated",
        speed=reported.speed or estimated.speed,
    )


def _never_fits(error: ProviderError, chain: RouteChain, request: ModelRequest) -> ProviderError:
    """Turn the error into `TooLarge` if the request alone exceeds the account's tokens per minute.

    Not every vendor says so in words: but a limit that is not used at all refuses nothing smaller.
    """
    if error.idle_tokens is None or _size(chain.provider, request) <= error.idle_tokens:
        return error
    too_large = TooLarge(limit_tokens=error.idle_tokens, is_per_minute=True)
    return ProviderError("invalid_request", str(error), too_large=too_large)


def _void(context: Transcript, error: ProviderError, streamed: _Streamed) -> None:
    """Void the output of a try that broke off, with what it has cost; once, if called again."""
    if streamed.cost is not None:
        context.void_text(error.code, streamed.cost)
        streamed.cost = None


def _size(provider: Provider, request: ModelRequest) -> int:
    """Estimate the tokens that a provider takes into account when it lets the call in."""
    return provider.estimate(request, "").input_tokens + (request.max_output_tokens or 0)


def _stream_turn(
    provider: Provider,
    request: ModelRequest,
    context: RunContext,
    stop: StopSignal,
    streamed: _Streamed,
) -> tuple[AssistantMessage, TurnEnd]:
    text: list[str] = []
    length = 0
    ids, pace = CallIds(request.turn, request.taken_call_ids), OutputPace()
    chunks = provider.stream(request, stop)
    for chunk in chunks if request.is_summary else _watched(chunks, stop):
        if isinstance(chunk, TextDelta | ThinkingDelta | CallDelta):
            length += len(chunk.text)
            if length > MAX_TURN_CHARACTERS:
                message = f"The model's response exceeded {MAX_TURN_CHARACTERS:,} characters."
                raise ProviderError("malformed", message)
            if length > FREE_CHARACTERS and (seconds := pace.take(len(chunk.text))) > 0:
                context.wait(seconds)
            if chunk.text:
                streamed.add(chunk.text, is_text=isinstance(chunk, TextDelta))
        match chunk:
            case TextDelta(piece):
                text.append(piece)
                context.stream_text(piece)
                fault_points.reach("worker.mid_stream")
            case ThinkingDelta(piece):
                context.stream_thinking(piece)
            case CallDelta(piece, int(position), call_id, name) if request.stream_arguments:
                if piece:
                    context.stream_arguments(ids.id_of(position, call_id), name, piece)
            case UsageUpdate(usage):
                streamed.usage = usage
            case TurnEnd():
                streamed.usage = chunk.usage or streamed.usage
                finished_turn.check_arguments(chunk)
                end = finished_turn.as_far_as_it_came(chunk)
                end = replace(end, tool_calls=ids.name(end.tool_calls))
                return AssistantMessage("".join(text), end.tool_calls), end
    raise ProviderError("malformed", "The model's stream ended without a final chunk.")


def _watched(chunks: Iterator[Chunk], stop: StopSignal) -> Iterator[Chunk]:
    """Let a text that may be the answer be finished when it is time to land."""
    try:
        for chunk in chunks:
            if isinstance(chunk, TextDelta | CallDelta):
                stop.is_answering = isinstance(chunk, TextDelta)
            yield chunk
    finally:
        stop.is_answering = False
