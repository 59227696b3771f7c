"""Every way by which the service connects on behalf of an org: no address leads it inside."""

from pathlib import Path
from typing import Any

import pytest

from tests.clients import User
from tests.own_network import output_in_own_network
from tests.shared.security import dialled_names
from tests.shared.security.test_egress import REFUSED

pytestmark = pytest.mark.processes

PROVIDER = {"name": "acme", "kind": "openai", "api_key": "secret"}
TOOL = {"name": "refund", "description": "Refund.", "parameters": {"type": "object"}}
OIDC = {"client_id": "ours", "client_secret": "secret", "signing_algorithm": "RS256"}
#: What takes an address: its path, the name of the field, and the rest of the body.
STORED: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "tool": ("POST", "/v1/tools", "url", TOOL),
    "webhook": ("POST", "/v1/webhook-endpoints", "url", {}),
    "MCP server": ("POST", "/v1/mcp-configs", "url", {"name": "files"}),
    "provider": ("POST", "/v1/llm-providers", "base_url", PROVIDER),
    "identity provider": ("PUT", "/v1/orgs/{org_id}/identity-provider", "issuer", OIDC),
}


@pytest.mark.parametrize("kind", STORED)
def test_no_address_that_may_lead_inside_is_stored(alice: User, kind: str) -> None:
    """422 names the field, for every spelling; nothing is asked at such an address."""
    method, path, field, body = STORED[kind]
    path = path.format(org_id=alice.org_id)
    taken: list[str] = []
    for url in REFUSED:
        response = alice.call(method, path, json={**body, field: url})
        named = (response.json or {}).get("details", {})
        if response.status_code != 422 or [field] != list(named):
            taken.append(f"{url[:80]}: {response.status_code} {response.text[:200]}")

    assert [] == taken


def test_no_way_out_leads_inside(tmp_path: Path) -> None:
    """Names that change their answer, two records, redirects and numbers in every spelling: the
    listeners on 127.0.0.1, ::1 and 169.254.169.254 get no connection.
    """
    seen = output_in_own_network(dialled_names, tmp_path)

    assert [0, 0, 0] == seen["canaries"]
    # Each does connect where it may.
    assert [] == [sink for sink, reached in seen["reached"].items() if not reached]
    assert seen["dialled"] >= 200
