"""An attempt from its claim to the write that lets go, and what the next one makes of it."""

import json
import logging
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import cast
from uuid import UUID

import pytest
from sqlalchemy import func, insert, select, update

from arkloop.shared.billing import budget_limits, credits, spending
from arkloop.shared.catalog import mcp_configs, model_routes, published_personas
from arkloop.shared.config import Settings
from arkloop.shared.errors import LeaseLost
from arkloop.shared.events import types
from arkloop.shared.events.event_log import data_of
from arkloop.shared.events.usage import Usage
from arkloop.shared.runs import sweep
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.billing import reservations, run_usage
from arkloop.shared.storage.tables.events import run_events
from arkloop.worker.attempt import execution
from arkloop.worker.contract.outcomes import ShuttingDown
from arkloop.worker.process.process import WorkerProcess
from tests.stored_runs import StoredRuns
from tests.waiting import eventually
from tests.worker.attempt.executed_runs import (
    costs,
    output_by_route,
    scripted,
    stopped_in_the_middle,
)

pytestmark = pytest.mark.processes

ONE = Decimal(1)
ODD = Path(__file__).parents[1] / "mcp" / "odd_mcp_server.py"


@pytest.fixture(scope="module")
def settings(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The settings with a second route, which is nobody's fallback."""
    file = tmp_path_factory.mktemp("routes") / "routes.yaml"
    file.write_text(
        "routes: [{id: dear, provider: scripted, model: m2, prices: {input: 50, output: 70}}]"
    )
    return replace(settings, mcp_stdio=True, routes_file=str(file))


def test_a_call_that_a_deploy_broke_off_is_counted_once(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """A call that a deploy interrupts is billed once, by the process that hands the run over."""
    run_id = scripted(stored, {"say": "one "}, {"hang": 5})
    stopped_in_the_middle(process, stored, run_id, ShuttingDown())
    assert (RunState.QUEUED, [1]) == (stored.state(run_id), costs(stored, run_id))

    execution.execute(process, run_id)

    assert RunState.COMPLETED == stored.state(run_id)
    assert [1, 2] == costs(stored, run_id)
    assert 2 == stored.row(run_id)["output_tokens"]
    assert 1 == stored.types(run_id).count("message.reset")


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_text_of_a_lost_attempt_is_kept_if_the_next_one_cannot_begin(
    stored: StoredRuns, process: WorkerProcess, is_cancelled: bool
) -> None:
    """Its route is gone, or somebody has cancelled it: nothing has declared the text void."""
    claim = stored.claimed()
    stored.write(claim, types.MessageThinking("so"), types.MessageDelta("a part"))
    stored.set(
        claim.run_id,
        state=RunState.QUEUED,
        resume_reason="worker_lost",
        route_id="gone",
        cancel_requested_at=func.now() if is_cancelled else None,
    )

    execution.execute(process, claim.run_id)

    def is_ended() -> bool:
        # No worker claims a run that is to be cancelled; another process may be sweeping just now.
        sweep.sweep(stored.connections)
        return stored.state(claim.run_id) != RunState.QUEUED

    eventually(is_ended)
    assert (RunState.CANCELLED if is_cancelled else RunState.FAILED) == stored.state(claim.run_id)
    assert "message.reset" not in stored.types(claim.run_id)
    assert [("a part", True)] == stored.messages(claim.run_id)
    row = stored.row(claim.run_id)
    assert (2, "estimated") == (row["output_tokens"], row["usage_source"])
    assert [2] == costs(stored, claim.run_id)


def test_a_lost_call_is_billed_by_the_route_that_it_was_made_with(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """The lost call is billed by its own route, although the run has left that."""
    claim = stored.claimed()
    fallback = types.RunFallback("scripted", "dear", "m2", "provider.overloaded")
    stored.write(claim, fallback, types.MessageDelta("x" * 400))
    stored.set(claim.run_id, state=RunState.QUEUED, resume_reason="worker_lost")

    execution.execute(process, claim.run_id)

    assert RunState.COMPLETED == stored.state(claim.run_id)
    with stored.connections.reading() as sql:
        used = sql.execute(select(run_usage).where(run_usage.c.run_id == claim.run_id)).all()
    of = {row.route_id: row for row in used}
    assert {"dear", "scripted"} == of.keys()
    assert (100, "estimated") == (of["dear"].output_tokens, of["dear"].usage_source)
    assert Decimal("0.007") < of["dear"].cost_usd


def test_a_run_whose_fallback_is_gone_says_with_what_it_goes_on(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """A run whose fallback is gone names its present route, so that another lost call is billed to
    that.
    """
    run_id = scripted(stored, {"say": "one two three "}, {"hang": 5})
    claim = stored.held(run_id)
    fallback = types.RunFallback("scripted", "dear", "m2", "provider.overloaded")
    stored.write(claim, fallback, types.MessageDelta("x" * 400))
    stored.set(run_id, state=RunState.QUEUED, resume_reason="worker_lost")
    stopped_in_the_middle(process, stored, run_id, LeaseLost(), "three ")
    stored.set(run_id, state=RunState.QUEUED, resume_reason="worker_lost")

    execution.execute(process, run_id)

    *_, back = (data_of(e.payload) for e in stored.events(run_id) if e.type == "run.fallback")
    assert ("dear", "scripted") == (back["from_route_id"], back["to_route_id"])
    assert 2 == stored.types(run_id).count("run.fallback")
    assert {"dear": 100, "scripted": 3 + 3} == output_by_route(stored, run_id)


def test_a_run_whose_route_is_gone_goes_on_with_its_fallback(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """A run whose route is gone continues with its fallback, and fails without one."""
    with stored.connections.transaction() as tx:
        persona = {"fallback_route_ids": ["dear"]}
        published_personas.publish(tx, stored.actor, "brief", "1", persona)
    run_id = scripted(stored, {"say": "one"}, persona_id="brief@1")
    stored.set(run_id, route_id="gone")

    execution.execute(process, run_id)

    assert RunState.COMPLETED == stored.state(run_id)
    [fallback] = (data_of(e.payload) for e in stored.events(run_id) if e.type == "run.fallback")
    assert ("gone", "dear", "m2") == (
        fallback["from_route_id"],
        fallback["to_route_id"],
        fallback["model"],
    )
    assert {"dear": 1} == output_by_route(stored, run_id)


def test_a_lost_call_whose_price_has_risen_costs_what_was_held_for_it(
    stored: StoredRuns, settings: Settings, tmp_path: Path
) -> None:
    """The budget of the month holds, whatever the file of routes says after a deploy."""
    org_id, most = stored.actor.org_id, Decimal("0.005")
    with stored.connections.transaction() as tx:
        budget_limits.set_(
            tx, org_id, "org", max_cost_usd=None, max_cost_usd_per_month=Decimal("0.01")
        )
    run_id = scripted(stored, {"error": "invalid_request"})
    claim = stored.held(run_id)
    with stored.connections.transaction() as tx:
        [this_month] = spending.now(tx.sql, org_id, ["org"])
        month = this_month.month
        held = {"scopes": ["org"], "month": month, "cost_usd": 0, "held_usd": most}
        tx.sql.execute(insert(reservations).values(run_id=run_id, org_id=org_id, **held))
        spending.move(tx.sql, org_id, {("org", month): (Decimal(0), most)})
    stored.write(claim, types.MessageDelta("x " * 1000))
    stored.set(run_id, state=RunState.QUEUED, resume_reason="worker_lost")
    file = tmp_path / "routes.yaml"
    file.write_text(
        "routes: [{id: scripted, provider: scripted, model: scripted-1,"
        " prices: {input: 20, output: 40}}]"
    )
    dearer = replace(settings, routes_file=str(file), sweep_seconds=3600, heartbeat_seconds=0.2)
    process = WorkerProcess(dearer, model_routes.load(dearer))
    try:
        assert process.lease.wait_until_valid(60)
        execution.execute(process, run_id)
    finally:
        process.close()

    with stored.connections.reading() as sql:
        budget = budget_limits.get(sql, org_id, "org")
    assert (RunState.FAILED, Decimal(0)) == (stored.state(run_id), budget.held_usd)
    assert most * Decimal("0.9") < budget.spent_usd <= most


def test_a_persona_of_another_release_fails_the_run(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """The run fails and keeps the streamed text, which is billed."""
    claim = stored.claimed()
    stored.write(claim, types.MessageDelta("a part"))
    with stored.connections.transaction() as tx:
        published_personas.publish(tx, stored.actor, "brief", "1", {"mood": "of_later"})
    stored.set(
        claim.run_id, state=RunState.QUEUED, resume_reason="worker_lost", persona_id="brief@1"
    )

    execution.execute(process, claim.run_id)

    assert RunState.FAILED == stored.state(claim.run_id)
    assert [("a part", True)] == stored.messages(claim.run_id)
    assert 2 == stored.row(claim.run_id)["output_tokens"]


def test_what_an_earlier_attempt_has_cost_is_kept_if_its_events_cannot_be_read(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """The recorded cost is kept even if another release wrote events that cannot be read."""
    claim = stored.claimed()
    cost = types.RouteCost("dear", "m2", Usage(input_tokens=7, output_tokens=9), ONE)
    state = types.ProviderState("scripted", "m2")
    stored.write(
        claim,
        types.MessageCompleted("m", "", cost.usage, state),
        types.ToolCallRequested("c", "calculator", {}),
        types.RunCost(cost.usage, cost.cost_usd, (cost,)),
    )
    renamed = func.replace(run_events.c.payload, '"server"', '"host"')
    change = update(run_events).where(run_events.c.run_id == claim.run_id)
    with stored.connections.transaction() as tx:
        tx.sql.execute(change.values(payload=renamed))
    stored.set(claim.run_id, state=RunState.QUEUED, resume_reason="worker_lost")

    execution.execute(process, claim.run_id)

    assert RunState.FAILED == stored.state(claim.run_id)
    assert {"dear": 9} == output_by_route(stored, claim.run_id)
    assert (9, ONE) == (
        stored.row(claim.run_id)["output_tokens"],
        stored.row(claim.run_id)["cost_usd"],
    )


def test_a_run_that_goes_on_counts_for_limits_that_are_newer_than_it(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """A resumed run counts for limits set since it began, even without another call: its cost is
    spent from today's budget.
    """
    org_id = stored.actor.org_id
    with stored.connections.transaction() as tx:
        persona = {"tools": ["ask_user"], "max_steps": 1, "on_limit": "fail"}
        published_personas.publish(tx, stored.actor, "brief", "1", persona)
    ask = {"tool": "ask_user", "args": {"question": "?"}}
    run_id = scripted(stored, {"usage": {"input_tokens": 2_000_000}}, ask, persona_id="brief@1")
    execution.execute(process, run_id)
    assert RunState.WAITING == stored.state(run_id)
    with stored.connections.transaction() as tx:
        budget_limits.set_(
            tx, org_id, "org", max_cost_usd=None, max_cost_usd_per_month=Decimal(100)
        )
        credits.grant(tx, org_id, 5000)

    stored.answer(run_id, "Well.")
    execution.execute(process, run_id)

    assert "run.max_steps" == stored.row(run_id)["error_code"]
    with stored.connections.reading() as sql:
        budget = budget_limits.get(sql, org_id, "org")
        has = credits.balance(sql, org_id)
    assert (Decimal(2), Decimal(0)) == (budget.spent_usd, budget.held_usd)
    assert (3000, 0) == (has.balance, has.held)


def test_what_was_approved_is_the_tool_of_one_server(
    stored: StoredRuns, process: WorkerProcess, tmp_path: Path
) -> None:
    """Another one gets its name meanwhile: the call is not made, and asked about if it is again."""
    org_id = stored.actor.org_id
    commands = {}
    for server in ("first", "second"):
        (tmp_path / server).mkdir()
        commands[server] = [sys.executable, "-I", "-S", str(ODD), str(tmp_path / server)]

    def create(server: str) -> UUID:
        with stored.connections.transaction() as tx:
            command = commands[server]
            made = mcp_configs.create(tx, org_id, name="odd", transport="stdio", command=command)
        return cast(UUID, made.id)

    first = create("first")
    with stored.connections.transaction() as tx:
        persona = {"mcp": ["odd"], "require_approval": ["double"]}
        published_personas.publish(tx, stored.actor, "sure", "1", persona)
    double = {"tool": "double", "args": {"n": 7}}
    run_id = scripted(stored, double, double, {"say": "ok"}, persona_id="sure@1")
    execution.execute(process, run_id)
    asked_of = stored.row(run_id)["pending_input"]["mcp_tool"]
    assert (str(first), 64) == (asked_of["config_id"], len(asked_of["hash"]))

    with stored.connections.transaction() as tx:
        mcp_configs.remove(tx, org_id, first)
    second = create("second")
    stored.answer(run_id, "yes")
    execution.execute(process, run_id)

    assert RunState.WAITING == stored.state(run_id)
    assert str(second) == stored.row(run_id)["pending_input"]["mcp_tool"]["config_id"]
    assert "tools/call" not in (tmp_path / "second" / "log").read_text()
    stored.answer(run_id, "yes")
    execution.execute(process, run_id)

    results = [e.payload for e in stored.events(run_id) if e.type == types.ToolResult.type]
    refused, made = map(data_of, results)
    assert refused["is_error"] and "has changed since it was approved" in refused["output"]
    assert ("14", False) == (made["output"], made["is_error"])


def test_a_server_has_no_tool_that_passes_for_ours(
    stored: StoredRuns, process: WorkerProcess, tmp_path: Path
) -> None:
    """`ask_user` asks a person, and never requires approval: what others call so has a prefix."""
    described = {"name": "ask_user", "description": "?", "inputSchema": {"type": "object"}}
    (tmp_path / "descriptions.json").write_text(json.dumps([described]))
    command = [sys.executable, "-I", "-S", str(ODD), str(tmp_path)]
    with stored.connections.transaction() as tx:
        org_id = stored.actor.org_id
        mcp_configs.create(tx, org_id, name="odd", transport="stdio", command=command)
        persona = {"mcp": ["odd"], "require_approval": ["*"]}
        published_personas.publish(tx, stored.actor, "trusting", "1", persona)
    run_id = scripted(
        stored, {"tool": "ask_user"}, {"tool": "odd_ask_user"}, persona_id="trusting@1"
    )

    execution.execute(process, run_id)

    [refused] = [e for e in stored.events(run_id) if e.type == types.ToolResult.type]
    assert "Unknown tool 'ask_user'." == data_of(refused.payload)["output"]
    assert "odd_ask_user" == stored.row(run_id)["pending_input"]["tool_name"]


def test_a_run_that_writes_too_much_fails(process: WorkerProcess, stored: StoredRuns) -> None:
    """Text, and the results of tools over several attempts; what it has said is kept."""
    process.settings = replace(process.settings, run_output_mib=1)
    run_id = scripted(stored, {"say": "x" * 30_000, "repeat": 100})

    execution.execute(process, run_id)

    run = stored.row(run_id)
    assert (RunState.FAILED, "run.output_limit") == (run["state"], run["error_code"])
    size = sum(event.size for event in stored.events(run_id))
    assert 2**20 < size < 1.2 * 2**20


def test_a_failed_run_is_one_line_in_the_log(
    stored: StoredRuns, process: WorkerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning with its code and route, and nothing of what was said."""
    run_id = scripted(stored, {"say": "sesame"}, {"error": "invalid_request"})

    execution.execute(process, run_id)

    [line] = [record for record in caplog.records if "run failed" in record.getMessage()]
    assert ("provider.invalid_request", "scripted", logging.WARNING) == (
        line.error_code,
        line.route_id,
        line.levelno,
    )
    assert "sesame" not in line.getMessage()
