"""A run's life as the API changes it: guarded statements, also when everything happens at once."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy import select, text, update

from arkloop.shared.actors import Actor
from arkloop.shared.audit import audit_log, verification
from arkloop.shared.audit.audit_log import By, NewEntry
from arkloop.shared.claim import Claim
from arkloop.shared.errors import NotActive, NotWaiting, RunNotFound, StaleInput
from arkloop.shared.events import types
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import new_id
from arkloop.shared.runs import commands
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.signals import canceller_of
from arkloop.shared.storage.tables.runs import runs
from tests.postgres_releases import skip_before
from tests.query_plans import Plans, noted
from tests.shared.runs.delegated_runs import delegated
from tests.shared.runs.test_queries import beside
from tests.shared_app import PATIENT
from tests.stored_runs import StoredRuns, ago
from tests.waiting import eventually, in_parallel


def entry_of(stored: StoredRuns, run_id: UUID) -> NewEntry:
    return NewEntry(
        org_id=stored.actor.org_id,
        action="run.cancelled",
        by=By.actor(stored.actor),
        target=("run", run_id),
    )


def cancel_and_record(stored: StoredRuns, run_id: UUID, actor: Actor | None = None) -> None:
    entry = entry_of(stored, run_id)
    commands.cancel_and_record(stored.connections, actor or stored.actor, run_id, entry)


def recorded(stored: StoredRuns) -> list[str]:
    """Return the runs that the org's log names as cancelled, whose chain is unbroken."""
    org_id = stored.actor.org_id
    assert None is verification.verify(stored.connections, org_id).broken
    with stored.connections.reading() as sql:
        entries = audit_log.list_(sql, org_id, {"action": "run.cancelled"}, limit=99, before=None)
    return [entry.target_id for entry in reversed(entries)]


def waits_for_lock(stored: StoredRuns) -> bool:
    waiting = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with stored.connections.reading() as sql:
        return bool(sql.scalar(text(f"{waiting} AND datname = current_database()")))


def test_a_queued_run_is_cancelled_or_claimed(stored: StoredRuns) -> None:
    """A claim that won is stopped; a cancel that won leaves nothing to claim."""
    for _ in range(20):
        run_id = stored.create()

        def race(number: int, run_id: UUID = run_id) -> object:
            return stored.claim(run_id) if number else stored.cancel(run_id)

        claim = in_parallel(2, race)[1]
        row = stored.row(run_id)
        if claim is None:
            assert ("cancelled", ["run.cancelled"]) == (row["state"], stored.types(run_id))
        else:
            assert ("executing", ["run.started"]) == (row["state"], stored.types(run_id))
            assert row["cancel_requested_at"] is not None


def test_an_executing_run_is_asked_to_stop_once(stored: StoredRuns) -> None:
    """The first user to cancel is recorded, and the row is otherwise unchanged."""
    claim = stored.claimed()
    stored.cancel(claim.run_id)
    first = stored.row(claim.run_id)
    stored.cancel(claim.run_id)

    assert first == stored.row(claim.run_id)
    assert ("executing", stored.actor.user_id) == (first["state"], first["cancel_requested_by"])


def test_the_owner_of_an_executing_run_is_told_by_redis(stored: StoredRuns) -> None:
    """A key for a subscription that was down, a message for one that is there."""
    claim = stored.claimed()
    owner = stored.row(claim.run_id)["owner"]
    redis = stored.connections.redis
    with redis.pubsub() as pubsub:
        pubsub.subscribe(stored.connections.keys.worker_signals(owner))
        assert pubsub.get_message(timeout=60)["type"] == "subscribe"
        stored.cancel(claim.run_id)
        message = pubsub.get_message(timeout=60)

    assert f"cancel {claim.run_id} {stored.actor.user_id} plain" == message["data"]
    kept = redis.get(stored.connections.keys.cancel(claim.run_id))
    assert stored.actor.user_id == canceller_of(kept)


def test_the_cancel_of_an_executing_run_is_one_statement_with_its_entry(
    stored: StoredRuns,
) -> None:
    """The first entry of an org, too: its chain begins with it."""
    claim = stored.claimed()

    with noted(stored.connections) as statements:
        cancel_and_record(stored, claim.run_id)

    [statement] = statements
    plans = Plans(stored.connections, statement)
    for plan in (plans.of_values, plans.of_any):
        assert "pk_runs" in str(plan)
        # All runs that are being executed are in it.
        assert "ix_runs_owner" not in str(plan)
    assert stored.row(claim.run_id)["cancel_requested_by"] == stored.actor.user_id
    assert [str(claim.run_id)] == recorded(stored)


def test_a_cancel_is_planned_no_more_than_five_times(stored: StoredRuns) -> None:
    """Planning it takes longer than executing it, so a connection keeps its plan."""
    skip_before(stored.connections, 14)  # it does not count plans
    alone = stored.connections.with_pool(application="test", size=1, timeouts=PATIENT)
    own, worker_id = replace(stored, connections=alone), stored.worker()
    for claim in [stored.claimed(worker_id) for _ in range(12)]:
        cancel_and_record(own, claim.run_id)

    with alone.reading() as sql:
        [(custom, kept)] = sql.exec_driver_sql(
            "SELECT custom_plans, generic_plans FROM pg_prepared_statements"
            " WHERE strpos(statement, 'append_audit_entry') > 0"
        )
    alone.close_pool()
    assert custom <= 5 < custom + kept


@pytest.mark.parametrize("state", ["queued", "waiting", "ended", "foreign"])
def test_what_no_worker_executes_is_cancelled_with_its_entry(
    stored: StoredRuns, state: str
) -> None:
    """It ends at once. A run that had ended, or that the actor may not write, gets no entry."""
    run_id = stored.create()
    if state != "queued":
        claim = stored.held(run_id)
    if state == "waiting":
        stored.park(claim, new_id())
    if state == "ended":
        stored.finish(claim)
    actor = replace(stored.actor, org_id=new_id()) if state == "foreign" else stored.actor

    with pytest.raises(RunNotFound) if state == "foreign" else nullcontext():
        cancel_and_record(stored, run_id, actor)

    ended = state in ("queued", "waiting")
    assert ended == (stored.state(run_id) == "cancelled")
    assert ended == (stored.row(run_id)["cancel_requested_at"] is not None)
    assert [str(run_id)] * ended == recorded(stored)


@pytest.mark.parametrize("locked", ["run", "head"])
def test_a_cancel_waits_for_what_is_locked(stored: StoredRuns, locked: str) -> None:
    """It changes the rows as they are then, and its entry comes behind the other one."""
    claim = stored.claimed()
    cancel_and_record(stored, stored.claimed().run_id)
    before = recorded(stored)

    with stored.connections.transaction() as tx:
        if locked == "run":
            flagged = update(runs).where(runs.c.id == claim.run_id).values(has_followers=True)
            tx.sql.execute(flagged)
        else:
            audit_log.append(tx, entry_of(stored, new_id()))
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(cancel_and_record, stored, claim.run_id)
            eventually(lambda: waits_for_lock(stored))
            tx.sql.commit()
            waiting.result(60)

    row = stored.row(claim.run_id)
    assert (locked == "run", True) == (row["has_followers"], row["cancel_requested_at"] is not None)
    assert len(before) + (1 if locked == "run" else 2) == len(recorded(stored))
    assert str(claim.run_id) == recorded(stored)[-1]


def test_a_run_that_parks_while_it_is_cancelled_ends_once(stored: StoredRuns) -> None:
    """Its worker lets go before the request or behind it: either way one entry, and the end."""
    for _ in range(20):
        claim = stored.claimed()

        def race(number: int, claim: Claim = claim) -> object:
            if number:
                return stored.park(claim, new_id())
            return cancel_and_record(stored, claim.run_id)

        is_parked = in_parallel(2, race)[1]
        state = "cancelled" if is_parked else "executing"
        row = stored.row(claim.run_id)
        assert (state, True) == (row["state"], row["cancel_requested_at"] is not None)
        assert 1 == recorded(stored).count(str(claim.run_id))


def test_many_cancels_at_once_are_one_chain(stored: StoredRuns) -> None:
    """The cancels of one tree and of other runs, each sent twice, leave an entry each."""
    tree, others = stored.claimed(), [stored.claimed() for _ in range(3)]
    below = [stored.claimed() for _ in range(2)]
    for claim in below:
        stored.set(claim.run_id, parent_run_id=tree.run_id)
    cancelled = [claim.run_id for claim in (tree, *others)] * 2

    in_parallel(8, lambda number: cancel_and_record(stored, cancelled[number]))

    for claim in (tree, *others, *below):
        assert stored.row(claim.run_id)["cancel_requested_at"] is not None
    assert sorted(map(str, cancelled)) == sorted(recorded(stored))


def test_an_answer_queues_the_run_again(stored: StoredRuns) -> None:
    """The run is queued at once, without the question, and with the waiting time counted."""
    claim = stored.claimed()
    stored.park(claim, request_id := new_id())
    stored.sent.clear()
    stored.answer(claim.run_id, "blue", request_id)

    row = stored.row(claim.run_id)
    assert ("queued", None, None, None) == tuple(
        row[name] for name in ("state", "pending_input", "waiting_since", "input_expires_at")
    )
    assert [claim.run_id] == stored.sent


@pytest.mark.parametrize(("contents", "taken"), [(["same"] * 8, 8), (list("abcdefgh"), 1)])
def test_of_many_answers_at_once_one_is_stored(
    stored: StoredRuns, contents: list[str], taken: int
) -> None:
    """The same content with the same request id is the same answer; other content is stale."""
    claim = stored.claimed()
    stored.park(claim, request_id := new_id())

    def answer(number: int) -> bool:
        try:
            stored.answer(claim.run_id, contents[number], request_id)
        except StaleInput:
            return False
        return True

    assert taken == sum(in_parallel(8, answer))
    assert stored.claim(claim.run_id) is not None
    assert 1 == stored.types(claim.run_id).count("run.input_received")


def test_an_answer_that_comes_too_late_is_refused_by_name(stored: StoredRuns) -> None:
    """`NotWaiting` while the run executes or no longer waits, `NotActive` after its end."""
    claim = stored.claimed()
    with pytest.raises(NotWaiting):
        stored.answer(claim.run_id, "x")
    stored.cancel(queued := stored.create())
    with pytest.raises(NotActive):
        stored.answer(queued, "x")
    stored.park(claim, new_id())
    with pytest.raises(StaleInput):
        stored.answer(claim.run_id, "x", new_id())
    stored.set(claim.run_id, input_expires_at=ago(seconds=1))
    with pytest.raises(NotWaiting, match="The input request has expired"):
        stored.answer(claim.run_id, "x")
    assert "waiting" == stored.state(claim.run_id)


def test_a_waiting_run_is_cancelled_or_answered(stored: StoredRuns) -> None:
    """Whichever commits first: an accepted answer is there, and the run ends either way."""
    for _ in range(20):
        claim = stored.claimed()
        stored.park(claim, request_id := new_id())

        def race(number: int, run_id: UUID = claim.run_id, request: UUID = request_id) -> str:
            try:
                stored.answer(run_id, "x", request) if number else stored.cancel(run_id)
            except NotActive:
                return "too late"
            return "done"

        cancelled, _ = in_parallel(2, race)
        assert ("done", "cancelled") == (cancelled, stored.state(claim.run_id))
        assert "run.cancelled" == stored.types(claim.run_id)[-1]


def test_the_end_of_a_run_that_nobody_holds_has_its_totals(stored: StoredRuns) -> None:
    """The totals are those of the last `run.cost` in the event log."""
    claim = stored.claimed()
    usage = Usage(input_tokens=5, output_tokens=1)
    stored.write(claim, types.MessageDelta("text"), types.RunCost(usage, 0.25))
    stored.set(claim.run_id, state="waiting", pending_input={"request_id": str(new_id())})
    stored.cancel(claim.run_id)

    last = stored.events(claim.run_id)[-1]
    assert (4, "run.cancelled") == (last.seq, last.type)
    data = json.loads(last.payload)["data"]
    assert (5, 1, 0.25) == (
        data["usage"]["input_tokens"],
        data["usage"]["output_tokens"],
        data["cost_usd"],
    )
    assert [("text", True)] == stored.messages(claim.run_id)


def test_a_sub_run_ends_while_it_and_its_parent_get_access(stored: StoredRuns) -> None:
    """The end of the sub-run has its row and needs that of its parent: there is no deadlock."""
    root = stored.claimed()
    child = delegated(stored, root)
    for run_id in (root.run_id, child.run_id):
        stored.set(run_id, state=RunState.WAITING, owner=None, pending_input={"kind": "question"})
    pages = [(run_id, b"") for run_id in (root.run_id, child.run_id)]

    def visit() -> None:
        with stored.connections.transaction() as tx:
            commands.answer_visits(tx, pages)

    with stored.connections.transaction() as tx:
        lock = select(runs.c.id).with_for_update(key_share=True)
        tx.sql.execute(lock.where(runs.c.id == child.run_id))
        join = beside(stored.connections, visit)
        tx.sql.execute(lock.where(runs.c.id == root.run_id))
    join()
