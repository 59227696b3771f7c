"""Creating runs: one for each thread at a time, those of one moment in one statement."""

from dataclasses import replace
from decimal import Decimal
from uuid import UUID

import pytest
from sqlalchemy import select

from shared.actors import PERMISSIONS_OF_ROLE, Actor
from shared.catalog import model_routes, personas
from shared.errors import BudgetExhausted, Forbidden, ThreadBusy
from shared.ids import new_id
from shared.runs import creation
from shared.runs.creation import NewRun, RunCreator
from shared.storage.tables.threads import threads as threads_table
from shared.threads import threads
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
        threads.delete(tx, stored.actor, deleted)
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
        run_id = create(new)
        with pytest.raises(BudgetExhausted):
            create(replace(new, thread_id=stored.thread(), persona=limited))

    assert "queued" == stored.state(run_id)
    assert "INSERT INTO runs" in statements[0][0]
    assert ["INSERT INTO runs" in sql for sql, _ in statements].count(True) == 1
