"""Events as a line for a person."""

from typing import Any

import pytest

from arkloop.cli.client.display import line_of
from arkloop.cli.client.event_stream import RunEvent


@pytest.mark.parametrize(
    ("event_type", "data", "line"),
    [
        (
            "run.throttled",
            {"route_id": "fast", "reason": "requests", "seconds": 4.2},
            "waiting: the route has reached its requests per minute; retrying in 4.2 s",
        ),
        (
            "run.throttled",
            {"route_id": "fast", "reason": "a new one", "seconds": 5.0},
            "waiting: a new one; retrying in 5 s",
        ),
        (
            "run.fallback",
            {
                "from_route_id": "fast",
                "to_route_id": "slow",
                "model": "large",
                "reason": "provider.overloaded",
            },
            "large (slow) takes over after provider.overloaded",
        ),
        (
            "context.truncated",
            {"dropped_messages": 14},
            "too long for the model: 14 old messages omitted",
        ),
        (
            "context.compacted",
            {"dropped_messages": 14, "summary": "The user plans a trip."},
            "too long for the model: 14 old messages summarized",
        ),
    ],
)
def test_why_a_run_waits_or_changes_is_said_in_words(
    event_type: str, data: dict[str, Any], line: str
) -> None:
    """Somebody who waits at a terminal reads a sentence, not an event's JSON."""
    event = RunEvent(seq=2, type=event_type, data=data, created_at="", text="")

    assert line == line_of(event)
