"""Runs that wait for two calls of a page's tool, with the time of the first one over."""

from dataclasses import replace
from datetime import timedelta
from uuid import UUID

from sqlalchemy import select

from arkloop.shared.events.types import ToolCallRequested
from arkloop.shared.ids import new_id
from arkloop.shared.runs import claims, sweep
from arkloop.shared.runs.states import ResultSource
from arkloop.shared.storage.tables.runs import tool_calls
from arkloop.shared.times import now, rfc3339
from tests.stored_runs import StoredRuns, ago

LATE, OPEN = "call_1_1", "call_1_2"


def wait_for(stored: StoredRuns, run_id: UUID, name: str = "locate") -> None:
    """Let a queued run wait for both calls of the tool."""
    claim = stored.held(run_id)
    for call_id in (LATE, OPEN):
        with stored.connections.transaction() as tx:
            claims.begin_tool_call(tx, claim, call_id, ResultSource.CLIENT)
        stored.write(claim, ToolCallRequested(call_id, name, {}))
    calls = [{"tool_call_id": id_, "name": name, "arguments": {}} for id_ in (LATE, OPEN)]
    calls[0]["expires_at"] = rfc3339(now() - timedelta(seconds=1))
    at_end = replace(claim, last_seq=stored.last_seq(run_id))
    in_an_hour = rfc3339(now() + timedelta(hours=1))
    how = {"kind": "tool_results", "calls": calls, "expires_at": in_an_hour}
    assert stored.park(at_end, new_id(), **how)
    stored.set(run_id, input_expires_at=ago(seconds=1))


def outputs(stored: StoredRuns, run_id: UUID) -> dict[str, str]:
    """Return the results of the calls, after the sweep has given up the late one."""
    sweep.sweep(stored.connections)
    assert "queued" == stored.state(run_id)
    with stored.connections.reading() as sql:
        rows = sql.execute(select(*tool_calls.c).where(tool_calls.c.run_id == run_id))
        return {row.tool_call_id: row.output for row in rows}
