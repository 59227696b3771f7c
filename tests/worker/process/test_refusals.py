"""Requests that a vendor has refused one after the other, by org and route."""

from contextlib import ExitStack
from uuid import UUID

import pytest

from arkloop.shared.ids import new_id
from arkloop.worker.process import refusals
from arkloop.worker.process.refusals import (
    FORGET_SECONDS,
    MAX_PAUSE_SECONDS,
    MAX_WAITING,
    Refusals,
)

ORG, OTHER_ORG = new_id(), new_id()


@pytest.fixture(autouse=True)
def longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses without their random part."""
    monkeypatch.setattr(refusals.random, "uniform", lambda _least, most: most)


def pauses(seen: Refusals, number: int, org_id: UUID = ORG) -> list[float]:
    """Return the pause after each of that number of refusals."""
    found = []
    for _ in range(number):
        seen.add("r", org_id)
        found.append(seen.pause("r", org_id))
    return found


def test_pauses_double_from_the_second_refusal_on() -> None:
    """One refusal is no pattern; the longest pause is the same after however many."""
    seen = Refusals()
    assert not seen.pause("r", ORG)
    assert [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, MAX_PAUSE_SECONDS] == pauses(seen, 7)
    assert {MAX_PAUSE_SECONDS} == set(pauses(seen, 10_000))


def test_only_the_orgs_own_runs_on_the_route_wait() -> None:
    seen = Refusals()
    pauses(seen, 3)
    assert (0.5, 0.0, 0.0) == (
        seen.pause("r", ORG),
        seen.pause("r", OTHER_ORG),
        seen.pause("other", ORG),
    )


def test_a_success_ends_the_pauses() -> None:
    """The next refusal of the org on the route is the first one again."""
    seen = Refusals()
    pauses(seen, 3)
    pauses(seen, 3, OTHER_ORG)
    seen.clear("r", ORG)
    assert (0.0, 0.5) == (seen.pause("r", ORG), seen.pause("r", OTHER_ORG))
    assert [0.0, 0.25] == pauses(seen, 2)


def test_few_runs_wait_at_a_time() -> None:
    """Each takes a slot of the worker; the org's other ones do not wait."""
    seen = Refusals()
    pauses(seen, 3)
    with ExitStack() as waiting:
        found = [waiting.enter_context(seen.waiting("r", ORG)) for _ in range(MAX_WAITING + 1)]
    assert [0.5] * MAX_WAITING + [0.0] == found
    with seen.waiting("r", ORG) as seconds:
        assert 0.5 == seconds


def test_old_refusals_are_forgotten() -> None:
    """They neither count nor take memory when they are older than a minute."""
    now = 0.0
    seen = Refusals(lambda: now)
    pauses(seen, 3)
    now = FORGET_SECONDS - 1
    assert seen.pause("r", ORG)
    now = FORGET_SECONDS
    assert not seen.pause("r", ORG)
    pauses(seen, 1, OTHER_ORG)
    assert [("r", OTHER_ORG)] == [*seen._seen]


def test_a_pause_has_a_random_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that wait for the same refusals do not go on together."""
    monkeypatch.undo()
    seen = Refusals()
    pauses(seen, 20)
    found = [seen.pause("r", ORG) for _ in range(100)]
    assert MAX_PAUSE_SECONDS / 4 <= min(found) < 3 < max(found) <= MAX_PAUSE_SECONDS
