"""The play of a scenario by one state of the code; a module of its own, so that the pool's
processes can import it.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from chaos.mutation.scenarios import BY_NAME
from chaos.trial import Patience, play
from chaos.verdict.checker import INVARIANTS, report

#: Runs of a mutant may hang for ever.
IMPATIENT = Patience(answer=15, join=15, end=4)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The result of one play: invariants, and the report of their violations, empty if none."""

    found: list[str]
    report: str
    seconds: float


def played(name: str, seed: int, folder: Path, source: Path) -> Shown:
    began = time.monotonic()
    try:
        outcome = play(BY_NAME[name], seed, folder, source=source, short=True, patience=IMPATIENT)
        found = in_order({violation.invariant for violation in outcome.violations})
        told = report(outcome.violations) if outcome.violations else ""
    except Exception as error:
        # What cannot even be played is not caught: the checker has said nothing.
        found, told = [], f"it broke off: {error!r}"
    return Shown(found=found, report=told, seconds=time.monotonic() - began)


def in_order(invariants: Collection[str]) -> list[str]:
    return sorted(invariants, key=list(INVARIANTS).index)
