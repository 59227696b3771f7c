"""The order of a thread's runs: by their positions, since clocks that are set back give none.

A run that was cancelled before its turn, or whose time has not come, has no place in this order.
Questions about such a run are answered by the times at which runs were created.

Statements are built once: to build one costs more than to execute it.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    FromClause,
    RowMapping,
    Select,
    and_,
    bindparam,
    func,
    literal_column,
    or_,
    select,
    tuple_,
    union_all,
)

from arkloop.shared.events.types import RunWaitingForInput
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import FIRST_WAITING, IS_PENDING, runs

#: Runs behind another one among which the next are looked for: some milliseconds.
MOST_READ = 1_000

_OF_THREAD = runs.c.thread_id == bindparam("thread_id")


def _last_placed(*counts: ColumnElement[bool]) -> Select[Any]:
    """Select the last of these runs of the thread: those that wait for it come behind the others.

    Of each index one row is read, however many runs were cancelled before their turn.
    """
    last = [
        select(runs.c.id, runs.c.position)
        .where(_OF_THREAD, has_place, *counts)
        .order_by(runs.c.position.desc())
        .limit(1)
        .subquery()
        for has_place in (IS_PENDING, runs.c.position < FIRST_WAITING)
    ]
    both = union_all(*(select(one.c.id, one.c.position) for one in last)).subquery()
    return select(both.c.id).order_by(both.c.position.desc()).limit(1)


def _last_created(*counts: ColumnElement[bool]) -> Select[Any]:
    query = select(runs.c.id).where(_OF_THREAD, *counts)
    return query.order_by(runs.c.created_at.desc(), runs.c.id.desc()).limit(1)


def _with_waits(last: Select[Any]) -> Select[Any]:
    # One value for each wait. The text may stand in arguments of a call, too.
    waits = select(func.array_agg(run_events.c.payload.contains('"result_from":"http"'))).where(
        run_events.c.run_id == runs.c.id, run_events.c.type == RunWaitingForInput.type
    )
    return select(runs.c.id, waits.scalar_subquery()).where(runs.c.id == last.scalar_subquery())


_IS_OTHER = runs.c.id != bindparam("but")


def _has_failed(table: FromClause) -> ColumnElement[bool]:
    """Return the condition on these runs that is true where `has_failed` is."""
    return or_(
        table.c.state.in_((RunState.FAILED, RunState.CANCELLED)),
        and_(table.c.cancel_requested_at.is_not(None), table.c.ended_at.is_(None)),
    )


_HAS_NOT_FAILED = or_(runs.c.id == bindparam("even_failed"), ~_has_failed(runs))
_NEWEST = {
    (has_place, skips_failed): last(_IS_OTHER, *([_HAS_NOT_FAILED] if skips_failed else []))
    for has_place, last in ((True, _last_placed), (False, _last_created))
    for skips_failed in (True, False)
}
_BEFORE = {
    # It may have started, and so moved, since its row was read.
    True: _with_waits(_last_placed(runs.c.position < bindparam("position"), _IS_OTHER)),
    False: _with_waits(
        _last_created(
            tuple_(runs.c.created_at, runs.c.id) < tuple_(bindparam("created_at"), bindparam("but"))
        )
    ),
}


def _following(*place: Column[Any], skips_failed: bool) -> Select[Any]:
    is_behind = tuple_(*place) > tuple_(*(bindparam(column.name) for column in place))
    # An index gives these in their order. Those that do not count may be very many.
    behind = select(runs).where(_OF_THREAD, is_behind).order_by(*place)
    found = behind.limit(literal_column(str(MOST_READ))).subquery()
    counts = [or_(found.c.position < FIRST_WAITING, IS_PENDING), found.c.superseded_at.is_(None)]
    if skips_failed:
        counts.append(~_has_failed(found))
    in_order = select(found).where(*counts).order_by(*(found.c[column.name] for column in place))
    return in_order.limit(literal_column("20"))


_FOLLOWING = {
    (has_place, skips_failed): _following(*place, skips_failed=skips_failed)
    for has_place, place in ((True, [runs.c.position]), (False, [runs.c.created_at, runs.c.id]))
    for skips_failed in (True, False)
}


def newest(
    sql: Connection, run: RowMapping, *, but: UUID, even_failed: UUID | None = None
) -> UUID | None:
    """Return the last run of this one's thread, leaving one out; None without one.

    With `even_failed`, runs that have failed are left out, too, but for this one.
    """
    values = {"thread_id": run["thread_id"], "but": but, "even_failed": even_failed}
    last: UUID | None = sql.scalar(_NEWEST[has_place(run), even_failed is not None], values)
    return last


def before(sql: Connection, run: RowMapping) -> tuple[UUID, int, bool] | None:
    """Return the run before this one in its thread, how often that has waited, and whether it may
    have waited for HTTP tools; None if this one is the first.
    """
    values = {name: run[name] for name in ("thread_id", "position", "created_at")}
    row = sql.execute(_BEFORE[has_place(run)], {**values, "but": run["id"]}).one_or_none()
    return None if row is None else (row[0], len(row[1] or ()), any(row[1] or ()))


def following(sql: Connection, run: RowMapping, *, skips_failed: bool) -> Sequence[RowMapping]:
    """List the next 20 runs behind this one that have a place, in their order, with all columns.

    Superseded runs are left out, and failed ones with `skips_failed`; no more than `MOST_READ` are
    looked at.
    """
    values = {name: run[name] for name in ("thread_id", "position", "created_at", "id")}
    return sql.execute(_FOLLOWING[has_place(run), skips_failed], values).mappings().all()


def has_failed(run: RowMapping) -> bool:
    """Return whether a run failed or was cancelled, or is being cancelled."""
    is_cancelling = run["cancel_requested_at"] is not None and run["ended_at"] is None
    return is_cancelling or run["state"] in (RunState.FAILED, RunState.CANCELLED)


def is_after(run: RowMapping, other: RowMapping) -> bool:
    """Return whether a run comes after another one of its thread."""
    if has_place(run) and has_place(other):
        return bool(run["position"] > other["position"])
    return bool((run["created_at"], run["id"]) > (other["created_at"], other["id"]))


def has_place(run: RowMapping) -> bool:
    """Return whether a run has a place in the order."""
    return bool(run["position"] < FIRST_WAITING or run["state"] == RunState.PENDING)
