"""The decision on what follows a failed try of a model call: pure, so that a table can test it."""

from dataclasses import dataclass

from arkloop.worker.contract.outcomes import ProviderError, TooLarge

#: Of one route, before the next one takes over.
MAX_TRIES = 4
#: After a call that the provider accepted and did not finish in time: each of them is billed.
MAX_TRIES_AFTER_TIMEOUT = 2
#: Of one route: requests that were too large, each smaller than the one before.
MAX_SHRINKS = 8
#: Of one route: output limits that were too high, each lower than the one before.
MAX_LOWERED = 3
FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 30.0
MAX_RETRY_AFTER_SECONDS = 30.0
#: The least and the greatest factor of a pause that no provider has requested.
JITTER = (0.75, 1.25)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress of a model call on its current route.

    `tries` includes the failed one; `refusals` were HTTP 429, which count as no tries unless they
    came after some output: `is_billed` says that of the failed one.
    `seconds_left` is how long the call may still wait for a provider that refuses it so.
    `has_next`: the chain has another route; `has_larger`: one with a larger context.
    `is_replaceable`: the run has another route, for other calls than this one.
    `sends_state`: the request returns provider state.
    `sends_attachments`: it has images or files that can be left out.
    `most_output_tokens`: its output limit, if it has one; `lowered`: how often it was lowered.
    """

    has_next: bool
    has_larger: bool = False
    is_replaceable: bool = False
    tries: int = 1
    refusals: int = 0
    is_billed: bool = False
    shrinks: int = 0
    sends_state: bool = False
    sends_attachments: bool = False
    most_output_tokens: int | None = None
    lowered: int = 0
    seconds_left: float = 0.0


@dataclass(frozen=True, slots=True)
class Retry:
    """A further try on the same route after a pause in seconds."""

    pause: float


@dataclass(frozen=True, slots=True)
class Wait:
    """A wait for a route that takes no calls, in seconds; it concerns the calls of others too."""

    pause: float


@dataclass(frozen=True, slots=True)
class NextRoute:
    """A fallback to the next route; `pause` of the route left, in seconds, is for other calls.

    `to_larger`: to the next one with a larger context.
    """

    pause: float | None = None
    to_larger: bool = False


@dataclass(frozen=True, slots=True)
class Fail:
    """The end of the model call with the error."""


@dataclass(frozen=True, slots=True)
class Shrink:
    """A smaller request on the same route; `otherwise` applies if the request cannot be smaller."""

    too_large: TooLarge
    otherwise: NextRoute | Fail


@dataclass(frozen=True, slots=True)
class StripState:
    """The same request without provider state: some servers refuse the fields that they stream."""


@dataclass(frozen=True, slots=True)
class DropSetting:
    """The same request without the model setting of this name, which the vendor refused."""

    name: str


@dataclass(frozen=True, slots=True)
class DropAttachments:
    """The same request without attachments: those before the last question, then all."""


@dataclass(frozen=True, slots=True)
class LowerOutput:
    """The same request with a lower output limit: the most that the model allows."""

    tokens: int


Decision = (
    Retry
    | Wait
    | Shrink
    | StripState
    | DropSetting
    | DropAttachments
    | LowerOutput
    | NextRoute
    | Fail
)


def decide(error: ProviderError, progress: Progress, jitter: float) -> Decision:
    """Decide what follows the error of a try; `jitter` is a random factor, within `JITTER`."""
    if error.refused_setting is not None:
        return DropSetting(error.refused_setting)
    if error.refuses_attachments and progress.sends_attachments:
        return DropAttachments()
    most, sent = error.most_output_tokens, progress.most_output_tokens
    is_lower = most is not None and (sent is None or most < sent)
    if most is not None and is_lower and progress.lowered < MAX_LOWERED:
        return LowerOutput(most)
    is_throttled = error.code == "provider.rate_limited"
    if is_throttled:
        pause = _pause(error, progress.refusals + 1, jitter)
        may_wait = not progress.is_billed or progress.tries < MAX_TRIES
        if may_wait and pause <= progress.seconds_left:
            return Wait(pause)
    elif error.retryable and progress.tries < _max_tries(error, progress):
        return Retry(_pause(error, progress.tries, jitter))
    otherwise: NextRoute | Fail = Fail()
    if error.is_of_route and progress.has_next:
        otherwise = NextRoute(_requested_pause(error) if is_throttled else None)
    if (too_large := error.too_large) is not None:
        if too_large.is_per_minute:
            is_for_next = progress.has_next  # another account may allow more
        else:
            is_for_next = progress.has_larger and progress.shrinks > 0
            otherwise = NextRoute(to_larger=True) if progress.has_larger else otherwise
        can_shrink = progress.shrinks < MAX_SHRINKS and not is_for_next
        return Shrink(too_large, otherwise) if can_shrink else otherwise
    if error.code == "provider.invalid_request" and progress.sends_state:
        return StripState()
    return otherwise


def _max_tries(error: ProviderError, progress: Progress) -> int:
    """Return how often this route may be called; a timeout is better retried on the next one."""
    if not error.was_accepted:
        return MAX_TRIES
    return 1 if progress.has_next or progress.is_replaceable else MAX_TRIES_AFTER_TIMEOUT


def _pause(error: ProviderError, failures: int, jitter: float) -> float:
    """Return what the provider requests, else 0.5, 1, 2, … seconds by failures, with jitter."""
    backoff = FIRST_BACKOFF_SECONDS * 2 ** min(failures - 1, 16) * jitter
    return _requested_pause(error) or min(backoff, MAX_BACKOFF_SECONDS)


def _requested_pause(error: ProviderError) -> float | None:
    """Return the seconds that the provider requests, within bounds; 0 or a past date are none."""
    return min(error.retry_after, MAX_RETRY_AFTER_SECONDS) if error.retry_after else None
