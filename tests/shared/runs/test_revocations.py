"""Runs of a revoked API key: they end, whatever their state, and nobody else's do."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy import func, text, update

from arkloop.shared.accounts import api_keys, suspensions
from arkloop.shared.ids import new_id
from arkloop.shared.runs import queries, revocations, sweep
from arkloop.shared.runs.agent_workers import news_topic
from arkloop.shared.storage.signals import Wake
from arkloop.shared.storage.tables.accounts import api_keys as api_keys_table
from tests.clients import Register
from tests.shared.runs.busy_thread import BusyThread
from tests.stored_runs import StoredRuns, ago


@pytest.fixture(autouse=True)
def nothing_left_over(stored: StoredRuns) -> Iterator[None]:
    """The sweep looks at everybody's runs: no active run of another test is left."""
    yield
    with stored.connections.transaction() as tx:
        tx.sql.execute(text("UPDATE runs SET state = 'cancelled', ended_at = now()"))


@pytest.fixture
def by_key(stored: StoredRuns) -> StoredRuns:
    """The same user by an API key."""
    with stored.connections.transaction() as tx:
        row, _ = api_keys.create(tx, stored.actor, name="test")
    return replace(stored, actor=replace(stored.actor, api_key_id=row.id))


def revoke(stored: StoredRuns, by_key: StoredRuns) -> None:
    assert by_key.actor.api_key_id is not None
    with stored.connections.transaction() as tx:
        api_keys.revoke(tx, stored.actor, by_key.actor.api_key_id)


def test_a_revoked_keys_queued_and_waiting_runs_are_cancelled_by_the_next_sweep(
    stored: StoredRuns, by_key: StoredRuns
) -> None:
    """No worker has to be alive; the runs' only last event is `run.cancelled`."""
    queued, waiting = by_key.create(), by_key.claimed()
    by_key.park(waiting, new_id())

    revoke(stored, by_key)
    sweep.sweep(stored.connections)

    assert ["cancelled", "cancelled"] == [stored.state(id_) for id_ in (queued, waiting.run_id)]
    assert ["run.cancelled"] == stored.types(queued)
    assert "run.cancelled" == stored.types(waiting.run_id)[-1]


def test_a_revoked_keys_queued_run_never_reaches_a_model(
    stored: StoredRuns, by_key: StoredRuns
) -> None:
    """A revoked key's queued run cannot be claimed, even before the sweep has ended it."""
    run_id = by_key.create()

    revoke(stored, by_key)

    assert stored.claim(run_id) is None
    assert "queued" == stored.state(run_id)
    with stored.connections.reading() as sql:
        found = queries.unclaimed(sql, older_than=0, limit=10, suspects=True)
    assert run_id not in found, "it does not take the place of runs that can be claimed"


def test_a_revoked_keys_run_never_gets_its_thread(stored: StoredRuns, by_key: StoredRuns) -> None:
    """The end before it starts the run behind it, and the sweep ends it; its message is gone."""
    thread, keyed = BusyThread(stored), BusyThread(by_key)
    keyed.id = thread.id
    first, revoked, behind = thread.say("a"), keyed.say("b"), thread.say("c")

    revoke(stored, by_key)
    thread.answer(first.run_id, "A")

    assert ["pending", "queued"] == [stored.state(one.run_id) for one in (revoked, behind)]
    sweep.sweep(stored.connections)
    assert (["run.cancelled"], "cancelled") == (
        stored.types(revoked.run_id),
        stored.state(revoked.run_id),
    )
    assert ["a", "A", "c"] == thread.texts()


def test_a_revoked_keys_executing_run_is_to_be_cancelled_for_the_revoker(
    stored: StoredRuns, by_key: StoredRuns
) -> None:
    """The row says so for every heartbeat, and a signal is sent to the worker at once."""
    claim = by_key.claimed()

    revoke(stored, by_key)

    row = stored.row(claim.run_id)
    assert ("executing", stored.actor.user_id) == (row["state"], row["cancel_requested_by"])
    key = stored.connections.keys.cancel(claim.run_id)
    assert str(stored.actor.user_id) == stored.connections.redis.get(key)


@pytest.mark.parametrize("by", ["key", "suspension"])
def test_an_agent_worker_hears_of_a_cancel_at_once(
    stored: StoredRuns, by_key: StoredRuns, by: str
) -> None:
    """The heartbeat that waits for news of the worker's runs is woken."""
    claim, key_id = by_key.claimed(), by_key.actor.api_key_id
    stored.set(claim.run_id, agent="mine")
    topic = news_topic(stored.row(claim.run_id)["owner"])

    with stored.connections.transaction() as tx:
        if by == "key" and key_id is not None:
            api_keys.revoke(tx, stored.actor, key_id)
        else:
            suspensions.suspend(tx, stored.actor.org_id, "Unpaid bills")
        assert Wake(topic, str(claim.run_id), everyone=True) in tx.after_commit


def test_a_run_that_was_created_as_its_key_was_revoked_is_found_by_the_sweep(
    stored: StoredRuns, by_key: StoredRuns
) -> None:
    """A process that accepted the key for two seconds more has created it."""
    revoke(stored, by_key)
    run_id, claim = by_key.create(), by_key.claimed()

    sweep.sweep(stored.connections)

    assert ("cancelled", "executing") == (stored.state(run_id), stored.state(claim.run_id))
    assert stored.row(claim.run_id)["cancel_requested_at"] is not None


def test_a_key_with_any_number_of_runs_is_revoked_in_one_request(
    stored: StoredRuns, by_key: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request cancels a batch, executing runs first, and the next sweep all others."""
    monkeypatch.setattr(revocations, "BATCH", 2)
    monkeypatch.setattr(sweep, "REPEAT_SECONDS", 600)
    others = [by_key.create() for _ in range(6)]
    executing = by_key.claimed().run_id

    revoke(stored, by_key)

    requested = [id_ for id_ in (*others, executing) if stored.row(id_)["cancel_requested_at"]]
    assert [others[0], executing] == requested
    started = stored.claim(others[-1])
    assert started is not None, "it starts before the sweep comes to it"
    sweep.sweep(stored.connections)
    assert stored.row(started.run_id)["cancel_requested_at"] is not None
    assert {"cancelled"} == {stored.state(id_) for id_ in others[:-1]}


def test_a_run_that_is_locked_does_not_hold_up_the_others(
    stored: StoredRuns, by_key: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that writes its events leaves a batch with one less, and not the last one."""
    revoke(stored, by_key)
    monkeypatch.setattr(revocations, "BATCH", 2)
    monkeypatch.setattr(sweep, "REPEAT_SECONDS", 600)
    run_ids = [by_key.create() for _ in range(4)]

    with stored.connections.transaction() as tx:
        locked = text("SELECT FROM runs WHERE id = :id FOR SHARE")
        tx.sql.execute(locked, {"id": run_ids[0]})
        sweep.sweep(stored.connections)

    assert ["queued", *["cancelled"] * 3] == [stored.state(run_id) for run_id in run_ids]


def test_a_sweep_ends_any_number_of_cancelled_runs(
    stored: StoredRuns, by_key: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It repeats a full batch at once."""
    run_ids = [by_key.create() for _ in range(3)]
    revoke(stored, by_key)
    monkeypatch.setattr(sweep, "BATCH", 1)
    monkeypatch.setattr(sweep, "REPEAT_SECONDS", 600)

    sweep.sweep(stored.connections)

    assert ["cancelled"] * 3 == [stored.state(run_id) for run_id in run_ids]


def test_cancelled_runs_end_in_turns_of_their_keys(
    stored: StoredRuns, by_key: StoredRuns, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key with very many runs does not delay the cancels of others, in its org and elsewhere."""
    of_key = [by_key.create() for _ in range(3)]
    revoke(stored, by_key)
    others = [stored, StoredRuns.of(stored.connections, register())]
    run_ids = [other.create(cancel_requested_at=func.now()) for other in others]
    monkeypatch.setattr(sweep, "BATCH", 3)
    monkeypatch.setattr(sweep, "REPEAT_SECONDS", 0)

    sweep.sweep(stored.connections)

    assert ["cancelled", "cancelled"] == [stored.state(run_id) for run_id in run_ids]
    assert ["cancelled", "queued", "queued"] == [stored.state(run_id) for run_id in of_key]


def test_a_sweep_leaves_the_rest_of_very_many_runs_to_the_next(
    stored: StoredRuns, by_key: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recovery of lost runs is not late because a key had a million runs."""
    revoke(stored, by_key)
    monkeypatch.setattr(revocations, "BATCH", 1)
    monkeypatch.setattr(sweep, "REPEAT_SECONDS", 0)
    run_ids = [by_key.create(), by_key.create()]

    sweep.sweep(stored.connections)
    assert ["cancelled", "queued"] == [stored.state(run_id) for run_id in run_ids]

    sweep.sweep(stored.connections)
    assert ["cancelled", "cancelled"] == [stored.state(run_id) for run_id in run_ids]


def test_runs_of_other_credentials_go_on(stored: StoredRuns, by_key: StoredRuns) -> None:
    """Runs of the owner's login and of other keys are not affected."""
    with stored.connections.transaction() as tx:
        other, _ = api_keys.create(tx, stored.actor, name="other")
    kept = [
        stored.create(),
        replace(stored, actor=replace(stored.actor, api_key_id=other.id)).create(),
    ]

    revoke(stored, by_key)
    sweep.sweep(stored.connections)

    assert ["queued", "queued"] == [stored.state(run_id) for run_id in kept]


def test_an_expired_keys_runs_go_on(stored: StoredRuns, by_key: StoredRuns) -> None:
    """An expiry is planned: what was started before it was wanted."""
    run_id = by_key.create()
    with stored.connections.transaction() as tx:
        tx.sql.execute(
            update(api_keys_table)
            .where(api_keys_table.c.id == by_key.actor.api_key_id)
            .values(expires_at=ago(seconds=1))
        )

    sweep.sweep(stored.connections)

    assert "queued" == stored.state(run_id)


def test_an_operator_cancels_runs_by_their_rows(stored: StoredRuns) -> None:
    """The statements that docs/how-to/operations.md shows for a removed user cancel runs in every
    state.
    """
    queued, waiting = stored.create(), stored.claimed()
    stored.park(waiting, new_id())
    for run_id in (queued, waiting.run_id):
        stored.set(run_id, cancel_requested_at=func.now())

    sweep.sweep(stored.connections)

    assert ["cancelled", "cancelled"] == [stored.state(id_) for id_ in (queued, waiting.run_id)]
