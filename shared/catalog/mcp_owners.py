"""All that one owner has granted MCP servers and is asked for by them, in one org or in all."""

from uuid import UUID

from sqlalchemy import Connection, delete, func, or_, select, true

from arkloop.shared.catalog.mcp_access import HashedPage
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.catalog import mcp_authorizations, mcp_configs, mcp_grants


def has_any(sql: Connection, org_id: UUID, owner: str) -> bool:
    """Return whether the owner has granted anything in the org, or has a page that can be visited.

    The visitor of the page decides whose access the owner gets.
    """
    of_org = select(mcp_configs.c.id).where(mcp_configs.c.org_id == org_id)
    granted, asked = (
        select(table.c.owner).where(table.c.owner == owner, table.c.config_id.in_(of_org))
        for table in (mcp_grants, mcp_authorizations)
    )
    is_open = asked.where(mcp_authorizations.c.expires_at > func.now())
    return bool(sql.scalar(select(or_(granted.exists(), is_open.exists()))))


def forget(tx: Transaction, owner: str, *, org_id: UUID | None = None) -> list[HashedPage]:
    """Forget all that an owner has granted and was asked for, by default in all orgs.

    Returns the pages that were open for runs. These are left to the caller: see
    `commands.decline_visits`.
    """
    of_org = select(mcp_configs.c.id).where(mcp_configs.c.org_id == org_id)
    grants, requests = (
        delete(table).where(
            table.c.owner == owner, true() if org_id is None else table.c.config_id.in_(of_org)
        )
        for table in (mcp_grants, mcp_authorizations)
    )
    asked = mcp_authorizations.c
    shown = (asked.run_id, asked.state_hash, asked.answered_at)
    closed = tx.sql.execute(requests.returning(*shown)).all()
    tx.sql.execute(grants)  # last, as in `mcp_access.forget`
    return [
        (row.run_id, row.state_hash)
        for row in closed
        if row.run_id is not None and row.answered_at is None
    ]
