"""Events as a line for a person."""

from typing import Any

import pytest

from arkloop.cli.client.display import THROTTLED, PipedText, TerminalText, line_of
from arkloop.cli.client.event_stream import RunEvent
from arkloop.shared.runs.reasons import Reason


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
            "run.settings_dropped",
            {"route_id": "fast", "settings": ["seed", "stop"]},
            "fast does not support seed, stop",
        ),
        (
            "run.settings_dropped",
            {"route_id": "fast", "settings": ["max_output_tokens"]},
            "fast writes less than max_output_tokens: its own maximum applies",
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


def test_each_reason_to_wait_has_words() -> None:
    """Other reasons, as of a newer server, are shown by their names."""
    prefix = "throttled."
    reasons = {reason.removeprefix(prefix) for reason in Reason if reason.startswith(prefix)}

    assert reasons == THROTTLED.keys()


def show_reset(display: PipedText | TerminalText) -> None:
    """Show a turn of which a reset keeps the beginning."""
    turn: list[tuple[str, dict[str, Any]]] = [
        ("message.thinking", {"content": "Hm."}),
        ("message.delta", {"content": "Hello "}),
        ("message.delta", {"content": "there. "}),
        ("message.delta", {"content": "wrong"}),
        ("message.reset", {"from_seq": 4, "reason": "agent"}),
        ("message.delta", {"content": "It is 42."}),
        ("message.completed", {"content": "Hello there. It is 42."}),
    ]
    for seq, (event_type, data) in enumerate(turn, 1):
        display.show(RunEvent(seq=seq, type=event_type, data=data, created_at="", text=""))


def test_a_terminal_shows_the_text_that_a_reset_keeps_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What stands below the line is the whole turn, as a pipe gets it."""
    show_reset(TerminalText())
    above, below = capsys.readouterr().out.split("the model starts again\n")
    show_reset(PipedText())

    assert "Hm.\nHello there. wrong\n✗ Discard the unfinished text above (agent): " == above
    assert "Hm.\nHello there. It is 42." == below
    assert "Hello there. It is 42.\n" == capsys.readouterr().out
