"""Creating runs: one for each thread at a time, those of one moment in one statement."""

from dataclasses import replace
from decimal import Decimal
from uuid import UUID

import pytest
from sqlalchemy import delete, func, select

from arkloop.shared.actors import PERMISSIONS_OF_ROLE, Actor
from arkloop.shared.catalog import model_routes, personas
from arkloop.shared.errors import BudgetExhausted, Forbidden, ThreadBusy
from arkloop.shared.ids import new_id
from arkloop.shared.runs import creation, thread_changes
from arkloop.shared.runs.creation import (
    LastRunDeleted,
    NewMessage,
    NewRun,
    NewThread,
    RunCreator,
)
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.storage.tables.threads import messages
from arkloop.shared.storage.tables.threads import threads as threads_table
from arkloop.shared.threads import threads
from arkloop.shared.threads.content import Content
from tests.query_plans import noted
from tests.stored_runs import StoredRuns
from tests.waiting import in_parallel


def test_of_eight_creates_at_once_one_is_accepted(stored: StoredRuns) -> None:
    """The others learn which run is active."""
    thread_id = stored.thread()

    def create(_: int) -> UUID | str:
        try:
            return stored.create(thread_id)
        except ThreadBusy as busy:
            return str(busy.details["active_run_id"])

    made = in_parallel(8, create)

    [run_id] = [run for run in made if isinstance(run, UUID)]
    assert {str(run_id)} == {str(run) for run in made}
    assert [run_id] == stored.sent


def test_runs_of_one_moment_are_created_together(stored: StoredRuns) -> None:
    """Each where its own actor may: not in a thread that is busy, somebody else's, gone, or wanted
    by another one of them; who is refused there changes nothing.
    """
    free, twice, busy, private, deleted = (stored.thread() for _ in range(5))
    with stored.connections.transaction() as tx:
        thread_changes.delete(tx, stored.actor, deleted)
    active = stored.create(busy)
    permissions = PERMISSIONS_OF_ROLE["member"]
    member = replace(stored.actor, user_id=new_id(), role="member", permissions=permissions)
    routes = model_routes.load(stored.connections.settings)
    persona = personas.builtin()["assistant@1"]

    def wanted(thread_id: UUID, actor: Actor = stored.actor) -> NewRun:
        route = routes["scripted"]
        return NewRun(
            actor=actor, thread_id=thread_id, persona=persona, route=route, trace_id="2" * 32
        )

    with stored.connections.statement() as tx:
        made = creation.create_all(
            tx,
            [
                wanted(twice),
                wanted(busy),
                wanted(free),
                wanted(private, member),
                wanted(new_id()),
                wanted(twice),
                wanted(deleted),
                wanted(private, replace(stored.actor, org_id=new_id())),
            ],
        )

    assert [False, True] == sorted([made[0] is None, made[5] is None])
    assert made[2] is not None
    assert [None] * 5 == [made[number] for number in (1, 3, 4, 6, 7)]
    created = {made[0] or made[5], made[2]}
    assert {active, *created} == set(stored.sent)
    with stored.connections.reading() as sql:
        positions = dict(
            sql.execute(select(threads_table.c.id, threads_table.c.next_position)).all()
        )
    assert [2, 2, 2, 1] == [positions[one] for one in (free, twice, busy, private)]
    with pytest.raises(Forbidden), stored.connections.transaction() as tx:
        creation.create(tx, wanted(private, member))


def test_a_message_and_a_thread_are_created_with_the_run(stored: StoredRuns) -> None:
    """Plain runs and such runs in one statement; the message stands before the run."""
    busy, free, plain = (stored.thread() for _ in range(3))
    stored.create(busy)
    opened = NewThread(title="New", is_private=True, metadata={"a": "1"}, end_user_id="u")
    said = NewMessage(content=Content("Hi"), metadata={"b": "2"})
    base = stored.wanted(plain)

    with stored.connections.statement() as tx:
        made = creation.create_all(
            tx,
            [
                replace(base, thread_id=busy, message=said),
                replace(base, thread_id=free, message=said),
                base,
                replace(base, thread_id=new_id(), thread=opened, message=said),
                replace(base, thread_id=new_id(), thread=NewThread(), end_user_id="own"),
            ],
        )

    assert [False, True, True, True, True] == [run_id is not None for run_id in made]
    rows = [stored.row(run_id) for run_id in made if run_id is not None]
    assert [2, 1, 2, 1] == [row["position"] for row in rows]
    assert [None, None, "u", "own"] == [row["end_user_id"] for row in rows]
    with stored.connections.reading() as sql:
        thread = threads.get(sql, stored.actor, rows[2]["thread_id"])
        said_in = {
            row.thread_id: (row.content, row.metadata, row.position, row.role, row.run_id)
            for row in sql.execute(select(messages).where(messages.c.org_id == stored.actor.org_id))
        }
    assert ("New", True, {"a": "1"}, 3) == (
        *(thread.title, thread.is_private, thread.metadata),
        thread.next_position,
    )
    message = ("Hi", {"b": "2"}, 1, "user", None)
    assert {free: message, rows[2]["thread_id"]: message} == said_in


def test_of_eight_turns_at_once_one_leaves_its_message(stored: StoredRuns) -> None:
    """The others are refused with their messages, group commit or not."""
    thread_id = stored.thread()
    create = RunCreator(stored.connections, stored.catalog())
    base = stored.wanted(thread_id)

    def turn(number: int) -> str | None:
        try:
            create(replace(base, message=NewMessage(content=Content(str(number)))))
        except ThreadBusy:
            return None
        return str(number)

    accepted = [number for number in in_parallel(8, turn) if number is not None]

    with stored.connections.reading() as sql:
        said = sql.scalars(select(messages.c.content).where(messages.c.thread_id == thread_id))
        assert accepted == list(said)
    assert 1 == len(accepted)


def test_a_refused_run_leaves_no_thread(stored: StoredRuns) -> None:
    """A run whose transaction is rolled back leaves none either."""
    exhausted = replace(personas.builtin()["plain@1"], max_cost_usd_per_month=Decimal(0))
    said = NewMessage(content=Content("Hi"))
    new = replace(stored.wanted(new_id()), thread=NewThread(), message=said)

    with pytest.raises(BudgetExhausted):
        RunCreator(stored.connections, stored.catalog())(replace(new, persona=exhausted))
    with pytest.raises(ZeroDivisionError), stored.connections.transaction() as tx:
        creation.create(tx, new)
        raise ZeroDivisionError

    with stored.connections.reading() as sql:
        assert [] == threads.list_(sql, stored.actor, limit=10, before=None).rows
        of_org = messages.c.org_id == stored.actor.org_id
        assert 0 == sql.scalar(select(func.count()).select_from(messages).where(of_org))
    assert [] == stored.sent


def test_a_thread_that_somebody_holds_is_waited_for_alone(stored: StoredRuns) -> None:
    """It holds up none of the runs that are created at the same moment."""
    held, free = stored.thread(), stored.thread()
    routes = model_routes.load(stored.connections.settings)
    persona = personas.builtin()["assistant@1"]
    route = routes["scripted"]
    several = [
        NewRun(actor=stored.actor, thread_id=one, persona=persona, route=route, trace_id="3" * 32)
        for one in (held, free)
    ]
    with stored.connections.transaction() as other:
        threads.lock(other, stored.actor, held)
        with stored.connections.statement() as tx:
            made = creation.create_all(tx, several)

    assert made[0] is None
    assert made[1] is not None
    with stored.connections.transaction() as tx:
        creation.create(tx, several[0])


def test_creates_go_on_when_postgres_plans_for_all_parameters(stored: StoredRuns) -> None:
    """After some executions a prepared statement has one plan for all values: it must find
    the index of active runs too.
    """
    thread_id = stored.thread()
    for _ in range(15):
        stored.cancel(stored.create(thread_id))


def test_a_rollback_tells_nobody(stored: StoredRuns) -> None:
    """The workers hear of a run after its commit, or never."""
    thread_id = stored.thread()
    with pytest.raises(ZeroDivisionError), stored.connections.transaction() as tx:
        threads.add_message(tx, stored.actor, thread_id, content="Hi")
        creation.retry(tx, stored.actor, thread_id, stored.catalog(), trace_id="1" * 32)
        raise ZeroDivisionError

    assert [] == stored.sent


@pytest.mark.parametrize("last", ["answered", "failed", "followed by a message"])
def test_a_thread_whose_runs_are_deleted_is_not_retried(stored: StoredRuns, last: str) -> None:
    """Nothing says which persona they had: the thread stays as it is, and has no new run."""
    thread_id = stored.thread()
    said(stored, thread_id, "Hi")
    claim = stored.held(stored.create(thread_id))
    stored.finish(claim, message=(new_id(), "Hello") if last == "answered" else None)
    if last == "followed by a message":
        said(stored, thread_id, "And?")
    with stored.connections.transaction() as tx:
        tx.sql.execute(delete(runs).where(runs.c.id == claim.run_id))

    with pytest.raises(LastRunDeleted), stored.connections.transaction() as tx:
        creation.retry(tx, stored.actor, thread_id, stored.catalog(), trace_id="1" * 32)

    with stored.connections.reading() as sql:
        of_thread = messages.c.thread_id == thread_id
        gone = select(messages.c.content).where(of_thread, messages.c.superseded_at.is_not(None))
        assert [] == sql.scalars(gone).all()
        assert [] == sql.scalars(select(runs.c.id).where(runs.c.thread_id == thread_id)).all()


def test_a_thread_of_messages_alone_is_retried_with_the_default(stored: StoredRuns) -> None:
    """No run was there whose persona it could have."""
    thread_id = stored.thread()
    for text in ("Hi", "Hello?"):
        said(stored, thread_id, text)

    with stored.connections.transaction() as tx:
        made = creation.retry(tx, stored.actor, thread_id, stored.catalog(), trace_id="1" * 32)

    assert "assistant@1" == stored.row(made.run_id)["persona_id"]


def said(stored: StoredRuns, thread_id: UUID, content: str) -> None:
    with stored.connections.transaction() as tx:
        threads.add_message(tx, stored.actor, thread_id, content=content)


def test_a_run_without_limits_is_created_in_one_statement(stored: StoredRuns) -> None:
    """A run with limits takes a transaction, in which they are checked."""
    catalog = stored.catalog()
    create = RunCreator(stored.connections, catalog)
    persona = personas.builtin()["assistant@1"]
    new = NewRun(
        actor=stored.actor,
        thread_id=stored.thread(),
        persona=persona,
        route=catalog.choose_route(stored.actor.org_id, "scripted", persona),
        trace_id="4" * 32,
    )
    limited = replace(persona, max_cost_usd_per_month=Decimal(0))
    catalog.is_limited(stored.actor.org_id)  # from now on it is known

    with noted(stored.connections) as statements:
        run_id = create(new).run_id
        with pytest.raises(BudgetExhausted):
            create(replace(new, thread_id=stored.thread(), persona=limited))

    assert "queued" == stored.state(run_id)
    assert "INSERT INTO runs" in statements[0][0]
    assert ["INSERT INTO runs" in sql for sql, _ in statements].count(True) == 1
