"""The ends of many runs in one statement: each by its own fence, none at another's expense."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Row, Table, select

from arkloop.shared import metrics
from arkloop.shared.claim import Claim
from arkloop.shared.events import event_log
from arkloop.shared.events.types import (
    RouteCost,
    RunCancelled,
    RunCompleted,
    RunCost,
    RunError,
    RunFailed,
)
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import new_id
from arkloop.shared.runs import commands, endings
from arkloop.shared.runs.endings import Ending, Outcome
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.transitions import Totals, recorded_totals
from arkloop.shared.storage.tables.billing import ledger_entries, run_usage
from arkloop.shared.storage.tables.runs import runs
from tests.counted import counted
from tests.stored_runs import USED, StoredRuns, numbered
from tests.waiting import eventually

BROKEN = RunError("provider.malformed", 'It said "{\\"', False)


def completed(claim: Claim, said: str = "") -> Ending:
    """Build a completed ending, with the answer if there is one."""
    message = (new_id(), said) if said else None
    last = RunCompleted(str(message[0]) if message else None, USED.usage, USED.cost_usd, "stop")
    return Ending(
        claim=claim,
        state=RunState.COMPLETED,
        stored=numbered(claim.last_seq, last),
        totals=USED,
        message=message,
    )


def failed(claim: Claim) -> Ending:
    return Ending(
        claim=claim,
        state=RunState.FAILED,
        stored=numbered(claim.last_seq, RunFailed(BROKEN, USED.usage, USED.cost_usd)),
        totals=USED,
        error=BROKEN,
    )


def cancelled(claim: Claim) -> Ending:
    return Ending(
        claim=claim,
        state=RunState.CANCELLED,
        stored=numbered(claim.last_seq, RunCancelled(USED.usage, USED.cost_usd)),
        totals=USED,
    )


def end(stored: StoredRuns, *several: Ending) -> list[Outcome]:
    with stored.connections.statement() as tx:
        return endings.end(tx, several)


@contextmanager
def locked(stored: StoredRuns, run_id: UUID) -> Iterator[None]:
    """Lock the run's row for as long as the block lasts."""
    with stored.connections.transaction() as tx:
        tx.sql.execute(select(runs.c.id).where(runs.c.id == run_id).with_for_update())
        yield


def test_several_runs_end_in_one_statement(stored: StoredRuns) -> None:
    """Each run of one statement gets its own status, event, message, error and totals."""
    first, second, third = (stored.claimed() for _ in range(3))
    stored.cancel(third.run_id)

    outcomes = end(
        stored,
        completed(first, 'He said "no\\".\nThen {1,2} NULL'),
        failed(second),
        cancelled(third),
    )

    assert [Outcome.ENDED] * 3 == outcomes
    assert ["completed", "failed", "cancelled"] == [
        stored.state(claim.run_id) for claim in (first, second, third)
    ]
    assert [('He said "no\\".\nThen {1,2} NULL', False)] == stored.messages(first.run_id)
    assert [] == stored.messages(second.run_id)
    row = stored.row(second.run_id)
    assert (BROKEN.code, BROKEN.message, False) == (
        row["error_code"],
        row["error_message"],
        row["error_retryable"],
    )
    assert (10, 5, 2, USED.cost_usd) == (
        row["input_tokens"],
        row["output_tokens"],
        row["cache_read_tokens"],
        row["cost_usd"],
    )
    assert ["run.started", "run.failed"] == stored.types(second.run_id)


def test_what_each_has_used_is_counted_and_charged(stored: StoredRuns) -> None:
    """A row for each route, an entry for each run; of free runs no entry, of idle ones nothing."""
    key = new_id()
    by_key = replace(stored, actor=replace(stored.actor, api_key_id=key))
    dear, free, idle = by_key.claimed(), stored.claimed(), stored.claimed()
    usage = Usage(
        input_tokens=9,
        output_tokens=8,
        cache_read_tokens=4,
        cache_write_tokens=3,
        reasoning_tokens=2,
        source="estimated",
    )
    first = RouteCost("route-1", "model-1", usage, Decimal("0.00100001"))
    second = RouteCost("route-2", "model-2", Usage(input_tokens=1), Decimal("0.00000001"))
    nothing = RouteCost("route-1", "model-1", Usage(input_tokens=7), Decimal(0))

    end(
        stored,
        replace(completed(dear), totals=Totals().plus(first).plus(second).plus(nothing)),
        replace(completed(free), totals=Totals().plus(nothing)),
        replace(completed(idle), totals=Totals()),
    )

    rows = {row.route_id: row for row in rows_of(stored, run_usage, dear)}
    assert {"route-1", "route-2"} == rows.keys()
    row = rows["route-1"]
    assert (16, 8, 4, 3, 2, "estimated") == (
        row.input_tokens,
        row.output_tokens,
        row.cache_read_tokens,
        row.cache_write_tokens,
        row.reasoning_tokens,
        row.usage_source,
    )
    ended = stored.row(dear.run_id)
    assert (
        *(stored.actor.org_id, stored.actor.user_id, key, "assistant", "model-1"),
        *(first.cost_usd, ended["ended_at"], ended["ended_at"].date().replace(day=1)),
    ) == (
        *(row.org_id, row.user_id, row.api_key_id, row.persona_key, row.model),
        *(row.cost_usd, row.ended_at, row.month),
    )
    assert ended["cost_usd"] == sum(row.cost_usd for row in rows.values())
    [entry] = rows_of(stored, ledger_entries, dear)
    assert ("usage", "receivable", "revenue", 2) == (
        entry.kind,
        entry.debit_account,
        entry.credit_account,
        entry.credits,
    )
    assert [1, 0] == [len(rows_of(stored, run_usage, claim)) for claim in (free, idle)]
    assert [[], []] == [rows_of(stored, ledger_entries, claim) for claim in (free, idle)]


def test_each_model_of_a_route_is_counted(stored: StoredRuns) -> None:
    """The model of an org's route changed while the run waited; all of it is the org's own."""
    claim, route_id = stored.claimed(), str(new_id())
    calls = [
        RouteCost(route_id, model, Usage(input_tokens=tokens), Decimal("0.001"))
        for model, tokens in (("gpt-4o", 5), ("gpt-4o-mini", 7), ("gpt-4o", 1))
    ]
    totals = Totals().plus(calls[0])
    stored.write(claim, RunCost(totals.usage, totals.cost_usd, totals.routes))
    with stored.connections.reading() as sql:
        totals = recorded_totals(sql, claim.run_id).plus(calls[1]).plus(calls[2])

    end(stored, replace(completed(claim), totals=totals))

    used = [
        (row.route_id, row.model, row.input_tokens) for row in rows_of(stored, run_usage, claim)
    ]
    assert [
        (route_id, "gpt-4o", 6),
        (f"{route_id}/gpt-4o-mini", "gpt-4o-mini", 7),
    ] == sorted(used, key=lambda row: row[2])
    assert [] == rows_of(stored, ledger_entries, claim)
    assert Decimal("0.003") == totals.own_usd == stored.row(claim.run_id)["cost_usd"]


def test_what_is_not_ended_is_not_counted(stored: StoredRuns) -> None:
    """An ending that was not stored counts nothing, and one repeated after a lost COMMIT response
    counts nothing twice.
    """
    good, unwanted, lost = (stored.claimed() for _ in range(3))
    stored.cancel(unwanted.run_id)
    stored.set(lost.run_id, fence=lost.fence + 1)

    for _ in range(2):
        end(stored, completed(good), completed(unwanted), completed(lost))

    for table in (run_usage, ledger_entries):
        assert [1, 0, 0] == [len(rows_of(stored, table, claim)) for claim in (good, unwanted, lost)]


def test_a_run_that_nobody_holds_is_counted_too(stored: StoredRuns) -> None:
    """What the event log says it has used: its last `run.cost`."""
    claim = stored.claimed()
    stored.write(claim, RunCost(USED.usage, USED.cost_usd, USED.routes))
    stored.set(claim.run_id, state="waiting", pending_input={"request_id": str(new_id())})
    stored.cancel(claim.run_id)

    [used] = rows_of(stored, run_usage, claim)
    [entry] = rows_of(stored, ledger_entries, claim)
    assert ("scripted", 10, USED.cost_usd, 500) == (
        used.route_id,
        used.input_tokens,
        used.cost_usd,
        entry.credits,
    )


def test_an_end_that_is_rolled_back_is_not_in_the_metrics(stored: StoredRuns) -> None:
    """A run that nobody holds is counted where its end was committed, and not before."""
    claim = stored.claimed()
    stored.set(claim.run_id, state="waiting", pending_input={"request_id": str(new_id())})
    with counted(metrics.RUNS_ENDED) as seen:
        with suppress(ZeroDivisionError), stored.connections.transaction() as tx:
            commands.cancel(tx, stored.actor, claim.run_id)
            raise ZeroDivisionError
        assert {} == seen
        stored.cancel(claim.run_id)
        eventually(lambda: seen == {("cancelled", ""): [1]})


def test_what_a_later_release_counts_besides_is_no_obstacle(stored: StoredRuns) -> None:
    """While it is rolled out its workers and those of this one take runs over from each other."""
    claim = stored.claimed()
    [cost] = numbered(1, RunCost(USED.usage, USED.cost_usd, USED.routes))
    told = cost.payload.replace('"reasoning_tokens"', '"dream_tokens":3,"reasoning_tokens"')
    with stored.connections.transaction() as tx:
        event_log.store(tx, {claim.run_id: [cost._replace(payload=told)]})

    with stored.connections.reading() as sql:
        assert USED == recorded_totals(sql, claim.run_id)


def test_the_ledger_and_the_usage_outlive_the_run(stored: StoredRuns) -> None:
    """Retention forgets what was said, not what was paid."""
    claim = stored.claimed()
    end(stored, completed(claim))
    with stored.connections.transaction() as tx:
        tx.sql.execute(runs.delete().where(runs.c.id == claim.run_id))

    assert (
        1 == len(rows_of(stored, run_usage, claim)) == len(rows_of(stored, ledger_entries, claim))
    )


def rows_of(stored: StoredRuns, table: Table, claim: Claim) -> list[Row[Any]]:
    with stored.connections.reading() as sql:
        return list(sql.execute(select(table).where(table.c.run_id == claim.run_id)))


def test_each_has_its_own_outcome(stored: StoredRuns) -> None:
    """The ended one is stored; of the cancelled one and the one taken over nothing is."""
    good, unwanted, lost = (stored.claimed() for _ in range(3))
    stored.cancel(unwanted.run_id)
    stored.set(lost.run_id, fence=lost.fence + 1)

    outcomes = end(stored, completed(lost, "x"), completed(good, "y"), completed(unwanted, "z"))

    assert [Outcome.LOST, Outcome.ENDED, Outcome.CANCELLED] == outcomes
    for claim in (unwanted, lost):
        assert "executing" == stored.state(claim.run_id)
        assert ["run.started"] == stored.types(claim.run_id)
        assert [] == stored.messages(claim.run_id)


def test_a_locked_run_holds_up_nobody_else(stored: StoredRuns) -> None:
    """It says so, and ends when it is tried again."""
    held_up, other = stored.claimed(), stored.claimed()
    with locked(stored, held_up.run_id):
        assert [Outcome.LOCKED, Outcome.ENDED] == end(stored, completed(held_up), completed(other))

    assert [Outcome.ENDED] == end(stored, completed(held_up))


def test_a_cancel_that_is_just_being_accepted_comes_first(stored: StoredRuns) -> None:
    """Its transaction holds the row; the end of the run looks again and finds it."""
    claim = stored.claimed()
    accepted, seen = threading.Event(), threading.Event()

    def accept() -> None:
        with locked(stored, claim.run_id):
            seen.set()
            accepted.wait(60)
        stored.cancel(claim.run_id)

    cancelling = threading.Thread(target=accept)
    cancelling.start()
    seen.wait(60)
    assert [Outcome.LOCKED] == end(stored, completed(claim))
    accepted.set()
    cancelling.join(60)

    eventually(lambda: end(stored, completed(claim)) == [Outcome.CANCELLED])
    assert [Outcome.ENDED] == end(stored, cancelled(claim))


def test_nothing_to_end_is_nothing(stored: StoredRuns) -> None:
    """A run that is gone is lost, whatever was to be written."""
    claim = stored.claimed()
    with stored.connections.transaction() as tx:
        tx.sql.execute(runs.delete().where(runs.c.id == claim.run_id))

    assert [Outcome.LOST] == end(stored, completed(claim))
