"""The amounts that each scope of a budget has spent and reserved in a month: rows of `spending`.

A scope is `org`, `api_key:<id>`, `end_user:<id>` or `persona:<key>` of an org, or `run:<id>`, a run
with its sub-runs, whatever the month. A row is made when its scope has a limit and is first
needed in a month; it begins with what has ended before it had the limit. From then on every run
that has a reservation adds to it. Rows are locked by org, scope and month, in this order.
"""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, and_, delete, func, select, update

from arkloop.shared.storage.arrays import plain_array
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.billing import budgets, spending

ORG = "org"
API_KEY_SCOPE = "api_key:"  # and the key's id
#: Of the limits that each end user of an org has, unless it has its own.
END_USERS = "end_user"
END_USER_SCOPE = "end_user:"  # and the end user's id
RUN_SCOPE = "run:"  # and the run's id
#: The month of all amounts of a run and its sub-runs: they share one limit however long they take.
_EVERY_MONTH = date(1970, 1, 1)

#: End users that one transaction counts anew: the runs of each are read.
RECOUNTED_AT_ONCE = 200
#: End users that one transaction marks as exhausted: each may have two deliveries to each of an
#: org's endpoints.
EXHAUSTED_AT_ONCE = 100

_MOVE = statement(__package__, "move_spending")
_NOW = statement(__package__, "spending_now")
_FORGET_RUNS = statement(__package__, "forget_runs")
_LOCK = statement(__package__, "lock_spending")
_LOCK_END_USERS = statement(__package__, "lock_end_users")
_LOCK_RECENT_END_USERS = statement(__package__, "lock_recent_end_users")
_RECOUNT_END_USERS = statement(__package__, "recount_end_users")
_EXHAUST_END_USERS = statement(__package__, "exhaust_end_users")


def api_key_scope(api_key_id: UUID) -> str:
    """Return the scope of a key's budget."""
    return f"{API_KEY_SCOPE}{api_key_id}"


def end_user_scope(end_user_id: str) -> str:
    """Return the scope of an end user's budget."""
    return f"{END_USER_SCOPE}{end_user_id}"


def persona_scope(key: str) -> str:
    """Return the scope of a persona's budget, whatever its version."""
    return f"persona:{key}"


def run_scope(run_id: UUID) -> str:
    """Return the scope of a run together with its sub-runs."""
    return f"{RUN_SCOPE}{run_id}"


def place(scope: str, month: date) -> tuple[str, date]:
    """Return the scope and month of the row that has what this scope spends in this month."""
    return scope, _EVERY_MONTH if scope.startswith(RUN_SCOPE) else month


def move(
    sql: Connection, org_id: UUID, changes: Mapping[tuple[str, date], tuple[Decimal, Decimal]]
) -> Sequence[Row[Any]]:
    """Add USD (spent, held) to the rows of (scope, month), and keep their locks.

    Returns `scope`, `month`, `spent_usd` and `held_usd` as they are then.
    """
    if not changes:
        return []
    return sql.exec_driver_sql(
        _MOVE,
        {
            "org_id": org_id,
            "scopes": [scope for scope, _ in changes],
            "months": [month for _, month in changes],
            "spents": [spent for spent, _ in changes.values()],
            "helds": [held for _, held in changes.values()],
        },
    ).all()


def now(
    sql: Connection, org_id: UUID, scopes: Sequence[str], *, are_limited: bool = True
) -> Sequence[Row[Any]]:
    """Return `month`, `spent_usd` and `held_usd` of each scope, this month; reads without a lock.

    Without a limit a scope's row is not kept up to date: what has ended is summed up instead.
    """
    if not scopes:
        return []
    return sql.exec_driver_sql(
        _NOW, {"org_id": org_id, "scopes": list(scopes), "are_limited": are_limited}
    ).all()


def recount(sql: Connection, org_id: UUID, scope: str) -> None:
    """Set what is spent this month to what has ended in it.

    While a scope has no limit, runs end that do not add to its row.
    """
    [this_month] = now(sql, org_id, [scope])
    # Locked before it is read: the next statement sees whatever ended before.
    move(sql, org_id, {(scope, this_month.month): (Decimal(0), Decimal(0))})
    [ended] = now(sql, org_id, [scope], are_limited=False)
    sql.execute(
        update(spending)
        .where(
            spending.c.org_id == org_id,
            spending.c.scope == scope,
            spending.c.month == this_month.month,
        )
        .values(spent_usd=ended.spent_usd)
    )


def recount_end_users(sql: Connection, org_id: UUID, since: datetime | None = None) -> None:
    """Do what `recount` does for each end user that has a row this month, and runs that have ended
    `since` then (None: this month).
    """
    # Locked by a statement of its own, in the one order, as there.
    values = {"org_id": org_id, "since": since}
    _recount_locked(
        sql, org_id, sql.exec_driver_sql(_LOCK_RECENT_END_USERS, values).scalars().all()
    )


def recount_some_end_users(sql: Connection, org_id: UUID, after: str) -> str | None:
    """Do what `recount` does for a batch of end users, whose scopes come after this one.

    Returns the last scope of the batch; None if it is the last batch.
    """
    values = {"org_id": org_id, "after": after, "most": RECOUNTED_AT_ONCE}
    scopes = sql.exec_driver_sql(_LOCK_END_USERS, values).scalars().all()
    _recount_locked(sql, org_id, scopes)
    return scopes[-1] if len(scopes) == RECOUNTED_AT_ONCE else None


def _recount_locked(sql: Connection, org_id: UUID, scopes: Sequence[str]) -> None:
    if scopes:
        values = {"org_id": org_id, "scopes": list(scopes)}
        sql.exec_driver_sql(_RECOUNT_END_USERS, values)


def mark_exhausted(sql: Connection, org_id: UUID, scope: str) -> None:
    """Note that what is left of this month does not suffice, as where a model call was refused."""
    [this_month] = now(sql, org_id, [scope])
    move(sql, org_id, {(scope, this_month.month): (Decimal(0), Decimal(0))})
    sql.execute(
        update(spending)
        .where(
            spending.c.org_id == org_id,
            spending.c.scope == scope,
            spending.c.month == this_month.month,
        )
        .values(exhausted_at=func.now())
    )


def mark_end_users_exhausted(
    sql: Connection, org_id: UUID, after: str = END_USER_SCOPE
) -> str | None:
    """Do what `mark_exhausted` does for a batch of end users, whose scopes come after this one.

    They have spent the limit of each one, which was not noted of this limit. Returns the last scope
    of the batch; None if it is the last batch, or if the limit is being changed.
    """
    # By a statement of its own: the next one, and the trigger that reports the limit, then read the
    # row that this one keeps until the commit. A change of an end user's own limit locks it, too.
    each_one = and_(budgets.c.org_id == org_id, budgets.c.scope == END_USERS)
    kept = select(budgets.c.scope).where(each_one).with_for_update(read=True, skip_locked=True)
    if sql.execute(kept).first() is None:
        return None
    values = {"org_id": org_id, "after": after, "most": EXHAUSTED_AT_ONCE}
    scopes = sql.exec_driver_sql(_EXHAUST_END_USERS, values).scalars().all()
    return max(scopes) if len(scopes) == EXHAUSTED_AT_ONCE else None


def forget_runs(sql: Connection, run_ids: Sequence[tuple[UUID, UUID]]) -> None:
    """Delete the rows of these runs, (org, run), with their sub-runs."""
    if run_ids:
        parameters = {
            "orgs": plain_array(org_id for org_id, _ in run_ids),
            "scopes": plain_array(run_scope(run_id) for _, run_id in run_ids),
            "month": _EVERY_MONTH,
        }
        sql.exec_driver_sql(_FORGET_RUNS, parameters)


def forget_end_user(sql: Connection, org_id: UUID, end_user_id: str) -> None:
    """Delete the rows of an end user, without those in which an active run has something reserved:
    it could not give that back, and never end.
    """
    is_theirs = spending.c.scope == end_user_scope(end_user_id)
    sql.execute(
        delete(spending).where(
            spending.c.org_id == org_id, is_theirs, spending.c.held_usd == Decimal(0)
        )
    )


def lock(sql: Connection, places: Sequence[tuple[UUID, str, date]]) -> None:
    """Lock these rows, (org, scope, month), in the one order."""
    orgs, scopes, months = zip(*places, strict=True) if places else ((), (), ())
    sql.exec_driver_sql(_LOCK, {"orgs": list(orgs), "scopes": list(scopes), "months": list(months)})
