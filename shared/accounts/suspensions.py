"""Suspended orgs: the operator has closed them, and can open them again.

No credential of a suspended org is accepted: no key, login, client token or stream ticket. Runs
that are executed are cancelled; queued ones are claimed by nobody, and those that wait go on
waiting. Nothing is deleted: an org that is resumed has the credentials, the queue and the data that
it had.
"""

from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Row, func, select, true, update

from arkloop.shared.errors import InvalidRequest, OrgNotFound, OrgSuspended
from arkloop.shared.runs import revocations
from arkloop.shared.runs.moved_orgs import OrgMoved
from arkloop.shared.storage import epoch
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.accounts import orgs

MAX_REASON = 500  # characters


_SHOWN: tuple[Any, ...] = (
    orgs.c.id,
    orgs.c.name,
    orgs.c.slug,
    orgs.c.suspended_at,
    orgs.c.suspension_reason,
    orgs.c.moved_to,
    orgs.c.copy_began_at,
)


def since(org_id: ColumnElement[UUID]) -> ColumnElement[Any]:
    """Build SQL: `suspended_at` of the org, null while it is not suspended."""
    return (
        select(orgs.c.suspended_at)
        .where(orgs.c.id == org_id)
        .scalar_subquery()
        .label("suspended_at")
    )


def is_suspended(org_id: ColumnElement[UUID]) -> ColumnElement[bool]:
    """Build SQL: the org is suspended."""
    return select(orgs.c.suspended_at).where(orgs.c.id == org_id).scalar_subquery().is_not(None)


def check(sql: Connection, org_id: UUID) -> None:
    """Check that an org may be logged in to. Raises: OrgSuspended."""
    if sql.scalar(select(orgs.c.suspended_at).where(orgs.c.id == org_id)) is not None:
        raise OrgSuspended()


def suspend(
    tx: Transaction, org_id: UUID, reason: str, *, by_user_id: UUID | None = None
) -> Row[Any]:
    """Suspend an org and cancel the runs that are executed for it; returns its row.

    The runs are cancelled in the name of `by_user_id`, by default of their creators. An org that is
    suspended stays so since when it was, with the new reason.

    Raises:
        OrgNotFound
        InvalidRequest: the reason is empty, longer than `MAX_REASON`, or not printable.
    """
    reason = reason.strip()
    if not 1 <= len(reason) <= MAX_REASON or not reason.isprintable():
        raise InvalidRequest(reason=[f"must be a line of 1 to {MAX_REASON} printable characters"])
    at = func.coalesce(orgs.c.suspended_at, func.now())
    values = {"suspended_at": at, "suspension_reason": reason}
    suspended = update(orgs).where(orgs.c.id == org_id).values(values).returning(*_SHOWN)
    row = _found(tx.sql.execute(suspended).one_or_none())
    revocations.cancel_runs_of_suspended_orgs(tx, org_id=org_id, by_user_id=by_user_id)
    return row


def resume(tx: Transaction, org_id: UUID, *, despite_copy: bool = False) -> tuple[Row[Any], bool]:
    """Open a suspended org again; one that is not suspended stays as it is.

    One that was copied to another installation opens there, or here with `despite_copy`: then the
    copy must never be opened. Its queued runs get the time of the suspension back. Returns its row,
    and whether it was suspended.

    Raises:
        OrgNotFound, OrgMoved
    """
    opens_here: ColumnElement[bool] = orgs.c.moved_to.is_(None) | (orgs.c.moved_to == epoch.own())
    if despite_copy:
        opens_here = true()
    closed = select(orgs.c.suspended_at).where(
        orgs.c.id == org_id, orgs.c.suspended_at.is_not(None), opens_here
    )
    suspended_at = tx.sql.scalar(closed.with_for_update(key_share=True))
    if suspended_at is not None:
        revocations.give_time_back(tx, org_id, suspended_at)
        suspension = ("suspended_at", "suspension_reason", "moved_to", "copy_began_at")
        values = dict.fromkeys(suspension)
        resumed = update(orgs).where(orgs.c.id == org_id).values(values).returning(*_SHOWN)
        return tx.sql.execute(resumed).one(), True
    row = get(tx.sql, org_id)
    if row.moved_to is not None:
        raise OrgMoved(moved_to=str(row.moved_to))
    return row, False


def get(sql: Connection, org_id: UUID) -> Row[Any]:
    """Return id, name, slug and how an org is suspended. Raises: OrgNotFound."""
    return _found(sql.execute(select(*_SHOWN).where(orgs.c.id == org_id)).one_or_none())


def _found(row: Row[Any] | None) -> Row[Any]:
    if row is None:
        raise OrgNotFound()
    return row
