"""The verdict over a journal: which invariants do not hold, seen from the outside alone."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from chaos.verdict import evidence
from chaos.verdict.checks_answers import check_answers, check_load
from chaos.verdict.checks_promises import check_promises
from chaos.verdict.checks_steps import check_steps
from chaos.verdict.checks_stream import check_streams
from chaos.verdict.violations import CHECKED_ELSEWHERE, INVARIANTS, Allow, Violation

__all__ = ["CHECKED_ELSEWHERE", "INVARIANTS", "Allow", "Violation", "check", "report"]

BOUNDS = Allow()
#: Violations of one invariant that are shown.
EXAMPLES = 3


def check(journal: Iterable[Mapping[str, Any]], *, allow: Allow = BOUNDS) -> list[Violation]:
    """Return all violations that the journal shows, by invariant; empty if all is well."""
    seen = evidence.sort(journal)
    found = [
        *check_streams(seen),
        *check_steps(seen),
        *check_promises(seen, allow),
        *check_answers(seen, allow),
        *check_load(seen, allow),
    ]
    order = list(INVARIANTS)
    return sorted(dict.fromkeys(found), key=lambda violation: order.index(violation.invariant))


def report(violations: Iterable[Violation]) -> str:
    """Render for people: each invariant with its promise, how often it fails, and a few
    examples.
    """
    of: dict[str, list[Violation]] = defaultdict(list)
    for violation in violations:
        of[violation.invariant].append(violation)
    lines: list[str] = []
    for invariant, found in of.items():
        lines.append(f"{invariant} × {len(found)}: {INVARIANTS[invariant]}")
        lines += [f"  {v.run_id or '-'}: {v.what}" for v in found[:EXAMPLES]]
    return "\n".join(lines) or "No violation."
