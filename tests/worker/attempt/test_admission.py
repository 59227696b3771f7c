"""The admission of a run's model calls: it waits visibly, or is refused by name."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import select, update

from arkloop.shared.billing import budget_limits, credits
from arkloop.shared.catalog import personas
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.prices import Prices
from arkloop.shared.claim import Claim
from arkloop.shared.events.types import Event, RouteCost, RunThrottled
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.tables.billing import reservations, spending
from arkloop.worker.agent import affordable
from arkloop.worker.attempt.admission import Admission
from arkloop.worker.contract import retry_deadline
from arkloop.worker.contract.context import Plan
from arkloop.worker.contract.messages import ModelRequest
from arkloop.worker.contract.outcomes import (
    CancelRequested,
    LimitExceeded,
    ProviderError,
    RunFailure,
)
from arkloop.worker.contract.retry_deadline import (
    LAST_ROUTE_SECONDS,
    OTHER_ROUTE_SECONDS,
    RetryDeadline,
)
from arkloop.worker.process.route_limits import MAX_PAUSE_SECONDS, RouteLimits
from arkloop.worker.providers.scripted_provider import ScriptedProvider
from tests.clients import Register
from tests.stored_runs import StoredRuns
from tests.worker.recorded_run import chain_of, request

WORST = Usage(input_tokens=500_000, output_tokens=250_000)  # 1 USD
QUARTER = Usage(input_tokens=250_000)


@dataclass
class Gate:
    """An `Admission` of a stored run, with what it said and how long it waited."""

    stored: StoredRuns
    claim: Claim
    told: list[Event] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.admission = Admission(
            self.claim,
            RouteLimits(self.stored.connections),
            write=self._write,
            emit=self.told.append,
            wait=self._wait,
        )

    def _write(self, change: Callable[[Transaction], None]) -> None:
        with self.stored.connections.transaction() as tx:
            change(tx)

    def _wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.meanwhile()

    def set_persona(self, **fields: Any) -> Admission:
        persona = replace(personas.builtin()["plain@1"], key=f"p-{new_id()}", **fields)
        self.admission.set_persona(persona)
        return self.admission

    def limit_org(self, usd: str) -> None:
        limits = {"max_cost_usd": None, "max_cost_usd_per_month": Decimal(usd)}
        with self.stored.connections.transaction() as tx:
            budget_limits.set_(tx, self.claim.org_id, "org", **limits)

    def is_org_exhausted(self) -> bool:
        of_org = spending.c.org_id == self.claim.org_id
        with self.stored.connections.reading() as sql:
            return sql.scalar(select(spending.c.exhausted_at).where(of_org)) is not None

    def forget_exhaustion(self) -> None:
        of_org = spending.c.org_id == self.claim.org_id
        with self.stored.connections.transaction() as tx:
            tx.sql.execute(update(spending).where(of_org).values(exhausted_at=None))


@pytest.fixture
def route() -> Route:
    """A route of the test's own: 1 USD per million tokens in, 2 out."""
    prices = Prices(input=Decimal(1), output=Decimal(2))
    return Route(id=str(new_id()), provider="scripted", model="scripted-1", prices=prices)


@pytest.fixture
def gate(stored: StoredRuns) -> Gate:
    return Gate(stored, stored.claimed())


def test_a_run_without_a_budget_is_not_limited(gate: Gate, route: Route) -> None:
    """A run without a budget is admitted without an event, and settles nothing."""
    admission = gate.set_persona()

    assert not admission.is_limited
    admission.admit(route, 1000, RetryDeadline(has_next=False))
    admission.add_usage(route, WORST)
    admission.settle()

    assert ([], []) == (gate.told, gate.waits)


def test_a_route_that_has_no_room_is_waited_for(gate: Gate, route: Route) -> None:
    """The wait is reported once, however often it is asked for, and can be stopped."""
    admission = gate.set_persona()
    narrow = replace(route, requests_per_minute=1)
    admission.admit(narrow, 10, RetryDeadline(has_next=False))

    def stop() -> None:
        if len(gate.waits) == 3:
            raise CancelRequested()

    gate.meanwhile = stop
    with pytest.raises(CancelRequested):
        admission.admit(narrow, 10, RetryDeadline(has_next=False))

    assert 3 == len(gate.waits)
    [told] = gate.told
    assert isinstance(told, RunThrottled)
    assert (route.id, "requests") == (told.route_id, told.reason)


def test_a_pause_that_a_provider_asked_for_is_said(gate: Gate, route: Route) -> None:
    """Once, and waited for until a call was made, a little longer than it was asked for."""
    admission = gate.set_persona()

    for _ in range(3):
        admission.back_off(route, 2.5, is_shared=True)
        admission.admit(replace(route, id=str(new_id())), 10, RetryDeadline(has_next=False))
    admission.add_usage(route, Usage())
    admission.back_off(route, 2.5, is_shared=True)

    assert all(2.5 < seconds < 5 for seconds in gate.waits)
    assert 4 == len(set(gate.waits))
    first, again = gate.told
    assert isinstance(first, RunThrottled)
    assert (route.id, "provider", round(gate.waits[0], 3)) == (
        first.route_id,
        first.reason,
        first.seconds,
    )
    assert again == replace(first, seconds=round(gate.waits[-1], 3))


@pytest.mark.parametrize(("is_shared", "waits"), [(False, 0), (True, 1)])
def test_another_org_waits_only_for_the_accounts_own_limit(
    connections: Connections,
    register: Register,
    gate: Gate,
    route: Route,
    is_shared: bool,
    waits: int,
) -> None:
    """A 429 for one org's request does not stop the calls of others on the same route."""
    other_org = StoredRuns.of(connections, register())
    others = Gate(other_org, other_org.claimed())
    gate.set_persona().back_off(route, 60.0, is_shared=is_shared)

    def stop() -> None:
        raise CancelRequested()

    others.meanwhile = stop  # the pause outlasts the test
    with pytest.raises(CancelRequested) if waits else nullcontext():
        others.set_persona().admit(route, 10, RetryDeadline(has_next=False))

    assert waits == len(others.waits) == len(others.told)


@pytest.mark.parametrize(
    ("has_next", "most"), [(True, OTHER_ROUTE_SECONDS), (False, LAST_ROUTE_SECONDS)]
)
def test_a_pause_that_others_renew_is_waited_for_no_longer(
    gate: Gate, route: Route, monkeypatch: pytest.MonkeyPatch, has_next: bool, most: float
) -> None:
    """A run that was never refused itself, since others always were before it."""
    monkeypatch.setattr(retry_deadline, "monotonic", lambda: sum(gate.waits))
    others = RouteLimits(gate.stored.connections)
    gate.meanwhile = lambda: others.pause(route, None, 3.0)
    gate.meanwhile()

    with pytest.raises(ProviderError) as refused:
        gate.set_persona().admit(route, 10, RetryDeadline(has_next=has_next))

    assert "provider.rate_limited" == refused.value.code
    assert most - 2 * MAX_PAUSE_SECONDS < sum(gate.waits) <= most


def test_a_long_wait_is_said_each_time(gate: Gate, route: Route) -> None:
    """A client hears of a run that waits at least about every 30 s."""
    admission = gate.set_persona()

    for _ in range(3):
        admission.back_off(route, 30, is_shared=True)

    assert 3 == len(gate.told)


def test_what_does_not_fit_into_the_budget_is_refused(gate: Gate, route: Route) -> None:
    """The refusal has the sum that the call would have reached."""
    admission = gate.set_persona(max_cost_usd=Decimal("1.5"))
    admission.reserve(route, WORST)
    admission.add_usage(route, WORST)

    with pytest.raises(LimitExceeded, match="cost to 2 USD") as refused:
        admission.reserve(route, WORST)

    assert ("budget.exhausted", False) == (refused.value.code, refused.value.retryable)
    assert [] == gate.waits


@pytest.mark.parametrize(
    ("shortest", "whole", "kept"),
    [(10_000, 100_000, "0.1"), (10_000, 500_000, "0.15"), (400_000, 500_000, "0.4")],
)
def test_money_for_the_last_call_is_kept(
    gate: Gate, stored: StoredRuns, route: Route, shortest: int, whole: int, kept: str
) -> None:
    """What the whole conversation costs, at most a tenth of the limit, at least the shortest."""
    admission = gate.set_persona(max_cost_usd_per_month=Decimal("1.5"))
    plan = Plan(
        call=QUARTER, shortest=Usage(input_tokens=shortest), whole=Usage(input_tokens=whole)
    )
    admission.reserve(route, QUARTER, plan)
    admission.add_usage(route, QUARTER)
    admission.settle()

    with stored.connections.reading() as sql:
        [held] = sql.scalars(
            select(reservations.c.held_usd).where(reservations.c.run_id == gate.claim.run_id)
        )
    assert Decimal("0.25") + Decimal(kept) == held


def test_a_refusal_says_what_could_be_paid(gate: Gate, route: Route) -> None:
    """A call of this and the last call after it reach the limit exactly."""
    admission = gate.set_persona(max_cost_usd=Decimal("1.4"))
    last = Usage(input_tokens=50_000)
    admission.add_usage(route, WORST)

    def reserve(output_tokens: int) -> None:
        call = Usage(input_tokens=150_000, output_tokens=output_tokens)
        admission.reserve(route, call, Plan(call=call, shortest=last, whole=last))

    with pytest.raises(LimitExceeded) as refused:
        reserve(150_000)  # 0.45 USD

    assert Decimal("0.35") == refused.value.affordable_usd
    reserve(100_000)
    with pytest.raises(LimitExceeded):
        reserve(100_001)


def test_only_a_call_that_is_not_made_exhausts_a_budget(gate: Gate) -> None:
    """A call with less output leaves the budget as it is; one that is given up exhausts it."""
    admission = gate.set_persona()
    gate.limit_org("0.01")
    step = request("?", max_output_tokens=10_000)

    class Verbose(ScriptedProvider):
        def worst_case(self, request: ModelRequest) -> Usage:
            return Usage(output_tokens=request.max_output_tokens or 0)

    smaller = affordable.reserve(chain_of(Verbose()), step, admission, None)
    assert 4999 == smaller.max_output_tokens
    assert not gate.is_org_exhausted()
    gate.limit_org("0.0005")
    with pytest.raises(LimitExceeded):
        affordable.reserve(chain_of(Verbose()), step, admission, None)

    assert gate.is_org_exhausted()


def test_an_agents_own_call_that_is_refused_exhausts_a_budget(gate: Gate) -> None:
    """Nothing is made instead of it; nor is anything after a cost that is over the budget."""
    admission = gate.set_persona()
    gate.limit_org("1")
    admission.is_limited = True

    with pytest.raises(LimitExceeded):
        admission.reserve_usd(Decimal(2))
    assert gate.is_org_exhausted()
    gate.forget_exhaustion()
    admission.add_reported(RouteCost("agent:a", "m", WORST, Decimal(2)), "a")
    with pytest.raises(LimitExceeded):
        admission.reserve_spent()

    assert gate.is_org_exhausted()


def test_what_other_runs_hold_is_waited_for(stored: StoredRuns, gate: Gate, route: Route) -> None:
    """A run waits until others have used less than they reserved."""
    other = Gate(stored, stored.claimed())
    persona: Any = replace(
        personas.builtin()["plain@1"], key=f"p-{new_id()}", max_cost_usd_per_month=Decimal("1.5")
    )
    for each in (gate, other):
        each.admission.set_persona(persona)
    other.admission.reserve(route, WORST)
    other.admission.add_usage(route, QUARTER)
    gate.meanwhile = other.admission.settle

    gate.admission.reserve(route, WORST)

    assert ["budget"] == [event.reason for event in gate.told]
    assert 1 == len(gate.waits)


def test_what_a_lost_worker_held_shrinks_to_what_was_used(
    stored: StoredRuns, gate: Gate, route: Route
) -> None:
    """It was lost between its call and the settlement; the next one may be days away."""
    limits = {"max_cost_usd_per_month": Decimal("1.5")}
    gate.set_persona(**limits).reserve(route, WORST)
    assert Decimal(1) == held(stored, gate.claim)
    stored.set(gate.claim.run_id, state="queued", resume_reason="worker_lost")
    again = stored.held(gate.claim.run_id)

    admission = Gate(stored, again).set_persona(**limits)
    admission.add_usage(route, QUARTER)
    admission.take_over()

    assert Decimal("0.25") == held(stored, again)


def held(stored: StoredRuns, claim: Claim) -> Decimal | None:
    with stored.connections.reading() as sql:
        return sql.scalar(
            select(reservations.c.held_usd).where(reservations.c.run_id == claim.run_id)
        )


def test_the_budget_of_another_key_limits_nobody_else(stored: StoredRuns) -> None:
    """Another key's budget does not limit a run, but a budget of the whole org does."""
    mine, others = new_id(), new_id()
    by_key = replace(stored, actor=replace(stored.actor, api_key_id=mine))

    def limit(scope: str) -> tuple[bool, bool]:
        with stored.connections.transaction() as tx:
            one = Decimal(1)
            budget_limits.set_(
                tx, stored.actor.org_id, scope, max_cost_usd=one, max_cost_usd_per_month=one
            )
        return by_key.claimed().is_limited, stored.claimed().is_limited

    assert (False, False) == limit(f"api_key:{others}")
    assert (True, False) == limit(f"api_key:{mine}")
    assert (True, True) == limit("org")


def test_a_limit_that_is_gone_refuses_no_route_without_prices(
    stored: StoredRuns, gate: Gate, route: Route
) -> None:
    """A run that was claimed under it continues without."""
    gate.admission.is_limited = True

    gate.set_persona().reserve(replace(route, prices=None), WORST)

    assert None is held(stored, gate.claim)


def test_credits_refuse_no_model_of_the_org_without_prices(
    stored: StoredRuns, gate: Gate, route: Route
) -> None:
    """Credits pay for server routes alone, whose prices must be known."""
    with stored.connections.transaction() as tx:
        credits.open_prepaid(tx, gate.claim.org_id, 0)
    admission = gate.set_persona()

    admission.reserve(replace(route, prices=None, is_of_org=True), WORST)
    with pytest.raises(RunFailure, match="has no known prices"):
        admission.reserve(replace(route, prices=None), WORST)


def test_a_route_without_prices_is_refused_under_a_budget(gate: Gate, route: Route) -> None:
    """A route without prices is refused under a budget, since its cost would be unknown."""
    admission = gate.set_persona(max_cost_usd=Decimal(100))

    with pytest.raises(RunFailure, match="has no known prices") as refused:
        admission.reserve(replace(route, prices=None), WORST)

    assert "budget.exhausted" == refused.value.code
