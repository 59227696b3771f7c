"""The model of busy threads keeps its promises, and the invariants find what is wrong with it."""

from pathlib import Path

import pytest

from arkloop.shared.runs.thread_queue import RULES
from chaos.model.bugs import BUGS, Bug
from chaos.model.effects import Table
from chaos.model.exploration import OUT_OF_REACH, SHORT, Scope, explore

DOCUMENT = Path(__file__).parents[3] / "docs" / "testing.md"


@pytest.mark.parametrize("scope", SHORT, ids=str)
def test_every_interleaving_keeps_the_promises(scope: Scope) -> None:
    """Two clients, a worker, the sweep and a crash break no invariant over the service's table."""
    result = explore(Table(RULES, max_waiting=scope.max_waiting), scope.bounds)

    assert result.found is None, str(result.found)
    assert result.states > 1_500


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_caught_by_its_invariant(bug: Bug) -> None:
    """A wrong row of the table, or a care that the code does not take, breaks what is promised."""
    found = explore(bug.table(), bug.bounds).found

    assert found is not None
    assert bug.caught_by == found.invariant, str(found)


def test_the_unbroken_table_survives_what_the_bugs_are_caught_in() -> None:
    """Where a bug is caught, the table without it is clean: the bug is what was found."""
    scopes = {(bug.bounds, bug.max_waiting) for bug in BUGS if sum(bug.bounds.requests) < 3}
    for bounds, max_waiting in scopes:
        result = explore(Table(RULES, max_waiting=max_waiting), bounds)
        assert result.found is None, str(result.found)


def test_the_rules_out_of_reach_are_rules_of_the_table() -> None:
    """A rule that has been renamed would count as one that never applies."""
    assert OUT_OF_REACH <= {rule.name for rule in RULES}


def test_every_seeded_bug_is_documented() -> None:
    """The table of `testing.md` has each bug, and what catches it."""
    text = DOCUMENT.read_text(encoding="utf-8")

    assert [] == [b.name for b in BUGS if f"| {b.name} | {b.caught_by} |" not in text]
