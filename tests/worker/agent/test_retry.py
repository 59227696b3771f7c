"""The table of what follows the error of a try of a model call."""

from typing import Any

import pytest

from arkloop.worker.agent.retry import (
    MAX_LOWERED,
    MAX_SHRINKS,
    MAX_TRIES,
    Decision,
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
from arkloop.worker.contract.outcomes import ProviderError, TooLarge

MANY = 600.0
LAST = MAX_TRIES - 1
OF_CONTEXT = TooLarge(limit_tokens=8000)
PER_MINUTE = TooLarge(is_per_minute=True)


def error(kind: str, **facts: Any) -> ProviderError:
    return ProviderError(kind, "no", **facts)


def alone(**values: Any) -> Progress:
    """Build the progress on the last route of the chain."""
    return Progress(**{"has_next": False, "seconds_left": MANY, **values})


def beside(**values: Any) -> Progress:
    """Build the progress on a route that has another one after it."""
    return Progress(**{"has_next": True, "seconds_left": 5.0, **values})


BUSY = error("rate_limited")
BROKEN = error("overloaded")
WRONG = error("invalid_request")
AWAY = error("timeout")
LATE = error("timeout", was_accepted=True)

TABLE: dict[str, tuple[ProviderError, Progress, Decision]] = {
    "overloaded": (BROKEN, alone(), Retry(0.5)),
    "connection": (error("connection"), alone(), Retry(0.5)),
    "malformed": (error("malformed"), alone(), Retry(0.5)),
    "timeout": (AWAY, alone(), Retry(0.5)),
    "the third failure: the pause has doubled twice": (BROKEN, alone(tries=LAST), Retry(2.0)),
    "overloaded, Retry-After: 0.05": (error("overloaded", retry_after=0.05), alone(), Retry(0.05)),
    "overloaded, Retry-After: 3600": (error("overloaded", retry_after=3600), beside(), Retry(30)),
    "overloaded, Retry-After: 0": (
        error("overloaded", retry_after=0.0),
        alone(tries=2),
        Retry(1.0),
    ),
    "the last try but one": (BROKEN, beside(tries=LAST), Retry(2.0)),
    "the last try, no other route": (BROKEN, alone(tries=MAX_TRIES), Fail()),
    "the last try of this route": (BROKEN, beside(tries=MAX_TRIES), NextRoute()),
    "the last try of this route, Retry-After: 7": (
        error("overloaded", retry_after=7),
        beside(tries=MAX_TRIES),
        NextRoute(),
    ),
    "accepted and timed out": (LATE, alone(), Retry(0.5)),
    "accepted and timed out twice": (LATE, alone(tries=2), Fail()),
    "accepted and timed out, another route": (LATE, beside(), NextRoute()),
    "accepted and timed out, another route for other calls": (
        LATE,
        alone(is_replaceable=True),
        Fail(),
    ),
    "timed out unaccepted, another route": (AWAY, beside(tries=LAST), Retry(2.0)),
    "429": (BUSY, alone(), Wait(0.5)),
    "the third 429": (BUSY, alone(refusals=2), Wait(2.0)),
    "429, another route": (BUSY, beside(), Wait(0.5)),
    "429 after the last try": (BUSY, alone(tries=MAX_TRIES), Wait(0.5)),
    "429 after some output": (BUSY, alone(is_billed=True, tries=LAST), Wait(0.5)),
    "429 after some output, the last try": (BUSY, alone(is_billed=True, tries=MAX_TRIES), Fail()),
    "429 after some output, the last try of this route": (
        BUSY,
        beside(is_billed=True, tries=MAX_TRIES),
        NextRoute(),
    ),
    "overloaded after nine 429s": (BROKEN, alone(refusals=9), Retry(0.5)),
    "429 for the 1501st time": (BUSY, alone(refusals=1500), Wait(30)),
    "429, Retry-After: 7": (error("rate_limited", retry_after=7), alone(), Wait(7)),
    "429, Retry-After: 3600": (error("rate_limited", retry_after=3600), alone(), Wait(30)),
    "429, Retry-After: 0": (error("rate_limited", retry_after=0.0), alone(), Wait(0.5)),
    "429, as long as the time left": (error("rate_limited", retry_after=5), beside(), Wait(5)),
    "429, longer than the time left": (
        error("rate_limited", retry_after=5.1),
        beside(),
        NextRoute(5.1),
    ),
    "429, far longer than the time left": (
        error("rate_limited", retry_after=3600),
        beside(),
        NextRoute(30),
    ),
    "429, no time left, no Retry-After": (BUSY, beside(seconds_left=0.4), NextRoute()),
    "429, no time left, Retry-After: 0": (
        error("rate_limited", retry_after=0.0),
        beside(seconds_left=0.4),
        NextRoute(),
    ),
    "429, no time and no route left": (BUSY, alone(seconds_left=-0.1), Fail()),
    "too large, no other route": (
        error("invalid_request", too_large=OF_CONTEXT),
        alone(),
        Shrink(OF_CONTEXT, Fail()),
    ),
    "too large, another route": (
        error("invalid_request", too_large=OF_CONTEXT),
        beside(),
        Shrink(OF_CONTEXT, NextRoute()),
    ),
    "too large for the eighth time": (
        error("invalid_request", too_large=OF_CONTEXT),
        alone(shrinks=MAX_SHRINKS - 1),
        Shrink(OF_CONTEXT, Fail()),
    ),
    "too large for the ninth time": (
        error("invalid_request", too_large=OF_CONTEXT),
        alone(shrinks=MAX_SHRINKS),
        Fail(),
    ),
    "too large for the ninth time, another route": (
        error("invalid_request", too_large=OF_CONTEXT),
        beside(shrinks=MAX_SHRINKS),
        NextRoute(),
    ),
    "too large for the account, another route": (
        error("invalid_request", too_large=PER_MINUTE),
        beside(),
        NextRoute(),
    ),
    "too large for the account, no other route": (
        error("invalid_request", too_large=PER_MINUTE),
        alone(),
        Shrink(PER_MINUTE, Fail()),
    ),
    "too large with provider state": (
        error("invalid_request", too_large=OF_CONTEXT),
        alone(shrinks=MAX_SHRINKS, sends_state=True),
        Fail(),
    ),
    "refused setting": (
        error("invalid_request", refused_setting="seed"),
        beside(sends_state=True),
        DropSetting("seed"),
    ),
    "refused attachments": (
        error("invalid_request", refuses_attachments=True),
        beside(sends_attachments=True, sends_state=True),
        DropAttachments(),
    ),
    "refused attachments, and none is left": (
        error("invalid_request", refuses_attachments=True),
        beside(),
        Fail(),
    ),
    "refused output limit": (
        error("invalid_request", most_output_tokens=64),
        beside(most_output_tokens=65, sends_state=True),
        LowerOutput(64),
    ),
    "refused output limit of the API's own": (
        error("invalid_request", most_output_tokens=64),
        beside(),
        LowerOutput(64),
    ),
    "refused output limit, lowered often enough": (
        error("invalid_request", most_output_tokens=64),
        alone(most_output_tokens=65, lowered=MAX_LOWERED),
        Fail(),
    ),
    "refused output limit that is low enough": (
        error("invalid_request", most_output_tokens=64),
        alone(most_output_tokens=64),
        Fail(),
    ),
    "wrong request": (WRONG, alone(), Fail()),
    "wrong request, another route": (WRONG, beside(), Fail()),
    "wrong request with provider state": (WRONG, alone(sends_state=True), StripState()),
    "wrong request with provider state, another route": (
        WRONG,
        beside(sends_state=True),
        StripState(),
    ),
    "no such model, another route": (error("invalid_request", is_gone=True), beside(), NextRoute()),
    "no such model, no other route": (error("invalid_request", is_gone=True), alone(), Fail()),
    "refused key with provider state": (error("auth"), alone(sends_state=True), Fail()),
    "refused key, another route": (error("auth"), beside(), NextRoute()),
}


@pytest.mark.parametrize(("failed", "progress", "expected"), TABLE.values(), ids=TABLE.keys())
def test_each_error_has_its_decision(
    failed: ProviderError, progress: Progress, expected: Decision
) -> None:
    """The error and the progress of a call decide, without jitter, what follows."""
    assert expected == decide(failed, progress, 1.0)


@pytest.mark.parametrize(
    ("failed", "progress", "expected"),
    [
        (BROKEN, alone(), Retry(0.375)),
        (BUSY, alone(refusals=1), Wait(0.75)),
        (BUSY, alone(refusals=9), Wait(30)),
        (error("rate_limited", retry_after=7), alone(), Wait(7)),
    ],
)
def test_only_our_own_pauses_have_jitter(
    failed: ProviderError, progress: Progress, expected: Decision
) -> None:
    """A requested pause is exact, and no pause is longer than 30 s."""
    assert expected == decide(failed, progress, 0.75)
