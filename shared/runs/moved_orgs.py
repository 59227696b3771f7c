"""Orgs that were copied to another cell: nothing adds to their ledgers and runs here any more."""

from uuid import UUID

from sqlalchemy import Select, select

from arkloop.shared.errors import Conflict
from arkloop.shared.storage import epoch
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.accounts import MOVED_ORGS, orgs


class OrgMoved(Conflict):
    """`details` has `moved_to`, the epoch of the other installation."""

    code = "orgs.moved"
    message = "The organization was copied to another cell, where it is resumed."


def check(tx: Transaction, org_id: UUID) -> None:
    """Check that an org was not copied, and keep it from leaving until the transaction ends.

    Raises:
        OrgMoved
    """
    # By the id alone: an org that a condition leaves out would not be locked. Where it is leaving,
    # this waits, and reads its row as it is then.
    row = tx.sql.execute(
        select(orgs.c.suspended_at, orgs.c.moved_to, epoch.own().label("own_epoch"))
        .where(orgs.c.id == org_id)
        .with_for_update(read=True, key_share=True, of=orgs)
    ).one_or_none()
    if row is None or row.suspended_at is None or row.moved_to is None:
        return
    # A copy that is not resumed yet has the epoch of the cell that it is in.
    if row.moved_to != row.own_epoch:
        raise OrgMoved(moved_to=str(row.moved_to))


def left() -> Select[tuple[UUID]]:
    """Build SQL: the ids of the orgs that another installation has, so that no run here ends.

    An org whose copy is under way, or was broken off, is none of them: the copy waits for the end
    of runs that are executed or cancelled. Nor is a copy that is not resumed yet, unless this
    installation has begun another epoch since. Whether the other one has resumed the org cannot be
    known here.
    """
    return MOVED_ORGS.where(orgs.c.copy_began_at.is_(None), orgs.c.moved_to != epoch.own())
