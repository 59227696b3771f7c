"""Runs that fell back to a route without prices before a budget applied to them."""

from dataclasses import replace
from decimal import Decimal
from uuid import UUID

import pytest
from sqlalchemy import select

from arkloop.shared.billing import budget_limits
from arkloop.shared.catalog import published_personas
from arkloop.shared.config import Settings
from arkloop.shared.events import types
from arkloop.shared.events.event_log import data_of
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.billing import run_usage
from arkloop.worker.attempt import execution
from arkloop.worker.process.process import WorkerProcess
from tests.stored_runs import StoredRuns
from tests.worker.attempt.executed_runs import scripted

ROUTES = """\
routes:
  - {id: unpriced, provider: scripted, model: m2}
  - {id: dear, provider: scripted, model: m3, prices: {input: 50, output: 70}}
"""


@pytest.fixture(scope="module")
def settings(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    file = tmp_path_factory.mktemp("routes") / "routes.yaml"
    file.write_text(ROUTES)
    return replace(settings, routes_file=str(file))


def lost_on_the_unpriced(stored: StoredRuns, *fallback_route_ids: str) -> UUID:
    """Create a run whose worker was lost in a call on that route; then a budget was set."""
    with stored.connections.transaction() as tx:
        persona = {"fallback_route_ids": fallback_route_ids}
        published_personas.publish(tx, stored.actor, "brief", "1", persona)
    run_id = scripted(stored, {"say": "one"}, persona_id="brief@1")
    fallback = types.RunFallback("scripted", "unpriced", "m2", "provider.auth")
    stored.write(stored.held(run_id), fallback, types.MessageDelta("x" * 400))
    stored.set(run_id, state=RunState.QUEUED, resume_reason="worker_lost")
    with stored.connections.transaction() as tx:
        limits = {"max_cost_usd": Decimal(1), "max_cost_usd_per_month": None}
        budget_limits.set_(tx, stored.actor.org_id, "org", **limits)
    return run_id


def test_the_next_route_takes_over_and_the_lost_call_is_billed_to_its_own(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """The tokens of the call are known, and its price is not."""
    run_id = lost_on_the_unpriced(stored, "unpriced", "dear")

    execution.execute(process, run_id)

    assert RunState.COMPLETED == stored.state(run_id)
    [_, left] = (data_of(e.payload) for e in stored.events(run_id) if e.type == "run.fallback")
    assert ("unpriced", "dear", "m3", "budget.exhausted") == tuple(left.values())
    with stored.connections.reading() as sql:
        used = sql.execute(select(run_usage).where(run_usage.c.run_id == run_id)).all()
    of = {row.route_id: row for row in used}
    assert {"unpriced", "dear"} == of.keys()
    assert (100, Decimal(0)) == (of["unpriced"].output_tokens, of["unpriced"].cost_usd)
    assert 1 == of["dear"].output_tokens


def test_without_a_next_route_the_error_names_the_one_that_has_no_prices(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """The route that broke before is not tried again."""
    run_id = lost_on_the_unpriced(stored, "unpriced")

    execution.execute(process, run_id)

    row = stored.row(run_id)
    assert (RunState.FAILED, "budget.exhausted") == (row["state"], row["error_code"])
    assert "Route 'unpriced' has no known prices" in row["error_message"]
