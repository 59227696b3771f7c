"""The pace at which a model's output is taken."""

from arkloop.worker.agent.output_pace import (
    CHARACTERS_PER_SECOND,
    OutputPace,
)
from arkloop.worker.contract.messages import CallDelta, TextDelta, ThinkingDelta, TurnEnd
from tests.worker.agent.called_models import Replies, called
from tests.worker.recorded_run import RecordedRun

PIECE = 30_000


def test_output_is_taken_at_the_pace() -> None:
    """Pieces take as long as the characters before them."""
    now = 0.0
    pace = OutputPace(lambda: now)
    waits = []
    for _ in range(100):
        waits.append(pace.take(PIECE))
        now += waits[-1]
    assert 0.0 == waits[0] < min(waits[1:])
    assert abs(now - 99 * PIECE / CHARACTERS_PER_SECOND) < 0.001


def test_what_a_model_writes_never_waits() -> None:
    """A model may write 120,000 characters, some 30,000 tokens, each second of an hour."""
    now = 0.0
    pace = OutputPace(lambda: now)
    for _ in range(36_000):
        assert not pace.take(12_000)
        now += 0.1


def test_one_large_piece_waits_for_nothing() -> None:
    """An endpoint that does not stream sends its whole text as one piece."""
    pace = OutputPace(lambda: 0.0)
    assert not pace.take(4 * 1024 * 1024)
    assert pace.take(1) > 3


def test_a_turn_waits_for_all_that_it_says() -> None:
    """Text, reasoning and arguments count alike; the first half a million characters are free."""
    text, thinking = TextDelta("x" * PIECE), ThinkingDelta("x" * PIECE)
    some = [text, thinking, CallDelta("x" * PIECE, 0, "c", "t")] * 6
    run = RecordedRun()
    called(run, Replies([*some, *[text] * 10, TurnEnd("stop")]))
    assert run.paused and 0 < run.paused[0] < PIECE / CHARACTERS_PER_SECOND
    again = RecordedRun()
    called(again, Replies([*some[:17], TurnEnd("stop")]))
    called(again, Replies([*some[:17], TurnEnd("stop")]))
    assert [] == again.paused
