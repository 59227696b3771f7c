"""The rate limit headers of a 429: whether the account's limit is exhausted, and until when.

Every vendor names them differently (`x-ratelimit-remaining-tokens`,
`anthropic-ratelimit-tokens-remaining`, `X-RateLimit-Remaining`, `RateLimit: …;r=0;t=30`), but the
name of each contains `ratelimit` and what it counts.
"""

import contextlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

#: `6m0s`, `1.5s`, `120ms`; a bare number has no unit.
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATIONS = re.compile(f"(?:{_DURATION.pattern})+")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
#: The draft of the IETF puts everything into one header, as `remaining=0, reset=9` or `r=0;t=9`.
_COMBINED = re.compile(r"\b(remaining|reset|limit|r|t)=(\d+)")
_LONG_NAMES = {"r": "remaining", "t": "reset"}
#: A number beyond these is a time: seconds or milliseconds since 1970.
_EPOCH_SECONDS, _EPOCH_MILLISECONDS = 1e9, 1e12


@dataclass(frozen=True, slots=True)
class RateLimit:
    """The limits that a vendor's headers report.

    `is_exhausted`: one of them has nothing remaining and a time at which it is renewed, which is
    in `reset_seconds`. `idle_tokens`: the tokens per minute of a limit that is not used at all.
    """

    is_exhausted: bool = False
    reset_seconds: float | None = None
    idle_tokens: int | None = None


def read(headers: Mapping[str, str]) -> RateLimit:
    """Read the headers of a 429; headers that cannot be read count as missing."""
    counts: dict[str, dict[str, str]] = {"remaining": {}, "reset": {}, "limit": {}}
    for name, value in headers.items():
        family = name.lower().replace("rate-limit", "ratelimit")
        if "ratelimit" not in family:
            continue
        for short, number in _COMBINED.findall(value):
            word = _LONG_NAMES.get(short, short)
            counts[word].setdefault(family, number)
        rest = family.replace("ratelimit", "", 1)
        for word, found in counts.items():
            if word in rest:
                # What is counted: `x---tokens`, the same for the three headers of a limit.
                found[rest.replace(word, "", 1).strip("-").replace("--", "-")] = value
                break
    remaining = {what: _number(value) for what, value in counts["remaining"].items()}
    spent = [what for what, number in remaining.items() if number is not None and number <= 0]
    resets = [_seconds(counts["reset"][what]) for what in spent if what in counts["reset"]]
    known = [seconds for seconds in resets if seconds is not None]
    has_retry_after = "retry-after" in headers or "retry-after-ms" in headers
    idle = [
        int(limit)
        for what, value in counts["limit"].items()
        if "tokens" in what
        and (limit := _number(value)) is not None
        and (left := remaining.get(what)) is not None
        and left >= limit > 0
    ]
    return RateLimit(
        is_exhausted=bool(spent) and (bool(known) or has_retry_after),
        reset_seconds=max(known, default=None),
        idle_tokens=min(idle, default=None),
    )


def _number(value: str) -> float | None:
    with contextlib.suppress(ValueError):
        return float(value)
    return None


def _seconds(value: str) -> float | None:
    """Return seconds from now for a duration, a number, a time since 1970, or an RFC 3339 time."""
    if (number := _number(value)) is not None:
        if number > _EPOCH_MILLISECONDS:
            number = number / 1000 - time.time()
        elif number > _EPOCH_SECONDS:
            number -= time.time()
        return max(0.0, number)
    if _DURATIONS.fullmatch(value):
        return sum(float(count) * _UNITS[unit] for count, unit in _DURATION.findall(value))
    with contextlib.suppress(ValueError):
        return max(0.0, datetime.fromisoformat(value).timestamp() - time.time())
    return None
