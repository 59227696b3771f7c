"""Our client at an authorization server, as requests to the sidecar get it."""

import time
from dataclasses import replace
from typing import Any

import pytest

from arkloop.shared.catalog import mcp_access
from arkloop.shared.config import Settings
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.worker.mcp.access import OwnersAccess, with_access
from arkloop.worker.mcp.client import McpClient
from arkloop.worker.mcp.server import Server

ISSUER, FORMER = "https://login", "https://former.example.com"
NOW = int(time.time())
OVER = {"client_id_issued_at": NOW - 31 * 86400, "client_secret_expires_at": NOW - 86400}
OLD = {"client_id": "old", "client_secret": "hidden", **OVER}
NEW = {"client_id": "new", "client_secret": "hidden", "client_id_issued_at": NOW}


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, public_url="https://runs.example.com")


def test_a_new_client_that_one_end_user_has_is_for_all(
    connections: Connections, server: Server
) -> None:
    """The operator's secret has expired, and their token works: they have no reason to ask. Others
    keep the tokens of the old client.
    """

    def store(
        owner: str,
        client: dict[str, Any],
        number: int,
        expires_at: float | None = None,
        **tokens: str,
    ) -> None:
        grant = {
            "expires_at": expires_at,
            "id": owner,
            "obtained_at": float(number),
            "client": client,
            "at": [ISSUER, f"{ISSUER}/token", client["client_id"]],
            "tokens": {"access_token": f"of {owner}", "token_type": "Bearer", **tokens},
        }
        of = (server.org_id, server.config_id, owner)
        with connections.transaction() as tx:
            mcp_access.expect_grant(tx, *of)
            mcp_access.store_grant(tx, *of, grant)

    def used(server: Server, access: OwnersAccess | None) -> Any:
        assert access is not None
        return access.fields()

    store(mcp_access.OPERATOR, OLD, 1)
    store("end_user:early", OLD, 2)
    store("end_user:refreshes", OLD, 3, refresh_token="r")
    store("end_user:late", NEW, 4)
    valid = {"client_id": "valid", "client_id_issued_at": NOW - 100}
    store("end_user:expired", valid, 5, expires_at=NOW - 1)
    store("end_user:moved", {**valid, "redirect_uris": [f"{FORMER}/v1/mcp-oauth/callback"]}, 6)

    for owner, token in (
        ("end_user:another", None),
        ("end_user:early", "of end_user:early"),
        ("end_user:refreshes", "of end_user:refreshes"),
        ("end_user:expired", "of end_user:expired"),
        ("end_user:moved", "of end_user:moved"),
        (mcp_access.OPERATOR, f"of {mcp_access.OPERATOR}"),
    ):
        fields = with_access(connections, McpClient(), server, owner, new_id(), used)
        assert {**NEW, "issuer": ISSUER} == fields["client"]
        assert token == (fields["grant"] and fields["grant"]["tokens"]["access_token"])
