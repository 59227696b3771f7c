"""The limits on costs; those of an org, of its API keys and of its end users are kept here.

A persona's limits are part of it. All that apply to a run bind it: the lowest of one run, and
that of each month.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, Select, and_, case, delete, func, select
from sqlalchemy.dialects.postgresql import insert as upsert

from arkloop.shared.actors import Actor
from arkloop.shared.billing import credits, spending
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.errors import BudgetExhausted
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.billing import budgets

CREDITS = "credits"
#: Model calls end within seconds, and with each of them others' reservations shrink.
RETRY_AFTER_SECONDS = 5

_FIND = statement(__package__, "find_limits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits on one run's cost; by default there are none."""

    max_cost_usd: Decimal | None = None  # of the run: the lowest of those that are set
    max_cost_scope: str = spending.ORG  # whose that is
    account_usd: Decimal | None = None  # of any run: the lowest but for the persona's
    monthly: Mapping[str, Decimal] = field(default_factory=dict)  # by scope, USD
    is_prepaid: bool = False  # its org pays in advance, with credits
    has_reservation: bool = False  # the run has reserved something under limits of before

    @property
    def has_budget(self) -> bool:
        return self.max_cost_usd is not None or bool(self.monthly)

    @property
    def lowest_usd(self) -> Decimal | None:
        """The lowest of the limits in USD."""
        limits = [*self.monthly.values(), self.max_cost_usd]
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def needs_reservation(self) -> bool:
        """True if the run must reserve; such a run ends by `endings.end_with_reservation`."""
        return bool(self.monthly) or self.is_prepaid or self.has_reservation

    def can_pay(self, route: Route) -> bool:
        """Return whether calls on the route cost what is known, or nothing here pays for them."""
        pays = self.has_budget or (self.is_prepaid and not route.is_of_org)
        return route.prices is not None or not pays


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The limits of one scope, in USD (None: no limit), and what this month has cost it."""

    max_cost_usd: Decimal | None
    max_cost_usd_per_month: Decimal | None
    month: date
    spent_usd: Decimal
    held_usd: Decimal


def find(
    sql: Connection,
    org_id: UUID,
    api_key_id: UUID | None,
    persona: Persona,
    end_user_id: str | None,
) -> Limits:
    """Find the limits of a run with this persona, of the API key that creates it (None: no key) and
    of its end user (None: none).
    """
    scopes = [spending.ORG]
    if api_key_id is not None:
        scopes.append(spending.api_key_scope(api_key_id))
    if end_user_id is not None:
        scopes.append(spending.end_user_scope(end_user_id))
    limits, is_prepaid = _read(sql, org_id, scopes)
    account = min((limit for limit, _ in limits.values() if limit is not None), default=None)
    limits[spending.persona_scope(persona.key)] = (
        persona.max_cost_usd,
        persona.max_cost_usd_per_month,
    )
    of_run = ((limit, scope) for scope, (limit, _) in limits.items() if limit is not None)
    lowest = min(of_run, default=None)
    return Limits(
        max_cost_usd=lowest and lowest[0],
        max_cost_scope=lowest[1] if lowest else spending.ORG,
        account_usd=account,
        monthly={scope: limit for scope, (_, limit) in limits.items() if limit is not None},
        is_prepaid=is_prepaid,
    )


def of_tree(
    found: Limits, run_id: UUID, persona: Persona, caps: Mapping[str, str | None]
) -> Mapping[str, Decimal]:
    """Return the limits that a run shares with the runs of its tree, by scope.

    Its own limit also covers the sub-runs that it may start, and those of the runs above it cover
    this one. `caps` has the limits of their personas, by their ids; what the org, the key and the
    end user allow is the same for all of a tree.
    """
    shared: dict[str, Decimal] = {}
    if persona.delegates and found.max_cost_usd is not None:
        shared[spending.run_scope(run_id)] = found.max_cost_usd
    for above, cap in caps.items():
        limits = [found.account_usd, None if cap is None else Decimal(cap)]
        if (lowest := min((one for one in limits if one is not None), default=None)) is not None:
            shared[spending.run_scope(UUID(above))] = lowest
    return shared


def _read(
    sql: Connection, org_id: UUID, scopes: Sequence[str]
) -> tuple[dict[str, tuple[Decimal | None, Decimal | None]], bool]:
    """Return (of a run, of a month) by scope, and whether the org pays in advance.

    An end user has the limits of each one where it has none of its own.
    """
    wanted = [*scopes, spending.END_USERS]
    rows = sql.exec_driver_sql(_FIND, {"org_id": org_id, "scopes": wanted}).all()
    found = {row.scope: (row.max_cost_usd, row.max_cost_usd_per_month) for row in rows}
    each = found.get(spending.END_USERS, (None, None))
    limits = {scope: found.get(scope, (None, None)) for scope in scopes}
    for scope, (of_run, of_month) in limits.items():
        if scope.startswith(spending.END_USER_SCOPE):
            limits[scope] = (
                each[0] if of_run is None else of_run,
                each[1] if of_month is None else of_month,
            )
    return limits, any(row.is_prepaid for row in rows)


def check_open(
    sql: Connection,
    actor: Actor,
    persona: Persona,
    route: Route,
    end_user_id: str | None = None,
    *,
    agent: str | None = None,
) -> None:
    """Refuse the run, before it is created, if nothing is left for it.

    Credits pay for routes of the server alone, which a run of the org's agent workers never calls:
    `agent` is theirs (None: the service's own workers execute it).

    Reads without a lock: what decides is `budgets.reserve`.

    Raises:
        BudgetExhausted: details name the scope and what there is, for an end user the kind of the
            scope alone.
    """
    found = find(sql, actor.org_id, actor.api_key_id, persona, end_user_id)
    for row in spending.now(sql, actor.org_id, sorted(found.monthly)):
        limit = found.monthly[row.scope]
        if row.spent_usd + row.held_usd >= limit:
            raise _exhausted(
                actor,
                row.scope,
                limit_usd=float(limit),
                spent_usd=float(row.spent_usd),
                held_usd=float(row.held_usd),
            ).after(RETRY_AFTER_SECONDS if row.spent_usd < limit else None)
    if not found.is_prepaid or route.is_of_org or agent is not None:
        return
    has = credits.balance(sql, actor.org_id)
    if (has.balance or 0) - has.held <= 0:
        raise _exhausted(actor, CREDITS, balance=has.balance, held=has.held).after(
            RETRY_AFTER_SECONDS if has.balance else None
        )


def _exhausted(actor: Actor, scope: str, **amounts: float | None) -> BudgetExhausted:
    """Return the error for the actor; what the org allows and has spent is not for end users."""
    if actor.end_user_id is not None:
        return BudgetExhausted(scope=scope.partition(":")[0])
    return BudgetExhausted(scope=scope, **amounts)


def get(sql: Connection, org_id: UUID, scope: str) -> Budget:
    """Return the limits that apply to the scope, if there are any, and its month."""
    limits, _ = _read(sql, org_id, [scope])
    of_run, of_month = limits[scope]
    [month] = spending.now(sql, org_id, [scope], are_limited=of_month is not None)
    return Budget(
        max_cost_usd=of_run,
        max_cost_usd_per_month=of_month,
        month=month.month,
        spent_usd=month.spent_usd,
        held_usd=month.held_usd,
    )


def own(sql: Connection, org_id: UUID, scope: str) -> Row[Any] | None:
    """Return the limits that the scope itself has, without those that it inherits; None: none."""
    is_it = and_(budgets.c.org_id == org_id, budgets.c.scope == scope)
    return sql.execute(select(budgets).where(is_it)).one_or_none()


def set_(
    tx: Transaction,
    org_id: UUID,
    scope: str,
    *,
    max_cost_usd: Decimal | None,
    max_cost_usd_per_month: Decimal | None,
    recounted_since: datetime | None = None,
) -> None:
    """Set the limits of a scope, in USD; without any its budget is gone.

    They bind runs that are claimed from now on. What has ended this month counts, and is summed up
    where there was no monthly limit before; where that is all of a limit already, the budget is
    exhausted, since no run may come to spend more.

    For those of each end user, `end_user_limits` counts most of what has ended before, until
    `recounted_since`, and the sweep marks the end users as exhausted who are beyond a first batch.
    """
    limits = {"max_cost_usd": max_cost_usd, "max_cost_usd_per_month": max_cost_usd_per_month}
    keeps_count = _keeps_count(tx.sql, org_id, scope)
    is_new = max_cost_usd_per_month is not None and not keeps_count
    if max_cost_usd is None and max_cost_usd_per_month is None:
        tx.sql.execute(delete(budgets).where(budgets.c.org_id == org_id, budgets.c.scope == scope))
    else:
        stored = upsert(budgets).values(org_id=org_id, scope=scope, **limits)
        # A month that is over before its limit changes has had this one.
        is_same = budgets.c.max_cost_usd_per_month.is_not_distinct_from(
            stored.excluded.max_cost_usd_per_month
        )
        changed_at = case((is_same, budgets.c.updated_at), else_=func.now())
        tx.sql.execute(
            stored.on_conflict_do_update(
                index_elements=["org_id", "scope"], set_={**limits, "updated_at": changed_at}
            )
        )
    if scope == spending.END_USERS:
        if is_new:
            spending.recount_end_users(tx.sql, org_id, recounted_since)
        if max_cost_usd_per_month is not None:
            spending.mark_end_users_exhausted(tx.sql, org_id)
        return
    if is_new:
        spending.recount(tx.sql, org_id, scope)
    _note_exhausted(tx.sql, org_id, scope)


def still_has(sql: Connection, org_id: UUID, scope: str, usd_per_month: Decimal) -> bool:
    """Return whether this is the scope's monthly limit, and keep it as it is until the commit.

    It is not while it is being changed. Nothing waits for that: the caller may have locked rows of
    `spending`, for which the change may wait.
    """
    limited = _rows_of(org_id, scope).where(budgets.c.max_cost_usd_per_month.is_not(None))
    kept = limited.order_by(budgets.c.scope.desc()).with_for_update(read=True, skip_locked=True)
    row = sql.execute(kept).first()  # its own comes before that of each end user
    return row is not None and row.max_cost_usd_per_month == usd_per_month


def _rows_of(org_id: UUID, scope: str) -> Select[Any]:
    """Return the rows that may have the scope's limits: its own, and that of each end user."""
    scopes = [scope]
    if scope.startswith(spending.END_USER_SCOPE):
        scopes.append(spending.END_USERS)
    return select(budgets).where(budgets.c.org_id == org_id, budgets.c.scope.in_(scopes))


def _keeps_count(sql: Connection, org_id: UUID, scope: str) -> bool:
    """Return whether the scope has a monthly limit, so that what it spends is in its row.

    Keeps that limit as it is until the commit.
    """
    # Else the limit could be removed, and runs could end without being counted, in between; or it
    # could change before the trigger of `spending` reports that it is spent.
    sql.execute(_rows_of(org_id, scope).order_by(budgets.c.scope).with_for_update())
    limits, _ = _read(sql, org_id, [scope])
    return limits[scope][1] is not None


def _note_exhausted(sql: Connection, org_id: UUID, scope: str) -> None:
    """Note that the scope's limit of the month is spent, if it is."""
    limits, _ = _read(sql, org_id, [scope])
    if (limit := limits[scope][1]) is None:
        return
    [month] = spending.now(sql, org_id, [scope])
    if 0 < month.spent_usd >= limit:
        spending.mark_exhausted(sql, org_id, scope)


def forget_end_user(tx: Transaction, org_id: UUID, end_user_id: str) -> None:
    """Delete the limits of an end user."""
    is_theirs = budgets.c.scope == spending.end_user_scope(end_user_id)
    tx.sql.execute(delete(budgets).where(budgets.c.org_id == org_id, is_theirs))
