"""A model that repeats itself: the same calls with the same results, turn after turn."""

import json
from collections.abc import Sequence

from worker.conversation import Turn
from worker.outcomes import LimitExceeded

#: The length of a cycle in turns, and how often it may come in a row.
MAX_ROUNDS = {1: 6, 2: 4, 3: 4}


def check(turns: Sequence[Turn]) -> None:
    """Raises: LimitExceeded: `run.tool_loop`, where the last turns go round in a circle."""
    signatures = [_signature(turn) for turn in turns[-max(n * m for n, m in MAX_ROUNDS.items()) :]]
    for length, rounds in MAX_ROUNDS.items():
        last = signatures[-length * rounds :]
        if len(last) == length * rounds and last == last[:length] * rounds:
            names = sorted({call.name for turn in turns[-length:] for call in turn.calls})
            raise LimitExceeded(
                "run.tool_loop",
                f"The model made the same calls of {', '.join(names)} with the same results"
                f" {rounds} times in a row.",
            )


def _signature(turn: Turn) -> tuple[tuple[str, str, str], ...]:
    """What the turn called and what came of it, whatever the ids."""
    return tuple(
        (
            call.name,
            json.dumps(call.arguments, sort_keys=True, default=str),
            turn.results[call.id].content if call.id in turn.results else "",
        )
        for call in turn.calls
    )
