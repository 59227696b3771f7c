"""Rate limit headers, as vendors send them with a 429."""

import time
from datetime import UTC, datetime, timedelta

import httpx2
import pytest

from arkloop.worker.providers.rate_limit_headers import RateLimit, read


def headers(**values: str) -> httpx2.Headers:
    return httpx2.Headers({name.replace("_", "-"): value for name, value in values.items()})


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        (headers(x_ratelimit_remaining_requests="0", x_ratelimit_reset_requests="6m0s"), 360.0),
        (headers(x_ratelimit_remaining_tokens="0", x_ratelimit_reset_tokens="1m30.5s"), 90.5),
        (headers(x_ratelimit_remaining_tokens="0", x_ratelimit_reset_tokens="120ms"), 0.12),
        (headers(X_RateLimit_Remaining="0", X_RateLimit_Reset="42"), 42.0),
        (headers(RateLimit='"default";r=0;t=30'), 30.0),
        (headers(RateLimit="limit=100, remaining=0, reset=50"), 50.0),
        (headers(RateLimit_Remaining="0", retry_after="9"), None),
    ],
)
def test_an_exhausted_limit_is_recognised(sent: httpx2.Headers, seconds: float | None) -> None:
    """Nothing remains, and there is a time at which the limit is renewed."""
    limit = read(sent)

    assert (True, seconds) == (limit.is_exhausted, limit.reset_seconds)


@pytest.mark.parametrize("unit", ["RFC 3339", "seconds", "milliseconds"])
def test_a_reset_may_be_a_point_in_time(unit: str) -> None:
    """Anthropic sends RFC 3339, OpenRouter milliseconds since 1970."""
    at = datetime.now(UTC) + timedelta(seconds=60)
    value = {
        "RFC 3339": at.isoformat().replace("+00:00", "Z"),
        "seconds": str(round(at.timestamp())),
        "milliseconds": str(round(at.timestamp() * 1000)),
    }[unit]

    limit = read(
        headers(
            anthropic_ratelimit_input_tokens_remaining="0",
            anthropic_ratelimit_input_tokens_reset=value,
        )
    )

    assert limit.reset_seconds is not None
    assert 50 < limit.reset_seconds < 62


@pytest.mark.parametrize(
    "sent",
    [
        headers(retry_after="9"),
        headers(x_ratelimit_remaining_requests="0"),
        headers(x_ratelimit_remaining_tokens="5000", x_ratelimit_reset_tokens="6s"),
        headers(x_ratelimit_remaining_tokens="x", x_ratelimit_reset_tokens="6s"),
        headers(x_ratelimit_remaining_tokens="0", x_ratelimit_reset_tokens="soon"),
        headers(x_ratelimit_remaining_tokens="0", x_ratelimit_reset_requests="6s"),
    ],
)
def test_anything_less_is_no_exhausted_limit(sent: httpx2.Headers) -> None:
    """Such a 429 concerns the one request, as far as anybody knows."""
    assert RateLimit() == read(sent)


def test_a_limit_that_is_not_used_is_reported() -> None:
    """An unused limit of tokens is reported, since a larger request can never fit."""
    idle = headers(
        x_ratelimit_limit_requests="500",
        x_ratelimit_remaining_requests="500",
        x_ratelimit_limit_tokens="30000",
        x_ratelimit_remaining_tokens="30000",
    )
    used = headers(x_ratelimit_limit_tokens="30000", x_ratelimit_remaining_tokens="29000")

    assert (30000, None) == (read(idle).idle_tokens, read(used).idle_tokens)


def test_a_reset_that_is_past_asks_for_nothing() -> None:
    """A reset time in the past, as of another clock, requests no wait."""
    past = headers(X_RateLimit_Remaining="0", X_RateLimit_Reset=str(round(time.time()) - 60))

    assert 0.0 == read(past).reset_seconds
