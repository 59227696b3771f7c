"""Tools of MCP servers: listed, approved and discovered."""

from typing import Any
from uuid import UUID

import pytest

from arkloop.shared.catalog import mcp_configs
from arkloop.shared.storage.connections import Connections
from tests.api.endpoints.described_mcp import HASH, PATH, Described, Found, make
from tests.clients import User, error_of


def test_tools_are_listed_with_what_stands_in_their_way(alice: User, found: Found) -> None:
    """The first discovery approves; later news waits."""
    config = make(alice)
    one = f"{PATH}/{config['id']}"
    bad = Described("bad name", "b" * 64, problem="The name is bad.")
    found(config, Described("read", "1" * 64), Described("write", "2" * 64), bad)
    found(config, Described("read", "3" * 64), Described("new", "4" * 64), bad)

    tools = {tool["name"]: tool for tool in alice.get(f"{one}/tools").json or ()}

    def states(*names: str) -> list[Any]:
        return [tools[name][state] for name in names for state in ("is_approved", "changed")]

    assert [True, False, False, False, False, True] == states("bad name", "new", "read")
    assert [False] * 4 == [tool["is_offered"] for tool in tools.values()]
    assert [True, True, True, False] == [tool["is_present"] for tool in tools.values()]
    assert "The name is bad." == tools["bad name"]["problem"]
    assert {
        "name": "new",
        "description": "A tool.",
        "parameters": {"type": "object"},
        "hash": "4" * 64,
        "is_approved": False,
        "changed": False,
        "is_present": True,
        "is_offered": False,
        "problem": None,
        "approved_at": None,
        "seen_at": tools["new"]["seen_at"],
    } == tools["new"]
    shown = alice.get(one).json
    assert shown is not None
    assert (0, None) == (shown["tool_count"], shown["discovery_error"])
    assert shown["discovered_at"] is not None


def test_an_approval_is_for_one_description(alice: User, found: Found) -> None:
    """An approval with another hash is refused, and the details have the present hash."""
    config = make(alice)
    one = f"{PATH}/{config['id']}"
    found(config)
    found(config, Described("new", "4" * 64))

    refused = alice.post(f"{one}/tools/new:approve", {"hash": HASH})

    assert (409, "mcp_configs.tool_changed") == error_of(refused)
    assert {"name": "new", "hash": "4" * 64} == refused.json["details"]
    approved = alice.post(f"{one}/tools/new:approve", {"hash": "4" * 64}).json
    assert approved is not None
    assert (True, True) == (approved["is_approved"], approved["is_offered"])
    assert 1 == alice.get(one).json["tool_count"]


def test_many_are_approved_together_or_not_at_all(alice: User, found: Found) -> None:
    """One tool that changed meanwhile prevents the approval of all."""
    config = make(alice)
    path = f"{PATH}/{config['id']}/tools:approve"
    found(config)
    found(config, Described("a", "1" * 64), Described("b", "2" * 64))

    def approve(**hashes: str) -> Any:
        return alice.post(path, {"tools": [{"name": n, "hash": h} for n, h in hashes.items()]})

    assert (409, "mcp_configs.tool_changed") == error_of(approve(a="1" * 64, b=HASH))
    assert (404, "mcp_configs.tool_not_found") == error_of(approve(a="1" * 64, c=HASH))
    assert 0 == alice.get(f"{PATH}/{config['id']}").json["tool_count"]
    assert ["a", "b"] == [tool["name"] for tool in approve(a="1" * 64, b="2" * 64).json]
    assert 2 == alice.get(f"{PATH}/{config['id']}").json["tool_count"]


def test_a_discovery_is_asked_for(
    connections: Connections, alice: User, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Creating and changing a server asks for one, and so does a request; a worker gets the id."""
    asked: list[UUID] = []
    monkeypatch.setattr(connections, "enqueue_discovery", asked.extend)
    config = make(alice)
    one = f"{PATH}/{config['id']}"

    def outcome(response: Any, status: int) -> tuple[bool, bool]:
        """Return whether the response, and the server now, say when it was tried."""
        assert status == response.status_code
        return response.json["tried_at"] is not None, alice.get(one).json["tried_at"] is not None

    found(config)
    assert (True, True) == outcome(alice.get(one), 200)
    assert (False, False) == outcome(alice.patch(one, {"name": "other"}), 200)
    found(config)
    assert (True, True) == outcome(alice.get(one), 200)
    assert (False, False) == outcome(alice.post(f"{one}:discover"), 202)

    assert [UUID(config["id"])] * 3 == asked
    with connections.reading() as sql:
        assert mcp_configs.of_names(sql, alice.org_id, ["other"])[0].is_stale


@pytest.mark.parametrize("many", [False, True])
def test_a_repeated_approval_is_no_second_one(alice: User, found: Found, many: bool) -> None:
    """With its `Idempotency-Key` it gets the first response, and the audit log one entry."""
    config = make(alice)
    found(config, Described("a", "1" * 64))
    one, hash_ = f"{PATH}/{config['id']}", {"hash": "1" * 64}
    path = f"{one}/tools:approve" if many else f"{one}/tools/a:approve"
    body = {"tools": [{"name": "a", **hash_}]} if many else hash_
    headers = {"Idempotency-Key": "one"}

    first, repeated = (alice.post(path, body, headers=headers) for _ in range(2))

    assert (200, first.json) == (repeated.status_code, repeated.json)
    assert "true" == repeated.headers["Idempotency-Replayed"]
    assert 1 == len(alice.get("/v1/audit-logs?action=mcp_config.tools_approved").json or [])


def test_an_attempt_from_before_is_not_the_outcome(alice: User, connections: Connections) -> None:
    """It may end long after the discovery that was asked for."""
    config = make(alice)
    with connections.reading() as sql:
        asked = mcp_configs.of_id(sql, UUID(config["id"]))
    assert alice.post(f"{PATH}/{config['id']}:discover").status_code == 202

    with connections.transaction() as tx:
        mcp_configs.record_failure(tx, asked.id, "timed out", as_of=asked.updated_at)

    shown = alice.get(f"{PATH}/{config['id']}").json
    assert (None, None) == (shown["tried_at"], shown["discovery_error"])
