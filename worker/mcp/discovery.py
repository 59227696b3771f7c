"""Asking a server for its tools, and storing what it says for approval."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from arkloop.shared import portable_schema
from arkloop.shared.addresses import host_and_port
from arkloop.shared.catalog import mcp_access, mcp_configs, mcp_secrets
from arkloop.shared.config import Settings
from arkloop.shared.json_schema import InvalidSchema
from arkloop.shared.security.encryption import CannotOpen, NoEncryptionKey
from arkloop.shared.storage.connections import Connections
from arkloop.worker.contract.argument_schema import ArgumentSchema
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.contract.cpu_slices import cpu_slice
from arkloop.worker.mcp import AuthorizationRequired, Cancelled, McpFailed
from arkloop.worker.mcp.access import with_access
from arkloop.worker.mcp.client import McpClient
from arkloop.worker.mcp.descriptions import Description
from arkloop.worker.mcp.server import Server

log = logging.getLogger(__name__)

UNAUTHORIZED = "An admin has to authorize access: visit the `authorization_url`."


def discover(
    connections: Connections,
    client: McpClient,
    config_id: UUID,
    *,
    context: ToolContext | None = None,
) -> None:
    """Ask the server now, and store what comes of it, a failure too.

    Nothing is stored of a config that is gone, or was changed meanwhile: its change has
    the new server asked. The servers of a suspended org are not asked.

    Raises:
        Unavailable: Postgres is out of reach.
    """
    with connections.reading() as sql:
        row = mcp_configs.of_id(sql, config_id)
    if row is None:
        return
    try:
        server = server_of(connections.settings, row)
        found = with_access(
            connections,
            client,
            server,
            mcp_access.OPERATOR,
            None,
            lambda server, access: client.tools(server, access=access, context=context),
        )
    except Cancelled:
        return  # this worker is about to end: that says nothing of the server
    except AuthorizationRequired:
        with connections.transaction() as tx:
            mcp_configs.record_failure(tx, config_id, UNAUTHORIZED, as_of=row.updated_at)
    except McpFailed as failed:
        _report(row, failed)
        with connections.transaction() as tx:
            mcp_configs.record_failure(tx, config_id, str(failed), as_of=row.updated_at)
    else:
        record(connections, server, found)


def _report(row: Row[Any], failed: McpFailed) -> None:
    """Log a failure with what the operator needs and the org's admins must not see."""
    # Of the URL that alone: the rest may contain credentials.
    host, port = host_and_port(row.url or "")
    cause = failed.cause or "-"
    named = f"{row.name} at {host}:{port}" if row.url else row.name
    log.warning(
        "MCP tools/list failed for %s, %s: %s (%s)",
        *(row.id, named, failed, cause),
        extra={"host": host, "port": port, "cause": cause},
    )


def record(connections: Connections, server: Server, found: Iterable[Description]) -> None:
    """Store what a server has, if its config is still that. Raises: Unavailable."""
    judged = [_judged(tool) for tool in found]
    with connections.transaction() as tx:
        mcp_configs.record(tx, server.config_id, judged, as_of=server.updated_at)


def server_of(settings: Settings, row: Row[Any]) -> Server:
    """Convert a row of `mcp_configs.of_names` to what the client needs.

    Raises:
        McpFailed: the headers or the client's secret cannot be decrypted.
    """
    try:
        headers = mcp_secrets.headers_of(settings, row)
        oauth = mcp_secrets.oauth_of(settings, row)
    except (NoEncryptionKey, CannotOpen) as error:
        log.error("cannot decrypt the secrets of MCP server %s: %s", row.id, error)
        raise McpFailed("The secrets of the server cannot be decrypted here.") from None
    return Server(
        org_id=row.org_id,
        config_id=row.id,
        name=row.name,
        url=row.url,
        headers=headers,
        command=tuple(row.command or ()),
        oauth=oauth,
        updated_at=row.updated_at,
    )


def _judged(tool: Description) -> Description:
    if tool.problem is not None:
        return tool
    try:
        with cpu_slice():
            ArgumentSchema(tool.parameters)
            portable_schema.check(tool.parameters)
    except InvalidSchema as error:
        return replace(tool, problem=f"The parameters are not a usable schema: {error}"[:500])
    return tool
