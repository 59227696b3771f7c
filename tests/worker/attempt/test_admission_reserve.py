"""The money that is kept for a run's last call, from one attempt and one route to the next."""

from dataclasses import replace
from decimal import Decimal

import pytest

from arkloop.shared.billing import credits
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.usage import Usage
from arkloop.worker.attempt.admission import Admission
from arkloop.worker.contract.context import Plan
from tests.stored_runs import StoredRuns
from tests.worker.attempt.test_admission import QUARTER, WORST, Gate, gate, held, route

__all__ = ["gate", "route"]  # fixtures

LIMITS = {"max_cost_usd_per_month": Decimal("1.5")}
#: A tenth of the limit is kept for the last call.
PLAN = Plan(call=QUARTER, shortest=Usage(input_tokens=10_000), whole=Usage(input_tokens=500_000))


def resumed(stored: StoredRuns, gate: Gate, reason: str) -> Gate:
    """Let another worker have the run, with the costs that are recorded."""
    stored.set(gate.claim.run_id, state="queued", resume_reason=reason)
    again = Gate(stored, stored.held(gate.claim.run_id))
    again.set_persona(**LIMITS).totals = gate.admission.totals
    return again


def step(admission: Admission, route: Route) -> None:
    """Make a call of 0.25 USD."""
    admission.reserve(route, QUARTER, PLAN)
    admission.add_usage(route, QUARTER)
    admission.settle()


def test_the_next_attempt_keeps_the_reserve(stored: StoredRuns, gate: Gate, route: Route) -> None:
    """It has waited for a person; the reserve also stays when it leaves a route without a call."""
    step(gate.set_persona(**LIMITS), route)

    again = resumed(stored, gate, "input")
    again.admission.take_over()
    assert Decimal("0.4") == held(stored, again.claim)
    again.admission.settle()

    assert Decimal("0.4") == held(stored, again.claim)


def test_an_attempt_that_was_lost_in_a_step_leaves_the_reserve(
    stored: StoredRuns, gate: Gate, route: Route
) -> None:
    """Only what the step might have cost is given back."""
    gate.set_persona(**LIMITS).reserve(route, WORST, PLAN)
    gate.admission.add_usage(route, QUARTER)

    again = resumed(stored, gate, "worker_lost")
    again.admission.take_over()

    assert Decimal("0.4") == held(stored, again.claim)


@pytest.mark.parametrize("reason", ["worker_lost", "deploy"])
def test_a_last_call_that_was_lost_leaves_its_reserve(
    stored: StoredRuns, gate: Gate, route: Route, reason: str
) -> None:
    """The next attempt makes it: what it reserves is for that call alone."""
    step(gate.set_persona(**LIMITS), route)
    gate.admission.reserve(route, QUARTER)

    again = resumed(stored, gate, reason)
    again.admission.take_over(is_last=True)

    assert Decimal("0.5") == held(stored, again.claim)


@pytest.mark.parametrize(("is_own", "expected"), [(False, 400), (True, 0)])
def test_a_reserve_on_an_own_model_needs_no_credits_in_the_next_attempt(
    stored: StoredRuns, gate: Gate, route: Route, is_own: bool, expected: int
) -> None:
    """It holds none: credits are for routes of the server alone."""
    with stored.connections.transaction() as tx:
        credits.grant(tx, gate.claim.org_id, 1000)
    route = replace(route, id=route.id if is_own else "scripted", is_of_org=is_own)
    step(gate.set_persona(**LIMITS), route)

    again = resumed(stored, gate, "input")
    again.admission.take_over(keep_is_own=is_own)

    with stored.connections.reading() as sql:
        assert expected == credits.balance(sql, gate.claim.org_id).held


def test_a_last_call_that_was_not_made_leaves_its_reserve(
    stored: StoredRuns, gate: Gate, route: Route
) -> None:
    """Its vendor has responded 429, or the run falls back to another route: it is made again."""
    step(gate.set_persona(**LIMITS), route)

    for _ in range(2):
        gate.admission.reserve(route, WORST)
        gate.admission.settle()

    assert Decimal("0.4") == held(stored, gate.claim)


def test_a_run_that_fails_at_its_limit_keeps_no_reserve(
    stored: StoredRuns, gate: Gate, route: Route
) -> None:
    """Only its summaries are planned with a call after them."""
    admission = gate.set_persona(**LIMITS, on_limit="fail")
    step(admission, route)  # a summary

    admission.reserve(route, WORST)
    admission.add_usage(route, QUARTER)
    admission.settle()

    assert Decimal("0.5") == held(stored, gate.claim)
