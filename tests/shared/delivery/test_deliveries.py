"""Deliveries: where they come from, when they are due, and what becomes of them."""

import json
from typing import Any

import pytest
from sqlalchemy import Row, func, select, text

from arkloop.shared.delivery import deliveries, endpoints
from arkloop.shared.errors import (
    WebhookDeliveryNotFound,
    WebhookEndpointDisabled,
    WebhookEndpointNotFound,
)
from arkloop.shared.events.types import RunCancelled, RunError
from arkloop.shared.ids import new_id
from arkloop.shared.runs import retention
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.delivery import webhook_deliveries
from tests.shared.delivery.delivering_org import BROKEN, OK, Org
from tests.stored_runs import USED, ago, end_run, numbered


def test_an_end_is_one_delivery_for_each_endpoint_that_subscribes(org: Org) -> None:
    """Each enabled endpoint of the org that subscribes to its type has it, and no other one."""
    all_of_them, failures = org.endpoint(), org.endpoint("run.failed")
    disabled = org.endpoint()
    with org.connections.transaction() as tx:
        endpoints.change(tx, org.id, disabled, {"enabled": False})

    completed = org.ended(message=(new_id(), "Hello."))
    failed = org.ended(state=RunState.FAILED, error=RunError("a.b", "why", False))

    assert [("run.completed", "pending"), ("run.failed", "pending")] == org.states(all_of_them)
    assert [("run.failed", "pending")] == org.states(failures)
    assert [] == org.states(disabled)
    first, second = org.data(all_of_them)
    run = org.stored.row(completed)
    [*_, last] = org.stored.events(completed)
    expected = {
        "run_id": str(completed),
        "thread_id": str(run["thread_id"]),
        "persona_id": "assistant@1",
        "status": "completed",
        "seq": last.seq,
        "end_user_id": None,
        "metadata": {},
        "output": "Hello.",
        "event": json.loads(last.payload)["data"],
    }
    assert expected == first
    assert (str(failed), "failed", None) == (second["run_id"], second["status"], second["output"])
    assert "a.b" == second["event"]["error"]["code"]


def test_a_question_and_a_cancel_without_a_worker_are_delivered(org: Org) -> None:
    """A run that waits for input is reported, and so is its end, which no worker brings about."""
    endpoint = org.endpoint()
    claim = org.stored.claimed()
    request_id = new_id()
    assert org.stored.park(claim, request_id)
    org.stored.cancel(claim.run_id)

    assert ["run.waiting_for_input", "run.cancelled"] == [kind for kind, _ in org.states(endpoint)]
    asked, cancelled = org.data(endpoint)
    assert ("waiting_for_input", str(request_id)) == (asked["status"], asked["event"]["request_id"])
    assert ("cancelled", True) == (cancelled["status"], cancelled["seq"] > asked["seq"])


def test_an_end_that_is_rolled_back_is_not_delivered(org: Org) -> None:
    """A delivery is stored in the transaction of its event."""
    endpoint = org.endpoint()
    claim = org.stored.claimed()
    ended = numbered(claim.last_seq, RunCancelled(USED.usage, USED.cost_usd))
    with pytest.raises(ZeroDivisionError), org.connections.transaction() as tx:
        assert end_run(tx, claim, RunState.CANCELLED, ended)
        count = tx.sql.scalar(select(func.count()).select_from(webhook_deliveries))
        raise ZeroDivisionError

    assert 1 == count
    assert [] == org.states(endpoint)


def test_large_parts_are_left_out(org: Org) -> None:
    """An answer or an event of more than 8 KiB is null, and has to be read from the run."""
    endpoint = org.endpoint()
    org.ended(message=(new_id(), "ä" * 4097))
    org.ended(message=(new_id(), "ä" * 4096))
    org.ended(state=RunState.FAILED, error=RunError("a.b", "x" * 8192, False))

    assert [None, "ä" * 4096, None] == [data["output"] for data in org.data(endpoint)]
    assert [False, False, True] == [data["event"] is None for data in org.data(endpoint)]


def test_events_of_a_run_are_claimed_in_order(org: Org) -> None:
    """An event waits until the one before it in its run is delivered or dead; those of other
    endpoints and runs do not wait for it.
    """
    one, other = org.endpoint(), org.endpoint()
    claim = org.stored.claimed()
    org.stored.park(claim, new_id())
    org.stored.cancel(claim.run_id)
    run_ids = {org.ended() for _ in range(2)}

    first = org.claim()

    waiting = {row.endpoint_id: row for row in first if row.type == "run.waiting_for_input"}
    assert {one, other} == set(waiting)
    assert 4 == sum(row.type == "run.completed" for row in first) and 2 == len(run_ids)
    assert 6 == len(first)
    org.tried(waiting[one], **BROKEN)
    org.tried(waiting[other], **OK)
    assert [(other, "run.cancelled")] == [(row.endpoint_id, row.type) for row in org.claim()]
    org.set(waiting[one].id, due_at=ago(seconds=1), tried_since=ago(days=4))
    [again] = org.claim()
    assert (waiting[one].id, 2) == (again.id, again.attempts)
    org.tried(again, **BROKEN)
    assert [(one, "run.cancelled")] == [(row.endpoint_id, row.type) for row in org.claim()]


def test_an_attempt_that_is_never_recorded_is_repeated_after_its_lease(org: Org) -> None:
    """The attempt of a process that dies is repeated; what it reports after that counts only if it
    is a success.
    """
    endpoint = org.endpoint()
    org.ended()
    [lost] = org.claim()
    assert [] == org.claim()
    org.set(lost.id, leased_until=ago(seconds=1))
    [again] = org.claim()
    assert (lost.id, lost.data, 2) == (again.id, again.data, again.attempts)

    org.tried(lost, **BROKEN)
    assert [("run.completed", "pending")] == org.states(endpoint)
    assert [] == org.claim()
    org.tried(lost, **OK)

    assert [("run.completed", "delivered")] == org.states(endpoint)


def test_attempts_grow_rarer_for_three_days(org: Org) -> None:
    """After each failure the next attempt comes later, never sooner than the schedule says; after
    three days the delivery is dead.
    """
    endpoint = org.endpoint()
    org.ended()
    pauses = org.connections.settings.webhook_retry_seconds
    assert sum(pauses) >= 3 * 86_400
    for expected in pauses:
        [row] = org.claim()
        org.tried(row, **BROKEN)
        [listed] = org.listed(endpoint)
        pause = (listed.due_at - listed.tried_at).total_seconds()
        assert "pending" == listed.state
        assert expected <= pause <= expected * 1.25
        org.set(row.id, due_at=ago(seconds=1))

    org.set(row.id, tried_since=ago(seconds=sum(pauses)))
    [last] = org.claim()
    org.tried(last, error="The server did not respond in time.")

    [dead] = org.listed(endpoint, "dead")
    assert (10, None, "The server did not respond in time.") == (
        dead.attempts,
        dead.response_status,
        dead.error,
    )
    assert [] == org.listed(endpoint, "pending")
    assert org.shown(endpoint).failing_since is not None


def test_a_receiver_that_is_gone_gets_nothing_more(org: Org) -> None:
    """After a 410 the delivery is dead and the endpoint disabled; what waits for it waits until it
    is enabled again.
    """
    endpoint = org.endpoint()
    org.ended()
    org.ended()
    [first] = org.claim(most=1)
    org.tried(first, response_status=410)

    assert (False, "gone") == (org.shown(endpoint).is_enabled, org.shown(endpoint).disabled_reason)
    assert ["dead", "pending"] == [state for _, state in org.states(endpoint)]
    assert [] == org.claim()
    org.ended()
    assert 2 == len(org.states(endpoint))
    with pytest.raises(WebhookEndpointDisabled), org.connections.transaction() as tx:
        deliveries.test(tx, org.id, endpoint)

    with org.connections.transaction() as tx:
        enabled = endpoints.change(tx, org.id, endpoint, {"enabled": True})
        assert 1 == deliveries.replay(tx, org.id, endpoint)

    assert (True, None) == (enabled.is_enabled, enabled.disabled_reason)
    [again] = org.claim(most=1)
    assert again.id in {row.id for row in org.listed(endpoint)}


def test_a_former_address_that_is_gone_disables_nothing(org: Org) -> None:
    """A 410 that comes after the change of the address is a failure like others."""
    endpoint = org.endpoint()
    org.ended()
    [row] = org.claim()
    with org.connections.transaction() as tx:
        endpoints.change(tx, org.id, endpoint, {"url": "https://new.example/hook"})

    org.tried(row, response_status=410)

    assert org.shown(endpoint).is_enabled
    assert [("run.completed", "pending")] == org.states(endpoint)


@pytest.mark.parametrize("status", [302, 404, 429, 500])
def test_every_status_but_2xx_is_a_failure(org: Org, status: int) -> None:
    """Redirects are not followed; the delivery is tried again."""
    endpoint = org.endpoint()
    org.ended()
    [row] = org.claim()
    org.tried(row, response_status=status)

    [listed] = org.listed(endpoint)
    assert ("pending", status, True) == (
        listed.state,
        listed.response_status,
        listed.due_at > listed.tried_at,
    )


def test_an_endpoint_with_many_deliveries_hides_no_other_one(org: Org) -> None:
    """A few deliveries of each endpoint are claimed at a time: fewer while some are in progress,
    one while it fails.
    """
    flooded, failing = org.endpoint("run.completed"), org.endpoint("run.failed")
    for _ in range(5):
        org.ended()
        org.ended(state=RunState.FAILED, error=RunError("a.b", "why", False))
    with org.connections.transaction() as tx:
        fails = text("UPDATE webhook_endpoints SET failing_since = now() WHERE id = :id")
        tx.sql.execute(fails, {"id": failing})

    def counts(rows: list[Row[Any]]) -> tuple[int, int]:
        found = [row.endpoint_id for row in rows]
        return found.count(flooded), found.count(failing)

    with org.connections.statement() as tx:
        claim = deliveries.claim
        busy = {flooded: 1}
        assert (2, 1) == counts(list(claim(tx, capacity=50, most_per_endpoint=3, busy=busy)))
    with org.connections.statement() as tx:
        busy = {flooded: 3, failing: 1}
        assert (0, 0) == counts(list(claim(tx, capacity=50, most_per_endpoint=3, busy=busy)))


def test_an_endpoint_that_responds_again_gets_what_waits_for_it(org: Org) -> None:
    """After the first success nothing waits for the rest of its pause."""
    endpoint = org.endpoint()
    first, second = org.ended(), org.ended()
    for row in org.claim():
        org.tried(row, **BROKEN)
    assert [] == org.claim()
    with org.connections.transaction() as tx:
        failed = "UPDATE webhook_endpoints SET failing_since = now() - interval '1 minute'"
        tx.sql.execute(text(failed))
    org.ended()

    [new] = org.claim()
    org.tried(new, **OK)

    assert org.shown(endpoint).failing_since is None
    assert {first, second} == {row_of(org, row).run_id for row in org.claim()}


def row_of(org: Org, claimed: Row[Any]) -> Row[Any]:
    with org.connections.reading() as sql:
        return deliveries.find(sql, org.id, claimed.endpoint_id, claimed.id)


def test_deliveries_are_replayed_under_their_ids(org: Org) -> None:
    """Dead ones, or those that are named, begin anew; an unknown id replays nothing."""
    endpoint, other = org.endpoint(), org.endpoint()
    run_id = org.ended()
    for row in org.claim():
        org.set(row.id, tried_since=ago(days=4))
        org.tried(row, **(BROKEN if row.endpoint_id == endpoint else OK))
    [dead], [delivered] = org.listed(endpoint), org.listed(other)
    assert ("dead", "delivered") == (dead.state, delivered.state)

    with org.connections.transaction() as tx:
        assert 1 == deliveries.replay(tx, org.id, endpoint)
        assert 0 == deliveries.replay(tx, org.id, endpoint)
        assert 1 == deliveries.replay(tx, org.id, other, [delivered.id])
        with pytest.raises(WebhookDeliveryNotFound):
            deliveries.replay(tx, org.id, endpoint, [dead.id, delivered.id])
        with pytest.raises(WebhookEndpointNotFound):
            deliveries.replay(tx, new_id(), endpoint)

    again = org.claim()
    assert {dead.id, delivered.id} == {row.id for row in again}
    assert [(run_id, 1)] * 2 == [(row_of(org, row).run_id, row.attempts) for row in again]


def test_old_deliveries_are_deleted(org: Org) -> None:
    """The retention deletes deliveries that are older than a month, whatever their state."""
    endpoint = org.endpoint()
    for _ in range(2):
        org.ended()
    old, young = org.listed(endpoint)
    org.set(old.id, created_at=ago(days=36))
    org.set(young.id, created_at=ago(days=34))

    retention.forget(org.connections)

    assert [young.id] == [row.id for row in org.listed(endpoint)]


def test_a_deleted_endpoint_gets_nothing(org: Org) -> None:
    """Its pending deliveries are not claimed, and events find it no more."""
    endpoint = org.endpoint()
    org.ended()
    with org.connections.transaction() as tx:
        endpoints.remove(tx, org.id, endpoint)

    org.ended()

    assert [] == org.claim()
    with pytest.raises(WebhookEndpointNotFound):
        org.listed(endpoint)
