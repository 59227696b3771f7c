"""Orgs that were copied to another cell: nothing adds to their ledgers and runs here any more."""

from uuid import UUID

from sqlalchemy import select

from arkloop.shared.errors import Conflict
from arkloop.shared.storage import epoch
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.accounts import orgs


class OrgMoved(Conflict):
    """`details` has `moved_to`, the epoch of the other installation."""

    code = "orgs.moved"
    message = "The organization was copied to another cell, where it is resumed."


def check(tx: Transaction, org_id: UUID) -> None:
    """Check that an org was not copied, and keep it from leaving until the transaction ends.

    Raises:
        OrgMoved
    """
    # A copy that is not resumed yet has the epoch of the cell that it is in.
    has_left = orgs.c.suspended_at.is_not(None) & (orgs.c.moved_to != epoch.own())
    moved_to = select(orgs.c.moved_to).where(orgs.c.id == org_id, has_left)
    found = tx.sql.scalar(moved_to.with_for_update(read=True, key_share=True, of=orgs))
    if found is not None:
        raise OrgMoved(moved_to=str(found))
