"""The erasure of what an org has left behind in a cell, once another one has it."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

from arkloop.cli.operator.org_copies import STAY, Connection, changing
from arkloop.cli.operator.org_rows import tables
from arkloop.shared.runs.retention import DELETE_WITH_EVENTS, RUNS_AT_ONCE

ROWS_AT_ONCE = 10_000

# Events and runs together: nothing is left for what collects the events of deleted runs, which
# would find them again if the org came back.
_RUNS = f"SELECT array_agg(id) FROM (SELECT id FROM runs WHERE org_id = %s LIMIT {RUNS_AT_ONCE}) r"


def erase(connection: Connection, org_id: UUID) -> Iterator[tuple[str, int]]:
    """Delete the org's rows bit by bit, and yield name and number of rows of each table.

    It can be repeated after it was stopped. The row of the org is the last one.
    """
    order = [*reversed(tables())]
    # Reservations first: the sweep would charge those whose runs are gone.
    order.sort(key=lambda table: table.name != "holds")
    for table in order:
        if table.name == "runs":
            yield from _erase_runs(connection, org_id)
        elif table.name not in (*STAY, "run_events", "orgs"):
            chosen = f"{table.select(org_id, 't.ctid')} LIMIT {ROWS_AT_ONCE}"
            delete = f"DELETE FROM {table.name} WHERE ctid = ANY (ARRAY({chosen}))"
            total = 0
            while count := _executed(connection, delete):
                total += count
            yield table.name, total
    yield "orgs", _executed(connection, f"DELETE FROM orgs WHERE id = '{org_id}'")


def _executed(connection: Connection, statement: str) -> int:
    with changing(connection):
        return connection.execute(statement).rowcount


def _erase_runs(connection: Connection, org_id: UUID) -> Iterator[tuple[str, int]]:
    events = runs = 0
    while True:
        with changing(connection):
            row: Any = connection.execute(_RUNS, [org_id]).fetchone()
            if row[0] is None:
                break
            counts = [
                connection.execute(one, {"ids": row[0]}).rowcount for one in DELETE_WITH_EVENTS
            ]
        events, runs = events + counts[0], runs + counts[1]
    yield "run_events", events
    yield "runs", runs
