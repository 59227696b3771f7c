"""A model that repeats itself: the same calls with the same results, turn after turn."""

import json
import math
from collections.abc import Sequence

from arkloop.worker.agent.conversation import Turn
from arkloop.worker.contract.outcomes import LimitExceeded

#: A cycle has at most this many turns.
MAX_LENGTH = 3


def check(turns: Sequence[Turn], max_equal_turns: int) -> None:
    """Fail a run whose last turns repeat themselves.

    `max_equal_turns` turns with the same calls and results in a row are too many, and so are two
    thirds as many rounds of a cycle of two or three turns.

    Raises:
        LimitExceeded: `run.tool_loop`.
    """
    most_rounds = {1: max_equal_turns} | dict.fromkeys(
        range(2, MAX_LENGTH + 1), max(2, math.ceil(max_equal_turns * 2 / 3))
    )
    signatures = [_signature(turn) for turn in turns[-MAX_LENGTH * max_equal_turns :]]
    for length, rounds in most_rounds.items():
        last = signatures[-length * rounds :]
        if len(last) == length * rounds and last == last[:length] * rounds:
            names = sorted({call.name for turn in turns[-length:] for call in turn.calls})
            raise LimitExceeded(
                "run.tool_loop",
                f"The model repeated the same calls of {', '.join(names)} with the same"
                f" results {rounds} times in a row.",
            )


def _signature(turn: Turn) -> tuple[tuple[str, str, str], ...]:
    """Return what the turn called and the results, whatever the ids."""
    return tuple(
        (
            call.name,
            json.dumps(call.arguments, sort_keys=True, default=str),
            turn.results[call.id].content if call.id in turn.results else "",
        )
        for call in turn.calls
    )
