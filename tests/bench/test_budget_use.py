"""The trials of `python -m bench.budget_use` in short, and that they can fail."""

from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal

import pytest

from bench.budget_use.trial import CAPS, Bench, Trial
from bench.budget_use.vendor import counting_vendor
from tests.system import System

#: Seeds with which the last call has had a part of the thread, far less than all of it.
SHORTENED = (21, 22)


@pytest.fixture(scope="module")
def bench(system: System) -> Iterator[Bench]:
    """An org of the test's own, whose model is at the vendor."""
    owner = system.caller()
    with counting_vendor() as vendor_url:
        with closing(Bench(owner.url, owner.token, vendor_url)) as made:
            yield made


@pytest.mark.parametrize("seed", [*range(2 * len(CAPS)), *SHORTENED])
def test_a_run_uses_the_most_of_its_cap_and_answers(bench: Bench, seed: int) -> None:
    """It uses 80 % of the cap and never more than it, whatever the cap and the vendor's tokens; nor
    does the next run exceed its own, also where the last call had only a part of the thread.
    """
    trial = bench.run(seed)

    assert [] == trial.faults
    assert ("budget", True) == (trial.stop_reason, trial.is_answered)
    assert trial.landed_at < trial.cost


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"cost": Decimal("0.51")}, "0.51 USD of 0.5 USD"),
        ({"next_cost": Decimal("0.1")}, "0.1 USD of 0.08 USD by the next run"),
        ({"cost": Decimal("0.39")}, "only 78.0% of 0.5 USD"),
        ({"is_answered": False}, "no answer (budget)"),
    ],
)
def test_a_trial_notices(changes: dict[str, object], fault: str) -> None:
    """A trial reports a cap that is exceeded, money for another call, and a missing answer."""
    fields: dict[str, object] = {
        "seed": 1,
        "cap": Decimal("0.5"),
        "cost": Decimal("0.45"),
        "next_cost": Decimal("0.07"),
        "landed_at": Decimal("0.4"),
        "cheapest_call": Decimal("0.1"),
        "calls": 5,
        "stop_reason": "budget",
        "is_answered": True,
    }

    too_dear = {"cost": Decimal("0.39"), "cheapest_call": Decimal("0.12")}
    assert [] == Trial(**fields).faults  # type: ignore[arg-type]  # by name
    assert [] == Trial(**{**fields, **too_dear}).faults  # type: ignore[arg-type]  # by name
    assert [fault] == Trial(**{**fields, **changes}).faults  # type: ignore[arg-type]  # by name
