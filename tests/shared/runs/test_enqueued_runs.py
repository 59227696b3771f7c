"""Requests with `enqueue`: one statement for those of one moment."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, text, update

from arkloop.shared.actors import PERMISSIONS_OF_ROLE
from arkloop.shared.errors import RunLimitExceeded, ThreadBusy
from arkloop.shared.ids import new_id
from arkloop.shared.runs import creation, run_limits, thread_queue
from arkloop.shared.runs.creation import Created, NewMessage, NewRun, RunCreator
from arkloop.shared.runs.enqueued_runs import Attempt, enqueue_all
from arkloop.shared.runs.thread_queue import MAX_WAITING, Effect, Holder, OnBusy
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.storage.tables.threads import messages, threads
from arkloop.shared.threads.content import Content
from tests.query_plans import noted
from tests.shared.runs.busy_thread import LATER, BusyThread
from tests.shared.runs.test_endings import completed
from tests.stored_runs import StoredRuns
from tests.waiting import eventually, in_parallel

#: Of what waits, all that is not an id or a moment.
OF_RUN = (
    *("org_id", "created_by_user_id", "api_key_id", "trace_id", "persona_id", "route_id", "model"),
    *("agent", "options", "end_user_id", "metadata", "position", "visible_to", "state", "attempt"),
)
OF_MESSAGE = ("org_id", "created_by_user_id", "position", "role", "content", "parts", "metadata")


def request(stored: StoredRuns, thread_id: UUID, text: str = "b", **more: Any) -> NewRun:
    """Return a request for a run that may wait, with a message."""
    message = NewMessage(content=Content.of(text), metadata={"of": "the message"})
    more = {"on_busy": OnBusy.ENQUEUE, "message": message, **more}
    return replace(stored.wanted(thread_id), **more)


def together(stored: StoredRuns, *requests: NewRun) -> list[Created | None]:
    with stored.connections.statement() as tx:
        return [one.made for one in enqueue_all(tx, requests) if isinstance(one, Attempt)]


def rows(stored: StoredRuns, thread_id: UUID) -> tuple[list[Any], list[Any]]:
    """Return the thread's runs and messages, without what differs from thread to thread."""
    with stored.connections.reading() as sql:
        return tuple(  # type: ignore[return-value]  # two lists
            [
                tuple(row)
                for row in sql.execute(
                    select(*(table.c[name] for name in names))
                    .where(table.c.thread_id == thread_id)
                    .order_by(table.c.position)
                )
            ]
            for table, names in ((runs, (*OF_RUN, "has_followers")), (messages, OF_MESSAGE))
        )


@pytest.mark.parametrize("holder", [holder for holder in Holder if holder is not Holder.NONE])
def test_it_does_what_is_done_for_one_request_alone(stored: StoredRuns, holder: Holder) -> None:
    """The rows are the same, whatever the active run does."""
    alone, grouped = BusyThread(stored), BusyThread(stored)
    for thread in (alone, grouped):
        first = thread.say("a")
        thread.say("for later", not_before=LATER)
        is_cancelling = holder is Holder.CANCELLING
        changed = {"cancel_requested_at": func.now()} if is_cancelling else {"state": holder.value}
        with stored.connections.transaction() as tx:
            tx.sql.execute(update(runs).where(runs.c.id == first.run_id).values(changed))
    described = {"options": {"instructions": "x"}, "metadata": {"n": "1"}, "end_user_id": "e"}
    pairs = [("b", described), ("c", {"message": None})]

    with stored.connections.transaction() as tx:
        expected = [
            creation.create(tx, request(stored, alone.id, text, **more)) for text, more in pairs
        ]
    made = together(stored, *(request(stored, grouped.id, text, **more) for text, more in pairs))

    assert [one.position for one in expected] == [one and one.position for one in made]
    assert rows(stored, alone.id) == rows(stored, grouped.id)


def test_in_an_idle_thread_the_run_is_queued_at_once(stored: StoredRuns) -> None:
    """It gets the rows of a plain create, and a worker is notified; the second one of a thread is
    left for another statement.
    """
    plain, thread = BusyThread(stored), BusyThread(stored)
    for one in (plain, thread):
        one.end(one.ending(completed, one.claim(one.say("a").run_id), "Done."))
    described = {"options": {"instructions": "x"}, "metadata": {"n": "1"}, "end_user_id": "e"}
    create = RunCreator(stored.connections, stored.catalog())
    create(request(stored, plain.id, on_busy=None, **described))
    stored.sent.clear()

    made = together(
        stored,
        request(stored, thread.id, **described),
        request(stored, stored.thread(), on_busy=None, message=None),
        request(stored, thread.id, "c"),
    )

    assert [True, True, False] == [one is not None for one in made]
    assert {one.run_id for one in made if one} == {*stored.sent}
    assert rows(stored, plain.id) == rows(stored, thread.id)


@pytest.mark.parametrize("limits", [{}, {"org_concurrent_runs": 99, "org_queued_runs": 99}])
def test_a_request_is_one_statement(stored: StoredRuns, limits: dict[str, int]) -> None:
    """This holds in an idle and in a busy thread, with limits on runs and without."""
    changed = replace(stored.connections.settings, **limits)  # type: ignore[arg-type]  # mypy checks no **
    of = replace(stored, connections=replace(stored.connections, settings=changed))
    creator, thread_id = RunCreator(of.connections, of.catalog()), of.thread()
    creator(request(of, of.thread()))  # it opens the connection

    positions = []
    with noted(of.connections) as statements:
        positions += [creator(request(of, thread_id)).position for _ in range(3)]

    assert [None, 1, 2] == positions
    assert 3 == len(statements)


def test_a_request_beyond_a_limit_is_refused(stored: StoredRuns) -> None:
    """A busy thread refuses it as an idle one does; runs before it count, whatever their threads
    do.
    """
    changed = replace(stored.connections.settings, org_concurrent_runs=3)
    of = replace(stored, connections=replace(stored.connections, settings=changed))
    busy, idle = of.thread(), of.thread()
    of.create(busy)

    with of.connections.statement() as tx:
        made = enqueue_all(tx, [request(of, each) for each in (busy, idle, busy, of.thread())])

    refused = [isinstance(one, RunLimitExceeded) for one in made]
    assert [False, False, True, True] == refused


@pytest.mark.parametrize("is_busy", [False, True])
def test_a_thread_that_becomes_private_meanwhile_takes_no_message_of_others(
    stored: StoredRuns, is_busy: bool
) -> None:
    """Though the statement began before, and waited for the lock of a limited org."""
    limited = replace(stored.connections.settings, org_concurrent_runs=99)
    of = replace(stored, connections=replace(stored.connections, settings=limited))
    thread_id = of.thread()
    if is_busy:
        of.create(thread_id)
    other = replace(of.actor, user_id=new_id())
    waits = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")

    def enqueue() -> Any:
        with of.connections.statement() as tx:
            return enqueue_all(tx, [request(of, thread_id, actor=other)])

    with ThreadPoolExecutor(1) as pool:
        with of.connections.transaction() as tx:
            assert [None] == run_limits.refusals(tx, [of.actor])
            waiting = pool.submit(enqueue)
            with of.connections.reading() as sql:
                eventually(lambda: sql.scalar(waits) == 1)
            with of.connections.transaction() as changing:
                private = update(threads).where(threads.c.id == thread_id).values(is_private=True)
                changing.sql.execute(private)
        [attempt] = waiting.result()

    assert attempt.made is None


def test_each_request_is_one_for_its_own_thread(stored: StoredRuns) -> None:
    """None of them waits where it may not, or need not, or has asked for something else."""
    busy, other, idle, private, deleted, full = (stored.thread() for _ in range(6))
    for thread_id in (busy, other, private, deleted, full):
        stored.create(thread_id)
    with stored.connections.transaction() as tx:
        tx.sql.execute(update(threads).where(threads.c.id == deleted).values(deleted_at=func.now()))
    together(stored, *[request(stored, full)] * (MAX_WAITING - 1))
    permissions = PERMISSIONS_OF_ROLE["member"]
    member = replace(stored.actor, user_id=new_id(), role="member", permissions=permissions)
    stranger = replace(stored.actor, org_id=new_id())

    made = together(
        stored,
        request(stored, busy),
        request(stored, other, on_busy=None),
        request(stored, idle),
        request(stored, private, actor=member),
        request(stored, private, actor=stranger),
        request(stored, deleted),
        request(stored, busy, on_busy=OnBusy.REJECT),
        request(stored, full),
        request(stored, full),
        request(stored, busy),
    )

    positions = [one and one.position for one in made]
    assert [1, *[None] * 6, MAX_WAITING, None, 2] == positions


def test_a_request_of_many_processes_has_a_place_of_its_own(stored: StoredRuns) -> None:
    """What another one has inserted a moment ago is seen, once its locks are free."""
    first = BusyThread(stored)
    first.say("a")
    others = [BusyThread(stored) for _ in range(3)]
    for other in others:
        other.id = first.id

    made = in_parallel(24, lambda number: others[number % 3].say(str(number)))

    assert list(range(1, 25)) == sorted(one.position or 0 for one in made)
    with stored.connections.reading() as sql:
        places = sql.scalars(select(runs.c.position).where(runs.c.thread_id == first.id)).all()
    assert 25 == len({*places})


def test_it_is_the_table_that_says_who_waits(
    stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed rule for a state of the active run changes what is done."""
    thread = BusyThread(stored)
    thread.say("a")
    changed = tuple(
        replace(rule, effects=(Effect.REJECT_BUSY,)) if rule.name == "enqueue" else rule
        for rule in thread_queue.RULES
    )
    monkeypatch.setattr(thread_queue, "RULES", changed)

    assert [None] == together(stored, request(stored, thread.id))
    with pytest.raises(ThreadBusy):
        thread.say("b")
