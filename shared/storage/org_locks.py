"""The lock of an org, for what is counted or compared before it is written."""

from uuid import UUID

from sqlalchemy import select

from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.accounts import orgs


def lock(tx: Transaction, org_id: UUID) -> None:
    """Let no other transaction have the lock of the org until this one ends.

    Not FOR UPDATE: that would hold up every insert that refers to the org.
    """
    tx.sql.execute(select(orgs.c.id).where(orgs.c.id == org_id).with_for_update(key_share=True))
