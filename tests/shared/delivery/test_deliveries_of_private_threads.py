"""Deliveries of runs that the org does not see."""

from typing import Any

import pytest

from arkloop.shared.accounts import erasure
from arkloop.shared.delivery import deliveries
from arkloop.shared.ids import new_id
from arkloop.shared.runs import retention, thread_changes
from tests.clients import User
from tests.query_plans import Plans, noted
from tests.shared.delivery.delivering_org import Org
from tests.shared.runs.delegated_runs import delegated
from tests.stored_runs import ago


def hidden(data: dict[str, Any]) -> list[str]:
    """Return the fields without a value."""
    return [name for name, value in data.items() if value is None]


def test_deliveries_of_a_private_thread_have_nothing_of_what_was_said(org: Org) -> None:
    """Neither the answer and the question nor the metadata, also of sub-runs; the org's server
    still learns of each run what has become of it.
    """
    endpoint, stored = org.endpoint(), org.stored
    run_id = stored.create(metadata={"case": "7"}, end_user_id="jo")
    with stored.connections.transaction() as tx:
        thread_id = stored.row(run_id)["thread_id"]
        thread_changes.change(tx, stored.actor, thread_id, is_private=True)
    claim = stored.held(run_id)
    child = stored.held(delegated(stored, claim).run_id)

    assert stored.finish(child, message=(new_id(), "A secret."))
    assert stored.park(claim, new_id(), prompt="Which secret?")
    stored.cancel(run_id)

    found = org.data(endpoint)
    assert [
        (str(child.run_id), "completed"),
        (str(run_id), "waiting_for_input"),
        (str(run_id), "cancelled"),
    ] == [(data["run_id"], data["status"]) for data in found]
    assert ["jo", "jo"] == [data["end_user_id"] for data in found[1:]]
    for data in found[1:]:
        assert ["metadata", "output", "event"] == hidden(data)
    assert {"metadata", "output", "event"} <= set(hidden(found[0]))
    assert "secret" not in str(found)


def test_deliveries_of_a_thread_that_is_public_again_have_what_was_said(org: Org) -> None:
    """What the org sees when the run ends, its webhooks report."""
    endpoint, stored = org.endpoint(), org.stored
    run_id = stored.create(metadata={"case": "7"})
    for is_private in (True, False):
        with stored.connections.transaction() as tx:
            thread_id = stored.row(run_id)["thread_id"]
            thread_changes.change(tx, stored.actor, thread_id, is_private=is_private)

    assert stored.finish(stored.held(run_id), message=(new_id(), "Hello."))

    [data] = org.data(endpoint)
    assert ({"case": "7"}, "Hello.", False) == (
        *(data["metadata"], data["output"]),
        data["event"] is None,
    )


def test_deliveries_of_runs_that_are_gone_are_erased_with_their_user(
    org: Org, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deliveries of threads that became private after their runs had ended; others stay."""
    monkeypatch.setattr(erasure, "ACCESS_ENDS_SECONDS", 0)
    monkeypatch.setattr(deliveries, "FORGOTTEN_AT_ONCE", 2)
    endpoint, stored = org.endpoint(), org.stored
    threads = [stored.thread() for _ in range(3)]
    for thread_id in (*threads, *threads):
        run_id = stored.create(thread_id)
        assert stored.finish(stored.held(run_id), message=(new_id(), "A secret."))
        stored.set(run_id, ended_at=ago(days=400))
    with stored.connections.transaction() as tx:
        for thread_id in threads[:2]:
            thread_changes.change(tx, stored.actor, thread_id, is_private=True)
        thread_changes.delete(tx, stored.actor, threads[1])
    retention.forget(stored.connections)
    assert 6 == len(org.listed(endpoint))

    erasure.erase_user(stored.connections, alice.id)

    assert [str(threads[2])] * 2 == [data["thread_id"] for data in org.data(endpoint)]


def test_deliveries_of_threads_are_found_by_an_index(org: Org) -> None:
    """One page of an endpoint's is read at a time."""
    org.endpoint()
    org.ended()
    with noted(org.connections) as statements:
        deliveries.forget_threads(org.connections, org.id, [new_id()])
    page = next(one for one in statements if "DELETE" in one[0])

    in_order = "ix_webhook_deliveries_endpoint_id_created_at_id"
    assert {in_order, "pk_webhook_deliveries"} == Plans(org.connections, page).indexes()
