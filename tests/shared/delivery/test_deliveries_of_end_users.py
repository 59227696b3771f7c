"""Deliveries about an end user: they are erased with that."""

import json
from uuid import UUID

import pytest
from sqlalchemy import Text, cast, func, insert, select

from arkloop.shared.accounts import erasure
from arkloop.shared.delivery import deliveries, endpoints
from arkloop.shared.ids import new_id
from arkloop.shared.runs import retention, thread_changes
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.delivery import webhook_deliveries
from tests.clients import Register, User
from tests.query_plans import Plans, noted
from tests.stored_deliveries import endpoint
from tests.stored_runs import StoredRuns, ago

ANN = 'Ann "é" \\ 🙂'


def deliver(connections: Connections, org_id: UUID, endpoint_id: UUID, **data: str) -> UUID:
    """Store the delivery of a run that is gone; returns its id."""
    delivery_id, run_id = new_id(), new_id()
    whose = {"endpoint_id": endpoint_id, "org_id": org_id, "run_id": run_id, "ordered_by": run_id}
    pairs = [part for pair in data.items() for part in pair]
    what = {"seq": 1, "type": "run.completed", "data": cast(func.json_build_object(*pairs), Text)}
    with connections.transaction() as tx:
        tx.sql.execute(insert(webhook_deliveries).values(id=delivery_id, **whose, **what))
    return delivery_id


def left(connections: Connections, *delivery_ids: UUID) -> list[bool]:
    """Return which of the deliveries exist."""
    with connections.reading() as sql:
        found = {*sql.scalars(select(webhook_deliveries.c.id))}
    return [delivery_id in found for delivery_id in delivery_ids]


def test_deliveries_of_runs_that_are_gone_are_erased(
    connections: Connections, alice: User, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that name the end user go, those of deleted endpoints, too; others stay."""
    monkeypatch.setattr(deliveries, "FORGOTTEN_AT_ONCE", 2)
    other = register()
    with connections.transaction() as tx:
        first, deleted = (endpoint(tx, alice.org_id) for _ in range(2))
        foreign = endpoint(tx, other.org_id)
    anns = [
        deliver(connections, alice.org_id, to, end_user_id=ANN, output="Hello")
        for to in (first, first, first, deleted, first)
    ]
    others = [
        deliver(connections, alice.org_id, first, end_user_id="bob", output=ANN),
        deliver(connections, alice.org_id, first, end_user_id=ANN[:-1]),
        deliver(connections, alice.org_id, first, scope=ANN),
        deliver(connections, other.org_id, foreign, end_user_id=ANN),
    ]
    with connections.transaction() as tx:
        endpoints.remove(tx, alice.org_id, deleted)

    erasure.erase_end_user(connections, alice.org_id, ANN)

    assert [True] * 4 == left(connections, *others)
    assert [False] * 5 == left(connections, *anns)


@pytest.mark.parametrize("end_user_id", [None, "bob"])
def test_deliveries_of_runs_from_before_a_thread_had_its_end_user_are_erased(
    stored: StoredRuns, monkeypatch: pytest.MonkeyPatch, end_user_id: str | None
) -> None:
    """They name nobody or somebody else, and the retention has deleted their runs."""
    monkeypatch.setattr(deliveries, "FORGOTTEN_AT_ONCE", 2)
    connections, org_id = stored.connections, stored.actor.org_id
    with connections.transaction() as tx:
        hook = endpoint(tx, org_id)
    theirs, other = (stored.thread() for _ in range(2))
    for thread_id in (theirs, other, theirs):
        run_id = stored.create(thread_id, end_user_id=end_user_id)
        assert stored.finish(stored.held(run_id), message=(new_id(), "Hello, Ann."))
        stored.set(run_id, ended_at=ago(days=400))
    with connections.transaction() as tx:
        thread_changes.change(tx, stored.actor, theirs, end_user_id=ANN)
    retention.forget(connections)

    erasure.erase_end_user(connections, org_id, ANN)

    with connections.reading() as sql:
        kept = select(webhook_deliveries.c.data).where(webhook_deliveries.c.endpoint_id == hook)
        assert [str(other)] == [json.loads(data)["thread_id"] for data in sql.scalars(kept)]


def test_deliveries_of_an_end_user_are_found_by_indexes(
    connections: Connections, alice: User
) -> None:
    """One page of an endpoint's is read at a time, and of other endpoints one delivery each."""
    with connections.transaction() as tx:
        deliver(connections, alice.org_id, endpoint(tx, alice.org_id), end_user_id=ANN)
    with noted(connections) as statements:
        deliveries.forget_end_user(connections, alice.org_id, ANN, f"end_user:{ANN}")
    by_endpoint = {
        "ix_webhook_deliveries_endpoint_id_created_at_id",
        "uq_webhook_deliveries_endpoint_id_ordered_by_seq",
    }
    [found] = [one for one in statements if "RECURSIVE" in one[0]]
    page = next(one for one in statements if "strpos" in one[0])

    assert Plans(connections, found).indexes() <= by_endpoint
    in_order = "ix_webhook_deliveries_endpoint_id_created_at_id"
    assert {in_order, "pk_webhook_deliveries"} == Plans(connections, page).indexes()


def test_deliveries_of_runs_are_found_by_an_index(connections: Connections, alice: User) -> None:
    """The deletion looks once for each run and endpoint of the org, whatever other orgs have."""
    with connections.transaction() as tx:
        hook = endpoint(tx, alice.org_id)
    gone, kept = (deliver(connections, alice.org_id, hook) for _ in range(2))
    with connections.reading() as sql:
        is_it = webhook_deliveries.c.id == gone
        run_id = sql.scalars(select(webhook_deliveries.c.run_id).where(is_it)).one()
    with noted(connections) as statements, connections.transaction() as tx:
        deliveries.forget_runs(tx, alice.org_id, [run_id])
    [deleting] = [one for one in statements if "DELETE" in one[0]]

    assert [False, True] == left(connections, gone, kept)
    by_order = {"uq_webhook_deliveries_endpoint_id_ordered_by_seq", "pk_webhook_deliveries"}
    assert by_order == Plans(connections, deleting).indexes()
