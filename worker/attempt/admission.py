"""The admission of model calls: a route's limits, and the budgets of its run."""

import logging
import random
import time
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import TypeVar

from arkloop.shared import metrics
from arkloop.shared.billing import budgets
from arkloop.shared.billing.budget_limits import Limits
from arkloop.shared.billing.budgets import Refused
from arkloop.shared.catalog import model_routes
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.claim import Claim
from arkloop.shared.events import types
from arkloop.shared.events.types import Event, RouteCost
from arkloop.shared.events.usage import TOKEN_FIELDS, Usage
from arkloop.shared.runs.transitions import Totals
from arkloop.shared.storage.connections import Transaction
from arkloop.worker.contract.context import Plan
from arkloop.worker.contract.outcomes import LimitExceeded, ProviderError, RunFailure
from arkloop.worker.contract.retry_deadline import RetryDeadline
from arkloop.worker.process.route_limits import RouteLimits, with_jitter

log = logging.getLogger(__name__)

#: How long a run waits for money of its budget that other runs have reserved.
MAX_BUDGET_WAIT_SECONDS = 60.0
BUDGET_PAUSE_SECONDS = 0.25
#: The part of a limit that is set aside for the last call, unless the whole conversation needs less
#: or the shortest one needs more.
LAST_CALL_SHARE = Decimal("0.1")
#: How often a run that keeps waiting for the same reason emits `run.throttled` again.
REPEAT_SECONDS = 30.0

T = TypeVar("T")
#: Make a change of the run in a transaction of its own, as its claim allows.
Write = Callable[[Callable[[Transaction], T]], T]


class Admission:
    """The `context.Admission` of one attempt, with its `totals`.

    `emit` and `wait` are the run's, and raise what stops it.
    """

    def __init__(
        self,
        claim: Claim,
        limits: RouteLimits,
        *,
        write: Write[None],
        emit: Callable[[Event], object],
        wait: Callable[[float], None],
    ) -> None:
        """Start without a persona: `set_persona` must be called before the first call."""
        self.totals = Totals()
        self.last_usage = Usage()
        self._claim = claim
        self._route_limits = limits
        self._write = write
        self._emit = emit
        self._wait = wait
        self._persona: Persona
        self._has_reservation = False
        self._refused: Refused | None = None  # the newest one of a model call
        self._keep_usd: Decimal | None = None  # for the last call; None: as earlier attempts
        self._keep_is_own = False  # it is a call on a route of the org
        self._admitted_tokens = 0  # of the current call
        self._last_throttle_reason: tuple[str, str] | None = None
        self._last_throttle_at = 0.0
        self.is_limited = claim.is_limited

    def set_persona(self, persona: Persona) -> None:
        """Apply the persona's own budgets, too."""
        self._persona = persona
        own = (persona.max_cost_usd, persona.max_cost_usd_per_month)
        self.is_limited = self._claim.is_limited or any(limit is not None for limit in own)

    def wait_after_refusals(self, route: Route, most_seconds: float) -> None:
        """Wait, visibly, if the route's vendor has refused the org's last runs for their size."""
        with self._route_limits.refusals.waiting(route.id, self._claim.org_id) as seconds:
            if (seconds := min(seconds, most_seconds)) > 0:
                self._throttle(route.id, "provider", seconds)

    def note_refusal(self, route: Route) -> None:
        """Count that the route's vendor refuses what can never fit into a minute's tokens."""
        self._route_limits.refusals.add(route.id, self._claim.org_id)

    def note_success(self, route: Route) -> None:
        """Forget the refusals of the org's earlier runs on the route."""
        self._route_limits.refusals.clear(route.id, self._claim.org_id)

    def admit(self, route: Route, tokens: int, deadline: RetryDeadline) -> None:
        while refused := self._route_limits.wait_for(route, self._claim.org_id, tokens):
            reason, seconds = refused
            if reason == "provider" and not deadline.allows(seconds):
                raise ProviderError(
                    "rate_limited", "Gave up after repeated HTTP 429 responses from the provider."
                )
            self._throttle(route.id, reason, seconds)
        self._admitted_tokens = tokens

    def pause_route(self, route: Route, seconds: float, *, is_shared: bool) -> None:
        org_id = None if is_shared else self._claim.org_id
        self._route_limits.pause(route, org_id, seconds)

    def back_off(self, route: Route, seconds: float, *, is_shared: bool) -> None:
        self.pause_route(route, seconds, is_shared=is_shared)
        self._throttle(route.id, "provider", with_jitter(seconds))

    def wait_for_memory(self, seconds: float) -> None:
        """Wait, visibly, for the memory that other runs take."""
        self._throttle(self._claim.route_id, "memory", seconds)

    def add_usage(self, route: Route, usage: Usage) -> Event:
        self._last_throttle_reason = None
        # What it used beyond the estimate counts against the route's limits, too.
        self._route_limits.count_output(
            route, self._admitted_tokens, usage.input_tokens + usage.output_tokens
        )
        self.last_usage = usage
        part = RouteCost(route.id, route.model, usage, route.cost(usage))
        return self._add(part, route.group)

    def cost(self) -> Event:
        return types.RunCost(self.totals.usage, self.totals.cost_usd, self.totals.routes)

    def reserve(self, route: Route, worst_case: Usage, plan: Plan | None = None) -> None:
        try:
            self._reserve_by(lambda tx: self._reserve(tx, route, worst_case, plan), route.id)
        except Refused as refused:
            self._refused = refused
            raise self._exhausted(refused, _at_most(route, worst_case)) from refused

    def note_exhausted(self) -> None:
        if self._refused is not None:
            self._note(self._refused)

    def add_reported(self, part: RouteCost, group: str) -> Event:
        """Count a model call that a custom agent made itself, in metrics under the `group`."""
        self.last_usage = part.usage
        return self._add(part, group)

    def _add(self, part: RouteCost, group: str) -> Event:
        for kind in TOKEN_FIELDS:
            metrics.MODEL_TOKENS.add(getattr(part.usage, kind), group, kind)
        metrics.MODEL_COST.add(float(part.cost_usd), group)
        self.totals = self.totals.plus(part)
        return self.cost()

    def check_unpriced(self, model: str) -> None:
        """Check that no limit needs the cost of a call that a custom agent made itself, and whose
        price is not known.

        Raises:
            RunFailure: `budget.exhausted`: a budget needs it, or prepaid credits pay for it.
        """
        if self.is_limited:
            self._write(lambda tx: self._check_unpriced(tx, model))

    def _check_unpriced(self, tx: Transaction, model: str) -> None:
        limits = budgets.limits(tx.sql, self._claim, self._persona)
        pays_credits = limits.is_prepaid and not model_routes.is_of_org(self._claim.route_id)
        if limits.has_budget or pays_credits:
            raise RunFailure(
                "budget.exhausted",
                f"The agent reported a call of {model!r}, whose price is not known; it must"
                " report the cost itself under a budget or prepaid credits.",
            )

    def reserve_usd(self, most: Decimal) -> None:
        """Reserve the cost so far and `most` for the next call that a custom agent makes itself.

        What the run has cost is counted in any case.

        Raises:
            LimitExceeded: `budget.exhausted`.
        """
        if not self.is_limited:
            return
        try:
            self._reserve_by(lambda tx: self._reserve_usd(tx, most), self._claim.route_id)
        except Refused as refused:
            self._note(refused)
            self.take_over()
            raise self._exhausted(refused, most) from refused

    def reserve_spent(self) -> None:
        """Reserve what the run has cost so far, also beside what others have reserved: they may use
        less.

        Raises:
            LimitExceeded: `budget.exhausted`: by what runs have cost.
        """
        if not self.is_limited:
            return
        try:
            self._write(lambda tx: self._reserve_usd(tx, Decimal(0)))
        except Refused as refused:
            self.take_over()
            if not refused.others_reserved:
                self._note(refused)
                raise self._exhausted(refused, Decimal(0)) from refused

    def _reserve_usd(self, tx: Transaction, most: Decimal) -> None:
        limits = budgets.limits(tx.sql, self._claim, self._persona)
        self._has_reservation = limits.needs_reservation
        is_of_org = model_routes.is_of_org(self._claim.route_id)
        budgets.reserve(
            *(tx, self._claim, limits, self.totals.cost_usd, most),
            own_usd=self.totals.own_usd,
            on_own_route=is_of_org,
        )

    def _reserve_by(self, change: Callable[[Transaction], None], route_id: str) -> None:
        """Reserve, after waiting for what others have reserved. Raises: Refused."""
        deadline = time.monotonic() + MAX_BUDGET_WAIT_SECONDS
        while True:
            try:
                self._write(change)
                return
            except Refused as refused:
                if not refused.others_reserved or time.monotonic() > deadline:
                    raise
            self._throttle(route_id, "budget", BUDGET_PAUSE_SECONDS * random.uniform(0.5, 1.5))

    def _note(self, refused: Refused) -> None:
        """Note that the call is not made, nor one that costs less instead."""
        log.warning("a model call was refused: %s", refused.logged())
        self._write(partial(budgets.note_refusal, org_id=self._claim.org_id, refused=refused))

    def _exhausted(self, refused: Refused, most: Decimal) -> LimitExceeded:
        """Return what ends the run, unless a call that costs less than `most` is made instead."""
        return LimitExceeded(
            "budget.exhausted",
            refused.shown(self._claim),
            retryable=refused.others_reserved,
            affordable_usd=most - refused.excess_usd,
        )

    def settle(self) -> None:
        if self._has_reservation:
            self._write(self._settle)

    def take_over(self, *, keep_is_own: bool = False, is_last: bool = False) -> None:
        """Reserve what earlier attempts have cost, and what they have kept for the last call, under
        the current limits. `keep_is_own`: it is a call on a route of the org. `is_last`: it is the
        next one, and all that is still reserved may be for it.

        A lost worker may have left more reserved, and a limit may be newer than its claim.
        """
        self._keep_is_own = keep_is_own
        if is_last:
            self._keep_usd = Decimal("Infinity")
        if self.is_limited:
            self._write(self._take_over)

    def _take_over(self, tx: Transaction) -> None:
        limits = budgets.limits(tx.sql, self._claim, self._persona)
        self._has_reservation = limits.needs_reservation
        if limits.needs_reservation:
            self._settle(tx, limits)

    def _settle(self, tx: Transaction, limits: Limits | None = None) -> None:
        totals = self.totals
        self._keep_usd = budgets.settle(
            tx,
            self._claim,
            totals.cost_usd,
            limits,
            own_usd=totals.own_usd,
            keep_usd=self._keep_usd,
            keep_is_own=self._keep_is_own,
        )

    def _reserve(self, tx: Transaction, route: Route, worst_case: Usage, plan: Plan | None) -> None:
        # Read anew for each call: a limit that is set or lowered counts from the next one on.
        limits = budgets.limits(tx.sql, self._claim, self._persona)
        if not limits.can_pay(route):
            raise RunFailure(  # nothing is exhausted, and no last call is possible
                "budget.exhausted",
                f"Route {route.id!r} has no known prices; set `prices` on the model to"
                " use it under a budget or prepaid credits.",
            )
        self._has_reservation = limits.needs_reservation
        most = _at_most(route, worst_case)
        keep = _for_last_call(limits, route, plan) if plan else Decimal(0)
        if plan:
            most = max(most, _at_most(route, plan.call) + keep)
        budgets.reserve(
            tx,
            self._claim,
            limits,
            self.totals.cost_usd,
            most,
            own_usd=self.totals.own_usd,
            on_own_route=route.is_of_org,
            keep_usd=keep,
        )
        # Should this not be committed, `settle` gives back what is not there. The last call has no
        # plan, and its reserve stays for another try. A run that fails at its limit has one for
        # summaries alone, and needs no reserve after them.
        if plan or self._persona.on_limit == "fail":
            self._keep_usd = keep
        self._keep_is_own = route.is_of_org

    def _throttle(self, route_id: str, reason: str, seconds: float) -> None:
        now = time.monotonic()
        if (
            self._last_throttle_reason != (route_id, reason)
            or now + seconds - self._last_throttle_at > REPEAT_SECONDS
        ):
            self._last_throttle_reason, self._last_throttle_at = (route_id, reason), now
            self._emit(types.RunThrottled(route_id, reason, round(seconds, 3)))
        self._wait(seconds)


def _at_most(route: Route, usage: Usage) -> Decimal:
    return route.prices.at_most(usage) if route.prices else Decimal(0)


def _for_last_call(limits: Limits, route: Route, plan: Plan) -> Decimal:
    """Return the USD that are set aside for the run's last call."""
    whole = _at_most(route, plan.whole)
    if limits.lowest_usd is not None:
        whole = min(whole, limits.lowest_usd * LAST_CALL_SHARE)
    return max(whole, _at_most(route, plan.shortest))
