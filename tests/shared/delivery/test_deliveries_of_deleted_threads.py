"""Deliveries of runs whose thread was deleted afterwards."""

import json
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Row

from arkloop.shared.delivery import deliveries, messages
from arkloop.shared.ids import new_id
from arkloop.shared.runs import thread_changes
from tests.clients import User
from tests.query_plans import Plans, noted
from tests.shared.delivery.delivering_org import BROKEN, OK, Org
from tests.shared.runs.delegated_runs import delegated

METADATA = {"case": "7"}


def completed(org: Org) -> UUID:
    """Let a run say a secret."""
    claim = org.stored.held(org.stored.create(metadata=METADATA))
    assert org.stored.finish(claim, message=(new_id(), "A secret."))
    return claim.run_id


def delete(org: Org, run_id: UUID) -> None:
    """Delete the thread of the run."""
    with org.connections.transaction() as tx:
        thread_changes.delete(tx, org.stored.actor, org.stored.row(run_id)["thread_id"])


def sent(row: Row[Any]) -> dict[str, Any]:
    """Return the data of an attempt."""
    return dict(json.loads(messages.body(row))["data"])


def left_out(run_id: UUID, data: dict[str, Any]) -> bool:
    """Return whether the data names the run, and has nothing of what was said."""
    assert (str(run_id), "completed") == (data["run_id"], data["status"])
    return (None, None, None) == (data["output"], data["event"], data["metadata"])


@pytest.mark.parametrize("before", [OK, BROKEN])
def test_a_replay_sends_nothing_of_what_was_said_in_a_deleted_thread(
    org: Org, before: dict[str, Any]
) -> None:
    """The message is sent again, whatever became of the first attempt; that of another thread is
    as it was.
    """
    endpoint = org.endpoint()
    run_id, other = completed(org), completed(org)
    while rows := org.claim():
        for row in rows:
            assert "A secret." == sent(row)["output"]
            org.tried(row, **before)
    delete(org, run_id)

    with org.connections.transaction() as tx:
        ids = [row.id for row in org.listed(endpoint)]
        assert 2 == deliveries.replay(tx, org.id, endpoint, ids)

    again: dict[str, dict[str, Any]] = {}
    while rows := org.claim():
        again |= {data["run_id"]: data for data in map(sent, rows)}
        for row in rows:
            org.tried(row, **OK)
    assert left_out(run_id, again[str(run_id)])
    data = again[str(other)]
    assert (METADATA, "A secret.") == (data["metadata"], data["output"])


def test_what_waits_is_sent_without_what_was_said_in_a_deleted_thread(org: Org) -> None:
    """The thread and that of the sub-run are gone before the first attempt."""
    org.endpoint()
    claim = org.stored.held(org.stored.create())
    child = org.stored.held(delegated(org.stored, claim).run_id)
    for ended in (child, claim):
        assert org.stored.finish(ended, message=(new_id(), "A secret."))
    delete(org, claim.run_id)

    found = [sent(row) for row in org.claim()]

    assert {str(child.run_id), str(claim.run_id)} == {data["run_id"] for data in found}
    assert all(left_out(UUID(data["run_id"]), data) for data in found)


def test_a_delivery_shows_nothing_of_what_was_said_in_a_deleted_thread(
    org: Org, alice: User
) -> None:
    """An admin sees that the run has completed; a test message, which is of no run, is whole."""
    endpoint = org.endpoint()
    run_id = completed(org)
    path = f"/v1/webhook-endpoints/{endpoint}"
    [listed] = alice.get(f"{path}/deliveries").json or []
    shown = alice.get(f"{path}/deliveries/{listed['id']}").json or {}
    assert "A secret." == shown["data"]["output"]
    thread_id = shown["data"]["thread_id"]

    assert 204 == alice.delete(f"/v1/threads/{thread_id}").status_code
    tested = alice.post(f"{path}:test").json or {}

    shown = alice.get(f"{path}/deliveries/{listed['id']}").json or {}
    assert left_out(run_id, shown["data"])
    assert {"endpoint_id": str(endpoint)} == tested["data"]


def test_threads_of_deliveries_are_found_by_their_key(org: Org) -> None:
    """Only those of rows that are claimed, or of the one that is shown, are looked up."""
    endpoint = org.endpoint()
    completed(org)
    with noted(org.connections) as statements:
        [row] = org.claim()
    with noted(org.connections) as shown, org.connections.reading() as sql:
        deliveries.find(sql, org.id, endpoint, row.id)

    for sent_last in (statements[-1], shown[-1]):
        assert "pk_threads" in Plans(org.connections, sent_last).indexes()
