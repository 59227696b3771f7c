"""The client that was registered at the authorization server of an MCP server, for all owners."""

from typing import Any
from uuid import UUID

from sqlalchemy import Connection, select

from arkloop.shared.catalog import mcp_access
from arkloop.shared.catalog.mcp_access import OPERATOR, registered_at
from arkloop.shared.config import Settings
from arkloop.shared.storage.tables.catalog import mcp_grants


def client_of(
    sql: Connection, settings: Settings, org_id: UUID, config_id: UUID
) -> dict[str, Any] | None:
    """Return our registration at the server's authorization server, if the operator has made one.

    All owners share it: some authorization servers limit their number. One that was used has the
    `issuer` which it belongs to. Where the operator is asked for access with another one, or an end
    user was, the authorization server has forgotten that.
    """
    granted = mcp_access.grant_of(sql, settings, org_id, config_id, OPERATOR)
    asked = mcp_access.open_request(sql, settings, org_id, config_id, OPERATOR, None)
    newer: dict[str, Any] | None = None if asked is None else asked["client"]
    if granted is None:
        return newer
    client: dict[str, Any] = {**granted["client"], "issuer": granted["at"][0]}
    if newer is not None and newer["client_id"] != client["client_id"]:
        client = newer
    latest = _grant_of_newest_client(sql, settings, org_id, config_id)
    if latest is not None and registered_at(latest["client"]) > registered_at(client):
        client = {**latest["client"], "issuer": latest["at"][0]}
    return client


def _grant_of_newest_client(
    sql: Connection, settings: Settings, org_id: UUID, config_id: UUID
) -> dict[str, Any] | None:
    """Return the grant of the end user, or user, whose client was registered last."""
    owner = sql.scalar(
        select(mcp_grants.c.owner)
        .where(
            mcp_grants.c.config_id == config_id,
            mcp_grants.c.owner != OPERATOR,
            mcp_grants.c.client_registered_at.is_not(None),
        )
        .order_by(mcp_grants.c.client_registered_at.desc())
        .limit(1)
    )
    if owner is None:
        return None
    return mcp_access.grant_of(sql, settings, org_id, config_id, owner)
