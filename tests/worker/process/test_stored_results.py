"""The results of tool calls that a run can read again."""

from typing import Any

from arkloop.shared.events import types
from arkloop.shared.runs import claims
from arkloop.worker.process import history, stored_results
from tests.stored_runs import StoredRuns


def test_results_are_those_of_the_runs_own_thread(stored: StoredRuns) -> None:
    """This run and earlier ones give whole results; other threads, later and superseded runs give
    none.
    """
    earlier = stored.claimed()
    thread_id = earlier.thread_id
    whole = "x" * 100_000
    result = types.ToolResult("c", "t", "x" * 10, False, 1, characters=len(whole))
    with stored.connections.statement() as tx:
        claims.begin_tool_call(tx, earlier, "c")
    with stored.connections.statement() as tx:
        claims.end_tool_call(tx, earlier, result, whole)
    stored.write(earlier, types.ToolResult("b", "t", "short", False, 1), result)
    stored.finish(earlier)
    later = stored.claim(stored.create(thread_id))
    other = stored.claimed()
    assert later is not None

    with stored.connections.reading() as sql:

        def found(claim: Any, seq: int, position: int = earlier.position) -> str | None:
            return stored_results.find(sql, claim, f"{position}.{seq}")

        assert ("short", whole) == (found(later, 2), found(later, 3))
        assert whole == found(earlier, 3)
        assert None is found(later, 1)
        assert None is found(other, 3)
        assert None is found(earlier, 1, later.position)
        assert None is stored_results.find(sql, later, "1; DROP TABLE runs")
        assert history.written_bytes(sql, earlier.run_id) > len(whole)
    stored.set(earlier.run_id, superseded_at=later.claimed_at)
    with stored.connections.reading() as sql:
        assert None is stored_results.find(sql, later, f"{earlier.position}.3")
