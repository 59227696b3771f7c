"""Credits of runs that call routes of the server and the org's own models, in any order."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from arkloop.shared.billing import credits
from arkloop.shared.catalog import personas
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.prices import Prices
from arkloop.shared.claim import Claim
from arkloop.shared.events.types import RunCompleted
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import new_id
from arkloop.shared.runs import endings
from arkloop.shared.runs.endings import Ending, Outcome
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.billing import reservations
from arkloop.worker.attempt.admission import Admission
from arkloop.worker.contract.context import Plan
from arkloop.worker.contract.outcomes import LimitExceeded
from arkloop.worker.process.route_limits import RouteLimits
from tests.clients import Register
from tests.shared.billing.money import Money
from tests.stored_runs import StoredRuns, numbered

GRANTED = 1_000
#: 1 credit for a thousand tokens.
SERVERS = Route(id="scripted", provider="scripted", model="s", prices=Prices(input=Decimal(1)))
OWN = replace(SERVERS, id=str(new_id()), is_of_org=True)

#: A model call, the last call that is planned after it, and what it reports: an own model what it
#: likes, and a route of the server hardly ever more than its worst case, by these tokens.
last = st.sampled_from([90_000, 0, 250_000])
beyond = st.sampled_from([0, 0, 1_200_000])
of_server = st.tuples(st.just(SERVERS), st.sampled_from([90_000, 1]), last, beyond)
reported = st.sampled_from([10**6, 0, 80_000, 10**12])
of_org = st.tuples(st.just(OWN), st.sampled_from([90_000, 0]), last, reported)
others = st.sampled_from(["lost", "lost", "end"])
steps = st.tuples(st.sampled_from([0, 0, 1]), st.one_of(of_server, of_org, of_org, others))


class Spender:
    """A run of an org that pays in advance, and its worker."""

    def __init__(self, money: Money) -> None:
        self.money = money
        self.claim = money.stored.claimed()
        self.admission = self._admitted(self.claim)
        self.is_over = False
        self.route = SERVERS  # that of the last call
        self.excess = 0  # the tokens by which calls on routes of the server exceeded worst cases
        self.paid = 0  # the credits that the balance had for it

    def _admitted(self, claim: Claim) -> Admission:
        def write(change: Any) -> None:
            with self.money.connections.transaction() as tx:
                change(tx)

        limits = RouteLimits(self.money.connections)
        admission = Admission(claim, limits, write=write, emit=lambda _: None, wait=self._give_up)
        admission.set_persona(personas.builtin()["plain@1"])
        return admission

    def _give_up(self, _seconds: float) -> None:
        raise LimitExceeded("budget.exhausted", "Others have reserved the rest.")

    @property
    def servers_usd(self) -> Decimal:
        return self.admission.totals.cost_usd - self.admission.totals.own_usd

    @property
    def bounded_usd(self) -> Decimal:
        """The cost on routes of the server without what exceeded the worst cases."""
        return self.servers_usd - SERVERS.cost(Usage(input_tokens=self.excess))

    def step(self, what: Any) -> None:
        if self.is_over:
            return
        if what == "end":
            self.end()
        elif what == "lost":
            self.lose()
        else:
            self.call(*what)

    def call(self, route: Route, call: int, last: int, used: int) -> None:
        """Make a model call, and reserve `last` tokens for the last one."""
        most, keep = Usage(input_tokens=call), Usage(input_tokens=last)
        try:
            self.admission.reserve(route, most, Plan(call=most, shortest=keep, whole=keep))
        except LimitExceeded:
            assert not route.is_of_org
            return
        self.route = route
        if not route.is_of_org:
            used += min(80_000, call)
            self.excess += max(used - call, 0)
        self.admission.add_usage(route, Usage(input_tokens=used))
        self.admission.settle()

    def lose(self) -> None:
        """Lose the worker; another one takes over what was recorded."""
        self.money.stored.set(self.claim.run_id, state="queued", resume_reason="worker_lost")
        again = self.money.stored.claim(self.claim.run_id)
        assert again is not None
        self.claim, used = again, self.admission.totals
        self.admission = self._admitted(again)
        self.admission.totals = used
        self.admission.take_over(keep_is_own=self.route.is_of_org)

    def end(self) -> None:
        used = self.admission.totals
        last = RunCompleted(None, used.usage, used.cost_usd, "stop")
        run_id, stored = self.claim.run_id, self.money.stored
        ending = Ending(
            claim=self.claim,
            state=RunState.COMPLETED,
            stored=numbered(stored.last_seq(run_id), last),
            totals=used,
            has_reservation=True,
        )
        with stored.connections.transaction() as tx:
            assert Outcome.ENDED == endings.end_with_reservation(tx, ending)
        self.is_over = True
        charged = {account: amount for account, _, amount in self.money.charged(run_id)}
        self.paid = charged.get("customer", 0)
        assert credits.credits_of(self.servers_usd) == sum(charged.values())
        assert credits.credits_of(self.bounded_usd) <= self.paid


@hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(happened=st.lists(steps, min_size=4, max_size=8))
def test_what_routes_of_the_server_cost_is_paid_from_the_balance(
    connections: Connections, register: Register, happened: list[Any]
) -> None:
    """It stays reserved meanwhile, whatever own models report; at the end only that is owed which
    exceeded worst cases. Calls on own models are never refused for lack of credits.
    """
    money = Money(StoredRuns.of(connections, register()))
    money.grant(GRANTED)
    spenders = [Spender(money), Spender(money)]

    for who, what in happened:
        spenders[who].step(what)
        for one in spenders:
            assert one.is_over or credits.credits_of(one.bounded_usd) <= _held(money, one)
        assert sum(_held(money, one) for one in spenders) == money.balance()[1]
    for one in spenders:
        one.step("end")

    assert (GRANTED - sum(one.paid for one in spenders), 0) == money.balance()


def _held(money: Money, spender: Spender) -> int:
    held = select(func.coalesce(func.sum(reservations.c.held_credits), 0))
    with money.connections.reading() as sql:
        return int(sql.scalar(held.where(reservations.c.run_id == spender.claim.run_id)) or 0)
