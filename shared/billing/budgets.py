"""Runs within their budgets: money is reserved before each model call, and never twice.

A run holds its cost so far and the worst case of its next call. What is spent and what is held
of a month never exceed its limit together, whatever happens at the same time: the row of `spending`
is the judge, and its lock is kept from the check to the commit.

    reserve ──▶ (model call) ──▶ settle ──▶ … ──▶ release, in the transaction that ends the run

Locks are taken in this order, so that nobody waits in a circle: the run, its reservation, rows of
`spending` by org, scope and month, the org's `credit_balances`. Who ends several runs in one
transaction calls `lock` first.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, delete, select, update

from arkloop.shared.billing import budget_limits, credits, spending
from arkloop.shared.billing.budget_limits import CREDITS, Limits
from arkloop.shared.billing.credits import CREDITS_PER_USD, credits_of
from arkloop.shared.billing.spending import ORG
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.claim import Claim
from arkloop.shared.errors import LeaseLost
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.billing import credit_balances, reservations
from arkloop.shared.usd import MAX_COST_USD

RUN = "run"
NOTHING = Decimal(0)

_LOCK_RESERVATION = statement(__package__, "lock_reservation")
_SETTLE_CREDITS = statement(__package__, "settle_credits")


class Refused(Exception):
    """The call must not be made: its worst case does not fit. `str()` of it is for people of the
    org, and `shown` for all who read the run.

    `scope` is `run`, `org`, `api_key:<id>`, `end_user:<id>`, `persona:<key>`, `run:<id>` (a run
    and its sub-runs) or `credits`; `limit` and `needed` are in USD, or credits; of a `run` the
    limit is that of the scope `set_by`. With `others_reserved` it would fit if the model calls that
    other runs are making now turned out to cost nothing: waiting may help.
    """

    def __init__(
        self,
        scope: str,
        *,
        limit: Decimal | int,
        needed: Decimal | int,
        others_reserved: bool = False,
        set_by: str = ORG,
    ) -> None:
        super().__init__(_sentence(scope, set_by, limit, needed))
        self.scope = scope
        self.set_by = set_by
        self.limit = limit
        self.needed = needed
        self.others_reserved = others_reserved

    def shown(self, claim: Claim) -> str:
        """Return the text for the events of the run, which its end user reads, if it has one: the
        amounts that the org allows, and the ids of its keys and personas, are left out then.
        """
        if claim.end_user_id is None:
            return str(self)
        if self.scope == CREDITS:
            return "The run may need more credits than are left, including its next model call."
        return f"The next model call may exceed the budget of {_of(self.scope, self.set_by, '')}."

    def logged(self) -> str:
        """Return the text for the log: the id of an end user may be a name."""
        kind, _, name = (self.set_by if self.scope == RUN else self.scope).partition(":")
        text = str(self)
        return text.replace(f"the end user {name}", "an end user") if kind == "end_user" else text

    @property
    def excess_usd(self) -> Decimal:
        """The USD by which the call is too expensive."""
        excess = Decimal(self.needed - self.limit)
        return excess / CREDITS_PER_USD if self.scope == CREDITS else excess


def _sentence(scope: str, set_by: str, limit: Decimal | int, needed: Decimal | int) -> str:
    if scope == CREDITS:
        return f"The run may need {needed} credits including its next model call; {limit} are left."
    name = (set_by if scope == RUN else scope).partition(":")[2]
    return (
        f"The next model call may bring the cost to {Decimal(needed).normalize():f} USD;"
        f" the budget of {_of(scope, set_by, f' {name}')} is {Decimal(limit).normalize():f} USD."
    )


def _of(scope: str, set_by: str, name: str) -> str:
    """Return the words for the owner of a budget, with this name of it."""
    kind = (set_by if scope == RUN else scope).partition(":")[0]
    whose = {ORG: "the org", "api_key": f"the API key{name}", "persona": f"the persona{name}"}
    whose["end_user"] = f"the end user{name}"
    whose["run"] = f"the run{name} with its sub-runs"
    if scope == RUN:
        return f"a run of {whose[kind]}"
    return whose[kind] if kind == "run" else f"{whose[kind]} in this month"


# ---- while a run executes ------------------------------------------------------------


def limits(sql: Connection, claim: Claim, persona: Persona) -> Limits:
    """Return the limits that apply to the claimed run now."""
    found = budget_limits.find(sql, claim.org_id, claim.api_key_id, persona, claim.end_user_id)
    own = sql.execute(
        select(reservations.c.run_id, reservations.c.caps).where(
            reservations.c.run_id == claim.run_id
        )
    ).one_or_none()
    caps = {} if own is None else own.caps or {}
    shared = budget_limits.of_tree(found, claim.run_id, persona, caps)
    return replace(found, monthly={**found.monthly, **shared}, has_reservation=own is not None)


def reserve(
    tx: Transaction,
    claim: Claim,
    limits: Limits,
    cost_so_far: Decimal,
    worst_case_usd: Decimal,
    *,
    own_usd: Decimal = NOTHING,
    on_own_route: bool = False,
    keep_usd: Decimal = NOTHING,
) -> None:
    """Hold the run's cost so far and the worst case of its next model call, in this month.

    `keep_usd` of that is for its last call: others do not wait for it.

    Credits are held for routes of the server alone: without `own_usd` of the cost so far, and not
    for a call `on_own_route`, which is never refused for lack of them. A call on a route of the
    server holds one at least, even if it is free: an org without credits has none of these routes.

    Raises:
        Refused: it does not fit. The transaction must be rolled back; what was held stays.
        LeaseLost
    """
    cost = min(cost_so_far, MAX_COST_USD)
    needed = min(cost + worst_case_usd, MAX_COST_USD)
    if limits.max_cost_usd is not None and needed > limits.max_cost_usd:
        raise Refused(RUN, limit=limits.max_cost_usd, needed=needed, set_by=limits.max_cost_scope)
    if not limits.needs_reservation:
        return
    reservation = _lock_reservation(tx.sql, claim)
    scopes = sorted(limits.monthly)
    rows = _move_reservation(tx.sql, reservation, reservation.this_month, scopes, needed)
    refused = [
        _refused(tx.sql, reservation, row, limits.monthly[row.scope], needed)
        for row in rows
        if row.scope in limits.monthly
        and (row.scope, row.month) == spending.place(row.scope, reservation.this_month)
        and row.spent_usd + row.held_usd > limits.monthly[row.scope]
    ]
    wanted = 0
    if limits.is_prepaid:
        servers = cost_so_far - own_usd + (NOTHING if on_own_route else worst_case_usd)
        wanted = max(credits_of(servers), 0 if on_own_route else 1)
    more = wanted - reservation.held_credits
    has = credit_balances.c
    if limits.is_prepaid and on_own_route:
        # The call needs none, whatever routes of the server have cost before.
        wanted = reservation.held_credits + _hold_free_credits(tx.sql, reservation, more)
    elif (wanted or more) and not tx.sql.execute(
        update(credit_balances)
        .where(has.org_id == reservation.org_id, has.held + more <= has.balance)
        .values(held=has.held + more)
    ).rowcount:
        refused.append(_refused_credits(tx.sql, reservation, wanted))
    if refused:
        # What waiting cannot cure comes first.
        raise min(refused, key=lambda one: one.others_reserved)
    _store_reservation(
        *(tx.sql, reservation, cost_so_far, own_usd),
        month=reservation.this_month,
        scopes=scopes,
        held_usd=needed,
        kept_usd=min(keep_usd, needed - cost),
        held_credits=wanted,
    )


def settle(
    tx: Transaction,
    claim: Claim,
    cost_so_far: Decimal,
    limits: Limits | None = None,
    *,
    own_usd: Decimal = NOTHING,
    keep_usd: Decimal | None = NOTHING,
    keep_is_own: bool = False,
) -> Decimal:
    """Reduce the run's reservation after a model call: to its cost, and `keep_usd` for its last
    (None: as much as before). Returns what of that is left.

    No credits are reserved for `own_usd` of the cost, which the org pays to its own provider, nor
    for the last call if `keep_is_own`.

    A call that cost more than its worst case increases the reservation, even beyond the limits.
    The reservation moves to `limits` if they are given, else it stays under those of `reserve`.

    Raises:
        LeaseLost
    """
    cost = min(cost_so_far, MAX_COST_USD)
    reservation = _lock_reservation(tx.sql, claim)
    scopes = reservation.scopes if limits is None else sorted(limits.monthly)
    is_prepaid = reservation.held_credits > 0 if limits is None else limits.is_prepaid
    keep_usd = reservation.kept_usd if keep_usd is None else keep_usd
    held_usd = max(cost, min(reservation.held_usd, cost + keep_usd))
    kept_usd = Decimal(held_usd - cost)  # less than `keep_usd` if the call took a part of it
    _move_reservation(tx.sql, reservation, reservation.month, scopes, held_usd)
    held_credits = reservation.held_credits
    if is_prepaid or held_credits:
        keep = NOTHING if keep_is_own else kept_usd
        wanted = credits_of(cost_so_far - own_usd + keep) if is_prepaid else 0
        held_credits += _hold_free_credits(tx.sql, reservation, wanted - held_credits)
    _store_reservation(
        *(tx.sql, reservation, cost_so_far, own_usd),
        scopes=list(scopes),
        held_usd=held_usd,
        kept_usd=kept_usd,
        held_credits=held_credits,
    )
    return kept_usd


def note_refusal(tx: Transaction, org_id: UUID, refused: Refused) -> None:
    """Note that a budget of the org is exhausted, in a transaction after that which was rolled
    back. Other limits, one that was changed since, and money that other runs hold for now, have no
    effect.
    """
    is_of_month = refused.scope == ORG or refused.scope.startswith(
        (spending.API_KEY_SCOPE, spending.END_USER_SCOPE)
    )
    if not is_of_month or refused.others_reserved:
        return
    # Else the limit that was set since would be reported as exhausted.
    if budget_limits.still_has(tx.sql, org_id, refused.scope, Decimal(refused.limit)):
        spending.mark_exhausted(tx.sql, org_id, refused.scope)


# ---- at its end ----------------------------------------------------------------------


def release(
    tx: Transaction, *, org_id: UUID, run_id: UUID, cost_usd: Decimal, own_usd: Decimal = NOTHING
) -> None:
    """Release the run's reservation, if any, and count and charge its cost; once, at its end.

    `own_usd` of the cost counts for budgets and is not charged: the org pays its own provider.
    It is taken off the whole cost, not off the most that a column holds: an org's own model reports
    what it likes, and routes of the server cost the same beside it.
    The caller has the run's row lock and ends it in the same transaction.
    """
    cost = min(cost_usd, MAX_COST_USD)
    charge = credits_of(cost_usd - own_usd)
    reservation = tx.sql.execute(
        delete(reservations).where(reservations.c.run_id == run_id).returning(*reservations.c)
    ).one_or_none()
    if reservation is None:
        credits.owe(tx.sql, org_id, run_id, charge)
        return
    spending.move(
        tx.sql,
        org_id,
        {
            spending.place(scope, reservation.month): (cost, -reservation.held_usd)
            for scope in reservation.scopes
        },
    )
    credits.pay(tx.sql, org_id, run_id, charge, held=reservation.held_credits)


def lock(tx: Transaction, run_ids: Sequence[UUID]) -> None:
    """Lock all that `release` will change for these runs, in the one order.

    For ends of several runs in one transaction; the runs' rows are locked already.
    """
    held = tx.sql.execute(
        select(reservations.c.org_id, reservations.c.scopes, reservations.c.month)
        .where(reservations.c.run_id.in_(run_ids))
        .order_by(reservations.c.run_id)
        .with_for_update()
    ).all()
    if not held:
        return
    places = [(row.org_id, *spending.place(s, row.month)) for row in held for s in row.scopes]
    spending.lock(tx.sql, places)
    credits.lock(tx.sql, [row.org_id for row in held])


# ---- pieces --------------------------------------------------------------------------


def _lock_reservation(sql: Connection, claim: Claim) -> Row[Any]:
    reservation = sql.exec_driver_sql(
        _LOCK_RESERVATION, {"run_id": claim.run_id, "fence": claim.fence}
    ).one_or_none()
    if reservation is None:
        raise LeaseLost()
    return reservation


def _move_reservation(
    sql: Connection, reservation: Row[Any], month: date, scopes: Sequence[str], held_usd: Decimal
) -> Sequence[Row[Any]]:
    """Take the reservation out of its rows and put it into others; returns all of them."""
    before, after = (
        [spending.place(scope, of) for scope in of_these]
        for of_these, of in ((reservation.scopes, reservation.month), (scopes, month))
    )
    changes = dict.fromkeys(before, -reservation.held_usd)
    for place in after:
        changes[place] = changes.get(place, Decimal(0)) + held_usd
    return spending.move(
        sql, reservation.org_id, {place: (Decimal(0), held) for place, held in changes.items()}
    )


def _hold_free_credits(sql: Connection, reservation: Row[Any], more: int) -> int:
    """Hold `more` credits (below 0: fewer) as far as these are free; returns the change."""
    parameters = {"org_id": reservation.org_id, "more": more}
    return int(sql.exec_driver_sql(_SETTLE_CREDITS, parameters).scalar_one()) if more else 0


def _store_reservation(
    sql: Connection, reservation: Row[Any], cost_so_far: Decimal, own_usd: Decimal, **values: Any
) -> None:
    """Store the values, the cost, and its part on routes of the server, as columns hold them."""
    values["cost_usd"] = min(cost_so_far, MAX_COST_USD)
    values["servers_usd"] = min(max(cost_so_far - own_usd, NOTHING), MAX_COST_USD)
    sql.execute(
        update(reservations).where(reservations.c.run_id == reservation.run_id).values(**values)
    )


def _refused(
    sql: Connection, reservation: Row[Any], row: Row[Any], limit: Decimal, needed: Decimal
) -> Refused:
    certain = sum(
        (
            _certain_usd(other)
            for other in _others(sql, reservation)
            if row.scope in other.scopes
            and (row.scope, row.month) == spending.place(row.scope, other.month)
        ),
        row.spent_usd + needed,
    )
    total = row.spent_usd + row.held_usd
    return Refused(row.scope, limit=limit, needed=total, others_reserved=certain <= limit)


def _refused_credits(sql: Connection, reservation: Row[Any], wanted: int) -> Refused:
    has = credits.balance(sql, reservation.org_id)
    balance = has.balance or 0
    certain = sum(_certain_credits(other) for other in _others(sql, reservation))
    return Refused(
        CREDITS,
        limit=balance - has.held + reservation.held_credits,
        needed=wanted,
        others_reserved=wanted + certain <= balance,
    )


def _certain_usd(other: Row[Any]) -> Decimal:
    """Return what the run will hold even if its current call is free."""
    return Decimal(min(other.cost_usd + other.kept_usd, other.held_usd))


def _certain_credits(other: Row[Any]) -> int:
    """Return the credits that the run will hold even if its current call is free, or fewer: a wait
    in vain is better than a wrong refusal.
    """
    servers_usd, held = other.servers_usd, int(other.held_credits)
    if not servers_usd and held >= credits_of(other.held_usd):
        # The previous release has not written it; own models have cost nothing.
        servers_usd = other.cost_usd
    return min(held, credits_of(servers_usd + _certain_usd(other) - other.cost_usd))


def _others(sql: Connection, reservation: Row[Any]) -> Sequence[Row[Any]]:
    """Return the reservations of the org's other runs."""
    return sql.execute(
        select(reservations).where(
            reservations.c.org_id == reservation.org_id, reservations.c.run_id != reservation.run_id
        )
    ).all()
