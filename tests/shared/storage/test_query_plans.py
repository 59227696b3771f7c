"""The frequent queries read an index, in its order, and stop: on a history with many rows."""

import re
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert, select, text

from arkloop.api.streaming import stream_pages
from arkloop.api.streaming.run_heads import RunHeads
from arkloop.shared.actors import PERMISSIONS_OF_ROLE, Actor
from arkloop.shared.events import event_log
from arkloop.shared.ids import new_id
from arkloop.shared.runs import (
    claims,
    fair_queue,
    next_runs,
    personal_data,
    queries,
    revocations,
    run_limits,
    sweep,
    tidying,
    timeline,
)
from arkloop.shared.runs.personal_data import Conversations
from arkloop.shared.runs.states import STATUSES
from arkloop.shared.storage.arrays import TextArray, plain_array
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.runs import runs as runs_table
from arkloop.shared.storage.tables.runs import workers
from arkloop.shared.storage.tables.threads import messages as messages_table
from arkloop.shared.threads import threads
from arkloop.worker.process import history as conversation_history
from arkloop.worker.process import lease
from bench.history.seeding import History
from tests.query_plans import Plans, noted, only, sent

pytestmark = pytest.mark.owner

#: Sorts of few rows: those of the active runs, or of one thread, are few for other reasons.
FEW = {"ix_runs_owner", "ix_runs_queued_at", "ix_runs_input_expires_at"}
LIMIT = 51
#: Of active sub-runs there are few; the recursion goes by the index of all.
SUB_RUNS = {"ix_runs_active_parent_run_id", "ix_runs_parent_run_id_created_at_id"}
#: The place of a run in the queue of its thread.
QUEUED = "ix_runs_queued_org_id_end_user_id_queued_at"
WAITING = "ix_runs_waiting_thread_id_position"


@pytest.fixture(scope="module")
def actor(written: History) -> Actor:
    return Actor(
        org_id=written.main.id,
        user_id=written.main.members[0],
        role="owner",
        permissions=PERMISSIONS_OF_ROLE["owner"],
    )


def place_in(connections: Connections, run_id: UUID) -> Any:
    place = select(runs_table.c.created_at, runs_table.c.id).where(runs_table.c.id == run_id)
    with connections.reading() as sql:
        return tuple(sql.execute(place).one())


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("status", [None, *STATUSES])
def test_a_page_of_runs(
    connections: Connections, written: History, actor: Actor, status: str | None, deep: bool
) -> None:
    """One index gives the rows in their order; where two states are one status, too."""
    before = place_in(connections, written.some_runs[250]) if deep else None

    plans = only(
        connections,
        lambda sql: queries.list_of_org(
            sql, actor, limit=LIMIT, before=before, filters={"status": status} if status else {}
        ),
    )

    state = "_state" if status else ""
    plans.check({f"ix_runs_visible_to{state}_created_at_id", "pk_runs", WAITING})


@pytest.mark.parametrize("deep", [False, True])
def test_a_page_of_threads(
    connections: Connections, written: History, actor: Actor, deep: bool
) -> None:
    """A page of threads, with the active run of each, is read by indexes."""
    before = place_in(connections, written.some_runs[250]) if deep else None

    plans = only(connections, lambda sql: threads.list_(sql, actor, limit=LIMIT, before=before))

    index = "ix_threads_listed_visible_to_created_at_id"
    plans.check({index, "pk_threads", "uq_runs_unended_thread_id"})


def test_a_page_of_the_threads_of_sub_runs(
    connections: Connections, written: History, actor: Actor
) -> None:
    """A page of the threads of one run's sub-runs is read by an index."""
    filters = {"parent_run_id": written.some_runs[0]}

    plans = only(
        connections,
        lambda sql: threads.list_(sql, actor, limit=LIMIT, before=None, filters=filters),
    )

    index = "ix_threads_parent_run_id_created_at_id"
    plans.check({index, "pk_threads", "uq_runs_unended_thread_id"})


def test_a_page_of_a_threads_runs(connections: Connections, written: History, actor: Actor) -> None:
    """A page of the largest thread, with one run in a hundred, is read by an index."""
    assert written.largest_thread is not None
    largest = written.largest_thread

    first, second = sent(
        connections,
        lambda sql: queries.list_of_thread(sql, actor, largest, limit=LIMIT, before=None),
    )

    Plans(connections, first).check({"pk_threads"})
    Plans(connections, second).check({"ix_runs_thread_id_created_at_id", "pk_runs", WAITING})


@pytest.mark.parametrize("before", [None, 50])
def test_a_page_of_messages(
    connections: Connections, written: History, actor: Actor, before: int | None
) -> None:
    """A page of messages is read backward from its cursor by an index."""
    assert written.largest_thread is not None
    largest = written.largest_thread

    first, second = sent(
        connections,
        lambda sql: threads.list_messages(sql, actor, largest, limit=LIMIT, before=before),
    )

    Plans(connections, first).check({"pk_threads", "uq_runs_unended_thread_id"})
    Plans(connections, second).check({"uq_messages_thread_id_position"})


@pytest.mark.parametrize("before", [None, 50])
def test_a_page_of_a_timeline(
    connections: Connections, written: History, actor: Actor, before: int | None
) -> None:
    """Places, runs and messages are read by indexes, and of events those of the page's runs."""
    assert written.largest_thread is not None
    largest = written.largest_thread
    place = None if before is None else timeline.Place(before)

    _, places, of_runs, of_messages, events = sent(
        connections, lambda sql: timeline.read(sql, actor, largest, limit=20, before=place)
    )

    # Of what waits for the thread, or for its active run, there is little.
    few = {WAITING, "uq_messages_thread_id_position", "ix_offered_messages_thread_id"}
    few |= {"pk_messages", "uq_runs_unended_thread_id", "ix_messages_steered_into"}
    Plans(connections, places).check(few | {"ix_runs_thread_id_position"}, few=few)
    indexes = {"pk_runs", "pk_run_events", "ix_messages_run_id", "ix_runs_thread_id_position"}
    assert indexes | {WAITING} == Plans(connections, of_runs).indexes()
    assert {"pk_messages"} == Plans(connections, of_messages).indexes()
    assert {"pk_run_events"} == Plans(connections, events).indexes()


def test_a_run_and_its_last_event(connections: Connections, written: History, actor: Actor) -> None:
    """The last event is the end of the key, not the highest of all."""
    plans = only(connections, lambda sql: queries.get(sql, actor, written.some_runs[0]))

    tree = "ix_runs_parent_run_id_created_at_id"
    plans.check({"pk_runs", "pk_threads", "pk_run_events", "ix_messages_run_id", tree, WAITING})


def test_events_after_a_cursor(connections: Connections, written: History) -> None:
    """A range of the key, however long the run is."""
    assert written.long_run is not None
    long_run = written.long_run

    plans = only(connections, lambda sql: event_log.read_table(sql, long_run, 500))

    plans.check({"pk_run_events"})


@pytest.mark.parametrize("named", [False, True])
def test_a_page_of_a_stream(connections: Connections, written: History, named: bool) -> None:
    """A page of a stream's frames is read by an index."""
    assert written.long_run is not None
    long_run = written.long_run

    plans = only(
        connections, lambda sql: stream_pages.from_table(sql, long_run, 500, 100, named=named)
    )

    plans.check({"pk_run_events"})


def test_the_look_for_news(connections: Connections, written: History) -> None:
    """The query for new events reads the given runs, not all."""
    with noted(connections) as statements:
        RunHeads(connections).read(written.some_runs[:10])

    Plans(connections, statements[-1]).check({"pk_runs", "pk_threads", "pk_run_events"})


def test_the_look_for_news_of_threads(connections: Connections, written: History) -> None:
    """The query for new runs of threads reads the ends of these threads, not all runs."""
    assert written.largest_thread is not None
    known = {written.largest_thread: 50, **dict.fromkeys(written.some_runs[:10], 0)}

    with noted(connections) as statements:
        RunHeads(connections).thread_news(known)

    plans = Plans(connections, statements[-1])
    assert {"pk_threads", "ix_runs_thread_id_position"} == plans.indexes()


def test_the_next_runs_of_threads(connections: Connections, written: History) -> None:
    """The run behind a place, and the messages before it, are read by indexes."""
    assert written.largest_thread is not None
    places = [next_runs.Place(written.largest_thread, position) for position in (0, 50)]

    runs, messages = sent(connections, lambda sql: next_runs.after(sql, places))

    indexes = {"ix_runs_thread_id_position", "pk_run_events"}
    assert indexes == Plans(connections, runs).indexes()
    assert {"uq_messages_thread_id_position"} == Plans(connections, messages).indexes()


@pytest.mark.parametrize("suspects", [True, False])
def test_a_workers_look_for_runs(
    connections: Connections, written: History, suspects: bool
) -> None:
    """The queued ones, the oldest first."""
    plans = only(
        connections,
        lambda sql: queries.unclaimed(sql, older_than=1, limit=100, suspects=suspects),
    )

    plans.check({"ix_runs_queued_at", "ix_orgs_suspended"})


def test_the_runs_of_an_org_that_have_not_ended(connections: Connections, written: History) -> None:
    """What counts for its limits is read by an index, whatever else there is."""
    asked = {"org_id": new_id()}
    plans = Plans(connections, (run_limits._COUNT, asked))

    assert {"ix_runs_unended_org_id_state"} == plans.indexes() - {"ix_offered_messages_org_id"}


def test_whose_turn_it_is(connections: Connections, written: History) -> None:
    """Each step is a look into the index of queued runs; named runs are read by their ids."""
    one = plain_array([new_id()])
    orgs = fair_queue._ORGS, {"steps": 100, "from_org_id": new_id()}
    runs_ = (
        fair_queue._RUNS,
        {
            "org_ids": one,
            "after_end_users": TextArray(["u"]),
            "steps": "{100}",
            "own_ids": one,
            "taken_ids": one,
        },
    )

    place = fair_queue._PLACE, {"run_id": new_id()}
    weights = {"pk_org_settings", "ix_orgs_suspended"}
    assert {QUEUED, "pk_runs"} == Plans(connections, place).indexes() - weights
    assert {QUEUED} == Plans(connections, orgs).indexes() - weights
    assert {QUEUED, "pk_runs"} == Plans(connections, runs_).indexes()


def test_what_a_worker_owns(connections: Connections, written: History) -> None:
    """The executing runs of a worker are read by an index."""
    Plans(connections, (lease._OWNED, {"id": new_id()})).check({"ix_runs_owner"})


def test_the_runs_of_a_revoked_key(connections: Connections, written: History) -> None:
    """Looked for among the unended runs of its org alone, and then changed by their ids."""
    with noted(connections) as statements, connections.transaction() as tx:
        revocations.cancel_runs(tx, [new_id()])
    sent_, values = statements[-1]

    plans = Plans(connections, (sent_, {**values, "by_user_id": new_id()}))

    assert {"ix_runs_unended_org_id_state", "pk_runs"} == plans.indexes() - {"pk_api_keys"}


def test_the_events_of_runs_that_erased_messages_have_steered(
    connections: Connections, written: History
) -> None:
    """Only events of runs in their threads are read, however many messages are erased."""
    many = select(messages_table.c.id).order_by(messages_table.c.id).limit(2_000)
    with noted(connections) as statements, connections.transaction() as tx:
        personal_data._empty_steered(tx, tx.sql.scalars(many).all())
    _many, of_threads, steered, events = statements

    assert {"pk_messages"} == Plans(connections, of_threads).indexes()
    assert {"ix_runs_thread_id_position", "pk_messages"} == Plans(connections, steered).indexes()
    sent_, values = events
    some_runs = {**values, "param_1": written.some_runs}
    assert {"pk_run_events"} == Plans(connections, (sent_, some_runs)).indexes()


def test_the_runs_that_may_repeat_erased_messages(
    connections: Connections, written: History
) -> None:
    """Only messages of one person, runs of their threads and below, and their events are read."""
    some = select(messages_table.c.id).order_by(messages_table.c.id).limit(10)
    with connections.reading() as sql:
        found = Conversations((), written.some_runs[:10], sql.scalars(some).all())

    _, later = sent(connections, lambda sql: personal_data.prompted_later(sql, found))
    places, below = sent(connections, lambda sql: personal_data.first_places(sql, found))
    *_, said = sent(connections, lambda sql: personal_data.of_end_user(sql, new_id(), "ann"))
    of_runs = {"ix_runs_thread_id_position", "ix_runs_parent_run_id_created_at_id"}
    one = {"pk_runs", "pk_messages", "ix_runs_thread_id_position", "pk_run_events"}
    assert one == Plans(connections, places).indexes()
    assert of_runs <= Plans(connections, later).indexes()
    assert of_runs <= Plans(connections, below).indexes()
    assert "ix_messages_org_id_end_user_id" in Plans(connections, said).indexes()


def test_the_conversation_before_a_run(connections: Connections, written: History) -> None:
    """What one thread said, and the events of its runs."""
    with connections.reading() as sql:
        run_id = sql.scalar(select(runs_table.c.id).where(claims.QUEUED).limit(1))
    assert run_id is not None
    with connections.transaction() as tx:
        worker_id = new_id()
        values = {"id": worker_id, "hostname": "test", "pid": 1, "lock_key": 1}
        tx.sql.execute(insert(workers).values(**values))
    claim = claims.claim(connections, [run_id], worker_id).get(run_id)
    assert claim is not None
    with noted(connections) as statements, connections.reading() as sql:
        [opening] = conversation_history.load_openings(sql, [claim])
        whole = replace(opening, is_whole=False)
        conversation_history.load(sql, claim, whole, conversation_history.MAX_BYTES)
        conversation_history.own_events(sql, run_id)
    openings, _points, said, older, turns, own, open_turn = statements

    for messages in (openings, said, older):
        Plans(connections, messages).check({"uq_messages_thread_id_position"})
    Plans(connections, turns).check(
        {"ix_runs_thread_id_position", "pk_run_events"}, few={"pk_run_events"}
    )
    for events in (own, open_turn):
        Plans(connections, events).check({"pk_run_events"})


def test_the_sweep(connections: Connections, written: History) -> None:
    """Looks at active runs alone, at old ones from their end, at nothing else."""
    with connections.transaction() as tx:
        tx.sql.execute(
            text(
                "INSERT INTO forgotten_events (run_id, collect_at)"
                " SELECT gen_random_uuid(), now() - interval '1 day' FROM generate_series(1, 20000)"
            )
        )
        # Of an empty table Postgres guesses how many rows it has.
        tx.sql.execute(
            text(
                "INSERT INTO holds (run_id, org_id, month, scopes, cost_usd, held_usd)"
                " SELECT id, org_id, now(), '{}', 0, 0 FROM runs ORDER BY id LIMIT 5000"
            )
        )
    with connections.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as sql:
        sql.execute(text("ANALYZE forgotten_events, holds"))
    # However long the tests before this one took, no worker of theirs is lost.
    patient = replace(connections.settings, lease_seconds=86_400, heartbeat_seconds=3_600)
    with noted(connections) as statements:
        sweep.sweep(replace(connections, settings=patient, enqueue=lambda _run_id: None))
        tidying.tidy(connections)
    by_table = {statement[0]: statement for statement in statements}.values()
    tables = r"\b(runs|run_events|forgotten_events)\b"
    # Sums of usage have a column `runs`.
    others = r"JOIN orgs|INTO usage_| IN \(NULL\) |WHERE runs\.id IN \(%\("
    swept = [one for one in by_table if re.search(tables, one[0]) and not re.search(others, one[0])]
    lost, gone, orphans, held, unheld, late, _overdue, leaked, due, *retained = swept
    old, shorten, collect, settle, drop, unblocked = retained

    Plans(connections, lost).check({"ix_runs_owner"}, few=FEW)
    of_gone = {"ix_runs_owner", "pk_runs", "pk_threads", "pk_memberships"}
    assert of_gone >= Plans(connections, gone).indexes()
    for of_trees in (orphans, held):
        assert {*SUB_RUNS, "pk_runs", "ix_orgs_suspended"} >= Plans(connections, of_trees).indexes()
    all_unheld = {"ix_runs_unended_cancel_requested_at", "ix_orgs_suspended"}
    Plans(connections, unheld).check(all_unheld, few=all_unheld)
    Plans(connections, late).check({"ix_runs_input_expires_at", "ix_orgs_suspended"})
    Plans(connections, leaked).check({"pk_holds", "pk_runs"})
    Plans(connections, due).check({"ix_runs_not_before"})
    Plans(connections, old).check({"ix_runs_ended_at", "pk_runs"})
    Plans(connections, shorten).check({"ix_forgotten_events_collect_at", "pk_forgotten_events"})
    Plans(connections, collect).check({"ix_forgotten_events_collect_at", "pk_run_events"})
    Plans(connections, settle).check({"pk_forgotten_events", "pk_run_events"})
    Plans(connections, drop).check({"pk_forgotten_events", "pk_runs"})
    Plans(connections, unblocked).check({WAITING, "uq_runs_unended_thread_id", "ix_orgs_suspended"})
