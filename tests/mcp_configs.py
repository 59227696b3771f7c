"""Configs of MCP servers that require OAuth."""

from uuid import UUID

from arkloop.shared.catalog import mcp_configs
from arkloop.shared.storage.connections import Connections


def oauth_config(connections: Connections, org_id: UUID) -> UUID:
    """Store a server of the org that requires OAuth; return its config's id."""
    with connections.transaction() as tx:
        config = mcp_configs.create(
            tx, org_id, name="v", transport="streamable_http", url="https://a.b/", oauth={}
        )
    return UUID(str(config.id))
