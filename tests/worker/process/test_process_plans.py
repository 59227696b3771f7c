"""The plans of the statements that a run needs: Postgres keeps them."""

from dataclasses import replace

from arkloop.shared.events.types import MessageDelta
from arkloop.shared.runs import new_runs
from arkloop.shared.storage.postgres import REQUEST_TIMEOUTS
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.process import history
from arkloop.worker.process.event_writer import EventWriter
from arkloop.worker.process.run_log import RunLog
from tests.postgres_releases import skip_before
from tests.stored_runs import StoredRuns

#: Postgres compares a plan for any values with this many plans for the values of a call.
COMPARED = 5


def test_no_statement_is_planned_at_each_run(stored: StoredRuns) -> None:
    """Planning a claim for the values of one took twice as long as executing it."""
    skip_before(stored.connections, 14)  # it does not count plans
    alone = stored.connections.with_pool(application="test", size=1, timeouts=REQUEST_TIMEOUTS)
    own = replace(stored, connections=alone)
    writer = EventWriter(alone)
    worker_id = own.worker()
    for _ in range(3 * COMPARED):
        new = own.wanted()
        with alone.statement() as tx:
            [run_id] = new_runs.create_all(tx, [new])
        assert run_id is not None
        claim = own.claim(run_id, worker_id)
        assert claim is not None
        with alone.reading() as sql:
            history.load_openings(sql, [claim])
        log = RunLog(claim.run_id, claim.fence, claim.last_seq, StopSignal(), writer.mark)
        log.add_text(MessageDelta, "Hello")
        log.flush()
        assert own.finish(claim)

    with alone.reading() as sql:
        planned = sql.exec_driver_sql(
            "SELECT custom_plans, statement FROM pg_prepared_statements"
            f" WHERE custom_plans > {COMPARED}"
        ).all()
    alone.close_pool()
    assert [] == planned
