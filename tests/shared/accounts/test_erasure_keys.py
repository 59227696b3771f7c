"""API keys of a user who is erased, in the audit log."""

import pytest

from arkloop.shared.accounts import erasure
from arkloop.shared.storage.connections import Connections
from tests.clients import Register, User


def test_each_key_of_an_erased_user_has_an_entry(
    connections: Connections, alice: User, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends by the operator, in its own org, once."""
    monkeypatch.setattr(erasure, "ACCESS_ENDS_SECONDS", 0)
    bob = register(org_of=alice, role="member")
    keys = {str((bob.post("/v1/api-keys", {"name": "x"}).json or {})["id"]) for _ in range(2)}
    alice.post("/v1/api-keys", {"name": "hers"})

    for _ in range(2):
        erasure.erase_user(connections, bob.id)

    found = alice.get("/v1/audit-logs?action=api_key.revoked").json or []
    assert [("operator", {})] * 2 == [(one["actor"]["type"], one["details"]) for one in found]
    assert keys == {one["target"]["id"] for one in found}
