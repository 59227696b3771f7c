"""Suspended orgs: what becomes of their runs."""

import json
from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import text, update

from arkloop.shared.accounts import suspensions
from arkloop.shared.errors import InvalidRequest, OrgNotFound
from arkloop.shared.ids import new_id
from arkloop.shared.monitoring import installation
from arkloop.shared.runs import explanation, queries, revocations, sweep
from arkloop.shared.runs.fair_queue import FairQueue, place_of
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.accounts import orgs
from tests.clients import Register, User
from tests.query_plans import Plans, noted
from tests.stored_runs import StoredRuns, ago


@pytest.fixture(autouse=True)
def nothing_left_over(stored: StoredRuns) -> None:
    """End the runs of other tests: the sweep looks at everybody's."""
    with stored.connections.transaction() as tx:
        tx.sql.execute(update(orgs).values(suspended_at=None))
        tx.sql.execute(
            text("UPDATE runs SET state = 'cancelled', ended_at = now() WHERE ended_at IS NULL")
        )


def suspend(stored: StoredRuns, reason: str = "Unpaid bills") -> None:
    with stored.connections.transaction() as tx:
        suspensions.suspend(tx, stored.actor.org_id, reason)


def resume(stored: StoredRuns) -> None:
    with stored.connections.transaction() as tx:
        suspensions.resume(tx, stored.actor.org_id)


def unclaimed(stored: StoredRuns) -> list[UUID]:
    with stored.connections.reading() as sql:
        return queries.unclaimed(sql, older_than=0, limit=10, suspects=True)


def test_a_suspension_cancels_runs_of_its_org_alone(
    stored: StoredRuns, connections: Connections, register: Register
) -> None:
    """A run of another suspended org is left to the sweep, and cancelled for its creator."""
    other = StoredRuns.of(connections, register())
    own, others = stored.claimed().run_id, other.claimed().run_id
    with connections.transaction() as tx:
        tx.sql.execute(
            update(orgs).where(orgs.c.id == other.actor.org_id).values(suspended_at=ago(seconds=1))
        )
        suspensions.suspend(tx, stored.actor.org_id, "Abuse", by_user_id=other.actor.user_id)

    assert other.actor.user_id == stored.row(own)["cancel_requested_by"]
    assert None is other.row(others)["cancel_requested_at"]
    sweep.sweep(connections)
    assert other.actor.user_id == other.row(others)["cancel_requested_by"]


@pytest.mark.parametrize(("queued", "used"), [(3600, 3500), (30, 3670)])
def test_a_suspension_does_not_count_for_the_time_limit_of_a_run(
    stored: StoredRuns, queued: int, used: int
) -> None:
    """What a started run has spent in the queue of a suspended org is not used, and no more is."""
    claim, new = stored.claimed(), stored.create()
    columns = {"state": RunState.QUEUED, "resume_reason": "input"}
    begun = {"started_at": ago(seconds=3700), "queued_at": ago(seconds=queued)}
    stored.set(claim.run_id, **columns, **begun)
    suspend(stored)
    with stored.connections.transaction() as tx:
        since = {"suspended_at": ago(seconds=200)}
        tx.sql.execute(update(orgs).where(orgs.c.id == stored.actor.org_id).values(since))

    resume(stored)

    again = stored.held(claim.run_id)
    assert used == pytest.approx(again.used_seconds, abs=25)
    assert 0 == stored.row(new)["waiting_ms"]


def test_a_suspension_that_began_while_the_clock_was_ahead_takes_no_time(
    stored: StoredRuns,
) -> None:
    """A started run that was queued meanwhile has used no more than before."""
    claim = stored.claimed()
    stored.set(claim.run_id, state=RunState.QUEUED, queued_at=ago(seconds=-3600))
    suspend(stored)

    resume(stored)

    assert 0 == stored.row(claim.run_id)["waiting_ms"]


def test_a_queued_run_stays_queued_until_its_org_is_resumed(stored: StoredRuns) -> None:
    """No worker claims it, by a message or by a look at the queue, and no sweep ends it."""
    run_id = stored.create()
    suspend(stored)

    assert None is stored.claim(run_id)
    assert run_id not in unclaimed(stored)
    sweep.sweep(stored.connections)
    assert "queued" == stored.state(run_id)

    resume(stored)
    assert run_id in unclaimed(stored)
    assert stored.claim(run_id) is not None


def test_an_executing_run_is_cancelled_and_says_why(stored: StoredRuns) -> None:
    """The last event has the reason, and so has the explanation."""
    claim = stored.claimed()
    suspend(stored)
    row = stored.row(claim.run_id)
    assert (True, "org_suspended") == (
        row["cancel_requested_at"] is not None,
        row["cancel_reason"],
    )

    stored.set_worker(row["owner"], seen_at=ago(seconds=120))
    sweep.sweep(stored.connections)

    last = stored.events(claim.run_id)[-1]
    reason = json.loads(last.payload)["data"]["cancel_reason"]
    assert ("run.cancelled", "org_suspended") == (last.type, reason)
    sentence = explanation.explain(stored.connections, stored.actor, claim.run_id)[1].sentence
    assert "when its organization was suspended" in sentence


def test_a_run_that_was_claimed_at_that_moment_is_cancelled_by_the_sweep(
    stored: StoredRuns,
) -> None:
    """Its claim had begun before the suspension was committed."""
    claim = stored.claimed()
    with stored.connections.transaction() as tx:
        tx.sql.execute(
            update(orgs).where(orgs.c.id == stored.actor.org_id).values(suspended_at=ago(seconds=1))
        )
    assert None is stored.row(claim.run_id)["cancel_requested_at"]

    sweep.sweep(stored.connections)

    assert "org_suspended" == stored.row(claim.run_id)["cancel_reason"]


def test_a_waiting_run_waits_on_and_can_be_answered_after_that(stored: StoredRuns) -> None:
    """It is neither cancelled nor answered meanwhile."""
    waiting = stored.claimed()
    assert stored.park(waiting, new_id())
    suspend(stored)
    sweep.sweep(stored.connections)
    assert "waiting" == stored.state(waiting.run_id)

    resume(stored)
    stored.answer(waiting.run_id, "Yes")
    assert stored.claim(waiting.run_id) is not None


def test_no_run_of_an_org_that_has_left_ends(stored: StoredRuns) -> None:
    """Where its copy is, it ends, and is charged; here it does if the move is taken back."""
    claim, cancelled = stored.claimed(), stored.create(cancel_requested_at=ago(seconds=60))
    stored.park(claim, new_id(), expires_in=60)
    stored.set(asking := claim.run_id, input_expires_at=ago(seconds=60))
    suspend(stored)
    of_org = orgs.c.id == stored.actor.org_id
    with stored.connections.transaction() as tx:
        tx.sql.execute(update(orgs).where(of_org).values(moved_to=new_id()))

    sweep.sweep(stored.connections)

    assert ["waiting", "queued"] == [*map(stored.state, (asking, cancelled))]
    with stored.connections.reading() as sql:
        settings = stored.connections.settings
        stuck = installation.stuck_runs(sql, settings, queued_seconds=60, silent_seconds=60)
    assert not {asking, cancelled} & {row.id for row in stuck}
    with stored.connections.transaction() as tx:
        suspensions.resume(tx, stored.actor.org_id, despite_copy=True)
    sweep.sweep(stored.connections)
    assert ["failed", "cancelled"] == [*map(stored.state, (asking, cancelled))]


def test_a_run_that_is_to_be_cancelled_while_its_org_leaves_is_stuck(
    stored: StoredRuns, connections: Connections
) -> None:
    """Its copy was broken off, and ends it when it is repeated; others wait as in any move."""
    waiting, cancelled = stored.claimed(), stored.create(cancel_requested_at=ago(seconds=60))
    stored.park(waiting, new_id(), expires_in=60)
    stored.set(waiting.run_id, input_expires_at=ago(seconds=60))
    suspend(stored)
    left = update(orgs).where(orgs.c.id == stored.actor.org_id)
    with connections.transaction() as tx:
        tx.sql.execute(left.values(moved_to=new_id(), copy_began_at=ago(seconds=60)))

    with connections.reading() as sql:
        stuck = installation.stuck_runs(
            sql, connections.settings, queued_seconds=60, silent_seconds=60
        )

    assert [(cancelled, "cancelling")] == [(row.id, row.problem) for row in stuck]


def test_no_orphan_of_an_org_that_has_left_ends(stored: StoredRuns) -> None:
    """A sub-run whose parent has ended is cancelled where the org is resumed."""
    parent = stored.claimed()
    stored.finish(parent)
    orphan = stored.create(parent_run_id=parent.run_id)
    suspend(stored)
    with stored.connections.transaction() as tx:
        left = update(orgs).where(orgs.c.id == stored.actor.org_id).values(moved_to=new_id())
        tx.sql.execute(left)

    sweep.sweep(stored.connections)
    assert ("queued", None) == (stored.state(orphan), stored.row(orphan)["cancel_requested_at"])

    with stored.connections.transaction() as tx:
        suspensions.resume(tx, stored.actor.org_id, despite_copy=True)
    sweep.sweep(stored.connections)
    assert "cancelled" == stored.state(orphan)


def test_runs_of_other_orgs_go_on(
    stored: StoredRuns, connections: Connections, register: Register
) -> None:
    """Nothing of theirs is cancelled or held up."""
    other = StoredRuns.of(connections, register())
    executing, queued = other.claimed(), other.create()
    suspend(stored)
    sweep.sweep(stored.connections)

    assert "executing" == other.state(executing.run_id)
    assert None is other.row(executing.run_id)["cancel_requested_at"]
    assert other.claim(queued) is not None


@pytest.mark.parametrize("suspended", [1, 5])
def test_a_long_queue_of_suspended_orgs_takes_no_turns(
    stored: StoredRuns, register: Register, make_run: Callable[..., UUID], suspended: int
) -> None:
    """Each message starts a run of an org that is not suspended, and their places say so."""

    def queued(user: User, count: int) -> list[UUID]:
        columns = {"state": RunState.QUEUED, "queued_at": ago(seconds=100)}
        return [make_run(user, user.thread(), **columns) for _ in range(count)]

    closed = [register() for _ in range(suspended)]
    held = [run_id for user in closed for run_id in queued(user, 3)]
    others = [run_id for _ in range(2) for run_id in queued(register(), 3)]
    with stored.connections.transaction() as tx:
        for user in closed:
            suspensions.suspend(tx, user.org_id, "Unpaid bills")
    fair, started = FairQueue(), list[UUID]()
    with stored.connections.reading() as sql:
        place = place_of(sql, others[0])
        assert place is not None
        assert place.ahead <= 1
    for message in [*held[:3], *others[3:]]:
        with stored.connections.reading() as sql:
            [chosen] = fair.choose(sql, [message])
        if stored.claim(chosen) is not None:
            started.append(chosen)

    assert {*others} == {*started}


def test_where_only_suspended_orgs_have_runs_nothing_starts(stored: StoredRuns) -> None:
    """A message that names one of them ends with that."""
    run_id = stored.create()
    suspend(stored)
    with stored.connections.reading() as sql:
        assert [run_id] == FairQueue().choose(sql, [run_id])
    assert None is stored.claim(run_id)


def test_runs_of_suspended_orgs_are_found_by_indexes(stored: StoredRuns) -> None:
    """The sweep looks for them every two seconds: it reads the orgs that are suspended alone."""
    with noted(stored.connections) as statements, stored.connections.transaction() as tx:
        revocations.cancel_runs_of_suspended_orgs(tx)
    [cancel] = [one for one in statements if "JOIN orgs" in one[0]]

    found = Plans(stored.connections, cancel).indexes()

    by_org = {"ix_orgs_suspended", "ix_runs_unended_org_id_state"}
    assert by_org == found - {"pk_runs"}


def test_queued_runs_of_a_resumed_org_are_found_by_an_index(stored: StoredRuns) -> None:
    """Runs of other orgs, and those that have ended, are not read."""
    suspend(stored)
    with noted(stored.connections) as statements:
        resume(stored)
    [longer] = [one for one in statements if "waiting_ms" in one[0]]

    indexes = {"ix_runs_unended_org_id_state", "pk_runs", "pk_agent_runs"}
    Plans(stored.connections, longer).check(indexes)


def test_a_suspension_keeps_its_beginning(stored: StoredRuns) -> None:
    """The reason may be another one; an org that is resumed has neither."""
    suspend(stored)
    with stored.connections.reading() as sql:
        first = suspensions.get(sql, stored.actor.org_id)
    suspend(stored, " Abuse ")
    with stored.connections.reading() as sql:
        second = suspensions.get(sql, stored.actor.org_id)
    assert (first.suspended_at, "Abuse") == (second.suspended_at, second.suspension_reason)

    resume(stored)
    with stored.connections.transaction() as tx:
        assert False is suspensions.resume(tx, stored.actor.org_id)[1]
    with stored.connections.reading() as sql:
        third = suspensions.get(sql, stored.actor.org_id)
    assert (None, None) == (third.suspended_at, third.suspension_reason)


@pytest.mark.parametrize("reason", ["", "  ", "x" * 501, "two\nlines", "\udcff"])
def test_a_bad_reason_is_refused(stored: StoredRuns, reason: str) -> None:
    """Nothing is suspended then."""
    with pytest.raises(InvalidRequest):
        suspend(stored, reason)


def test_an_org_that_does_not_exist_is_not_found(stored: StoredRuns) -> None:
    """Suspending and resuming it raise the same error."""
    with stored.connections.transaction() as tx:
        with pytest.raises(OrgNotFound):
            suspensions.suspend(tx, new_id(), "Unpaid bills")
        with pytest.raises(OrgNotFound):
            suspensions.resume(tx, new_id())
