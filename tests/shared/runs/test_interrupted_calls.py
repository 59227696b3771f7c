"""Runs that end without a worker, in the middle of a model call: it is counted, once."""

import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert, select, text

from arkloop.shared.billing import budget_limits
from arkloop.shared.catalog import personas, published_personas
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.prices import known
from arkloop.shared.claim import Claim
from arkloop.shared.events import event_log, types
from arkloop.shared.events.event_log import data_of
from arkloop.shared.events.types import (
    ContextCompacted,
    MessageCompleted,
    MessageDelta,
    MessageReset,
    MessageThinking,
    RouteCost,
    RunCost,
    RunFallback,
    RunSettingsDropped,
    ToolResult,
)
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import new_id
from arkloop.shared.runs import endings, interrupted_calls, operated_runs, recovery, sweep
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.transitions import Totals, recorded_totals
from arkloop.shared.storage.tables.billing import ledger_entries, reservations, run_usage
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.threads import thread_contexts, threads
from tests.query_plans import Plans, noted
from tests.shared.catalog.org_catalog import add_model
from tests.stored_runs import USED, StoredRuns, ago

PROMPT = len(personas.builtin()["assistant@1"].system_prompt)
USED_COST = RunCost(USED.usage, USED.cost_usd, USED.routes)


def lost(
    stored: StoredRuns, said: str = "", *happened: types.Event, thread_id: UUID | None = None
) -> Claim:
    """Make a run with a message of 400 bytes, whose worker has been silent for too long; another
    one has been heard all the time.
    """
    stored.worker(started_at=ago(seconds=60), seen_at=ago(seconds=-3600))
    if thread_id is None:
        thread_id = stored.thread()
        with stored.connections.transaction() as tx:
            threads.add_message(tx, stored.actor, thread_id, content="é" * 200)
    worker_id = stored.worker()
    claim = stored.held(stored.create(thread_id), worker_id)
    stored.set_worker(worker_id, seen_at=ago(seconds=40))
    stored.write(claim, *happened, *([MessageDelta(said)] if said else []))
    return claim


def given_up(stored: StoredRuns, claim: Claim) -> list[dict[str, Any]]:
    """End it as the sweep does after the third crash; the data of its costs and of its end."""
    with stored.connections.transaction() as tx:
        run = tx.sql.execute(select(*runs.c).where(runs.c.id == claim.run_id)).mappings().one()
        endings.end_unclaimed(tx, run, RunState.FAILED, recovery.CRASHED)
    told = [event for event in stored.events(claim.run_id) if event.type != MessageDelta.type]
    return [data_of(event.payload) for event in told if "usage" in event.payload]


def tokens(data: dict[str, Any]) -> tuple[int, int, str]:
    usage = data["usage"]
    return usage["input_tokens"], usage["output_tokens"], usage["source"]


def sent(size: int) -> int:
    return -(-(PROMPT + size) // 4)


def test_who_gives_a_run_up_counts_its_lost_call(stored: StoredRuns) -> None:
    """The lost call is billed in an event before the end, in the run, its usage and the ledger
    alike.
    """
    claim = lost(stored, "x" * 40, MessageThinking("h" * 8))

    given_up(stored, claim)

    assert ["message.delta", "run.cost", "run.failed"] == stored.types(claim.run_id)[-3:]
    *_, cost, end = (data_of(event.payload) for event in stored.events(claim.run_id))
    assert (sent(400), 12, "estimated") == tokens(cost) == tokens(end)
    row = stored.row(claim.run_id)
    price = (sent(400) + 12 * 2) * Decimal("0.000001")  # of the scripted route
    assert (sent(400), 12, price) == (row["input_tokens"], row["output_tokens"], row["cost_usd"])
    with stored.connections.reading() as sql:
        [used] = sql.execute(select(run_usage).where(run_usage.c.run_id == claim.run_id))
        [entry] = sql.execute(select(ledger_entries).where(ledger_entries.c.run_id == claim.run_id))
        assert row["cost_usd"] == recorded_totals(sql, claim.run_id).cost_usd
    assert ("scripted", price, 1) == (used.route_id, used.cost_usd, entry.credits)
    assert [("x" * 40, True)] == stored.messages(claim.run_id)


def test_a_cancel_before_anybody_goes_on_counts_it(stored: StoredRuns) -> None:
    """A cancel bills the lost call in addition to the finished turns, whose texts it had sent
    again.
    """
    finished = (
        MessageCompleted(str(new_id()), "y" * 100, Usage()),
        USED_COST,
        ToolResult("call_1", "current_time", "z" * 300, False, 1),
    )
    claim = lost(stored, "half", *finished)
    sweep.sweep(stored.connections)
    assert "queued" == stored.state(claim.run_id)

    stored.cancel(claim.run_id)

    assert ["run.cost", "run.cancelled"] == stored.types(claim.run_id)[-2:]
    row = stored.row(claim.run_id)
    assert USED.usage.output_tokens + 1 == row["output_tokens"]
    assert sent(400 + 100 + 300) < row["input_tokens"] - USED.usage.input_tokens < sent(400 + 1000)


@pytest.mark.parametrize("who", ["owner", "operator", "tree"])
def test_a_cancel_reads_the_catalog_before_it_locks_the_run(stored: StoredRuns, who: str) -> None:
    """Others wait for the row, but not for routes, personas and prices, too."""
    claim = lost(stored, "half")
    sweep.sweep(stored.connections)
    assert "queued" == stored.state(claim.run_id)
    parent = stored.claimed()
    if who == "tree":
        stored.set(claim.run_id, parent_run_id=parent.run_id)

    with noted(stored.connections) as statements:
        if who == "operator":
            with stored.connections.transaction() as tx:
                operated_runs.cancel(tx, claim.run_id)
        else:
            stored.cancel(parent.run_id if who == "tree" else claim.run_id)

    assert (1, "cancelled") == (
        stored.row(claim.run_id)["output_tokens"],
        stored.state(claim.run_id),
    )
    sent = [sql for sql, _ in statements]
    # The sub-run is ended by a transaction of its own, after that of the cancel.
    locks = "FOR NO KEY UPDATE SKIP LOCKED" if who == "tree" else "UPDATE runs"
    locked = next(number for number, sql in enumerate(sent) if locks in sql)
    read = [
        number for number, sql in enumerate(sent) if re.search(r"\b(llm_models|personas)\b", sql)
    ]
    assert read
    assert max(read) < locked


def test_runs_that_may_have_lost_a_call_are_found_by_indexes(stored: StoredRuns) -> None:
    """The look comes before every cancel of a run that no worker holds."""
    claim, new = lost(stored, "half"), stored.create()
    stored.set(claim.run_id, state=RunState.QUEUED)

    with (
        noted(stored.connections) as statements,
        stored.connections.transaction() as tx,
    ):
        known = interrupted_calls.look_up(tx, [claim.run_id, new])

    assert {claim.run_id} == known.keys()
    assert {"pk_runs", "pk_run_events"} == Plans(stored.connections, statements[0]).indexes()


@pytest.mark.parametrize(
    "happened",
    [
        [],
        [MessageDelta("half"), MessageReset(2, "provider.connection"), USED_COST],
        [MessageDelta("all"), MessageCompleted("", "all", Usage()), USED_COST],
        # A worker that stops for a deploy has reported it.
        [MessageDelta("half"), USED_COST],
    ],
    ids=["not begun", "void", "finished", "reported"],
)
def test_what_is_counted_or_said_nothing_is_not_counted_again(
    stored: StoredRuns, happened: list[types.Event]
) -> None:
    """The totals are those of the event log."""
    claim = lost(stored, "", *happened)

    told = given_up(stored, claim)

    assert (USED.usage if happened else Usage()) == Usage(**told[-1]["usage"])
    assert happened.count(USED_COST) == stored.types(claim.run_id).count("run.cost")


def test_a_call_of_a_fallback_is_billed_by_that(stored: StoredRuns, tmp_path: Path) -> None:
    """A fallback's lost call is billed by the fallback's prices, limits and name."""
    file = tmp_path / "routes.yaml"
    file.write_text(
        "routes: [{id: other, provider: scripted, model: m2, prices: {input: 5, output: 7},"
        " context_tokens: 90, max_output_tokens: 3}]"
    )
    settings = replace(stored.connections.settings, routes_file=str(file))
    stored = replace(stored, connections=replace(stored.connections, settings=settings))
    claim = lost(stored, "x" * 40, RunFallback("scripted", "other", "m2", "provider.timeout"))

    cost, end = given_up(stored, claim)

    assert (90, 3, "estimated") == tokens(end)
    assert [("other", "m2")] == [(part["route_id"], part["model"]) for part in cost["routes"]]
    assert 0.000471 == end["cost_usd"]


@pytest.mark.parametrize(
    ("is_of_org", "by_persona", "refused", "factor"),
    [
        (True, True, "", 2),
        (True, True, "extra_body.service_tier", 1),
        (True, True, "extra_body", 1),
        (True, True, "temperature", 2),
        (True, False, "", 1),
        (False, True, "", 1),
    ],
)
def test_it_costs_the_price_of_the_speed_that_was_ordered(
    stored: StoredRuns,
    tmp_path: Path,
    is_of_org: bool,
    by_persona: bool,
    refused: str,
    factor: int,
) -> None:
    """A persona's order is sent to models of its org, without the fields that were refused before,
    and not to routes of the server.
    """
    file = tmp_path / "routes.yaml"
    file.write_text("routes: [{id: server, provider: openai, model: gpt-6.1-sol}]")
    settings = replace(stored.connections.settings, routes_file=str(file))
    stored = replace(stored, connections=replace(stored.connections, settings=settings))
    order = {"model_settings": {"extra_body": {"service_tier": "priority"}}} if by_persona else {}
    with stored.connections.transaction() as tx:
        published_personas.publish(tx, stored.actor, "quick", "1", order)
    route_id = add_model(stored, model="gpt-6.1-sol") if is_of_org else "server"
    dropped = [
        RunSettingsDropped("another", ["extra_body.service_tier"]),
        RunSettingsDropped(route_id, [refused]),
        RunSettingsDropped(route_id, ["top_p"]),
    ]
    claim = lost(stored, "x" * 4000, *dropped)
    stored.set(claim.run_id, persona_id="quick@1", route_id=route_id, model="gpt-6.1-sol")

    end = given_up(stored, claim)[-1]

    said, read = end["usage"]["output_tokens"], end["usage"]["input_tokens"]
    assert 1000 == said
    assert factor * (2 * read + 10 * said) == round(end["cost_usd"] * 1_000_000)


@pytest.mark.parametrize(("speed", "factor"), [("priority", 2), ("", 1)])
def test_it_costs_the_price_of_the_speed_that_a_worker_has_sent(
    stored: StoredRuns, speed: str, factor: int
) -> None:
    """A worker that builds the request again leaves out what the server has refused."""
    claim = lost(stored, "half")
    order = {"extra_body": {"service_tier": "priority"}}
    prices = known("openai", "gpt-6.1-sol", None)
    route = Route(id="r", provider="openai", model="m", prices=prices, model_settings=order)
    usage = Usage(input_tokens=1000, output_tokens=1000, speed=speed)

    with stored.connections.reading() as sql:
        streamed = event_log.open_events(sql, claim.run_id)
        totals = interrupted_calls.count(
            *(stored.connections, sql, claim.run_id, Totals(), streamed), (route, usage)
        )

    assert factor * Decimal("0.012") == totals.cost_usd


@pytest.mark.parametrize("who", ["reservation", "run", "persona"])
def test_it_costs_no_more_than_was_reserved_for_it(stored: StoredRuns, who: str) -> None:
    """A lost call costs at most what was reserved, and has at most the tokens that the persona
    allows.
    """
    claim = lost(stored, "x" * 4000, USED_COST, MessageDelta("x" * 4000))
    if who == "persona":
        with stored.connections.transaction() as tx:
            definition = {"max_output_tokens": 7}
            published_personas.publish(tx, stored.actor, "brief", "1", definition)
        stored.set(claim.run_id, persona_id="brief@1")
        assert USED.usage.output_tokens + 7 == tokens(given_up(stored, claim)[-1])[1]
        return
    most = USED.cost_usd + Decimal("0.0003")
    with stored.connections.transaction() as tx:
        if who == "run":
            budget_limits.set_(
                tx, stored.actor.org_id, "org", max_cost_usd=most, max_cost_usd_per_month=None
            )
        else:
            month = text("date_trunc('month', now())")
            row = {"scopes": [], "cost_usd": USED.cost_usd, "held_usd": most, "month": month}
            tx.sql.execute(
                insert(reservations).values(run_id=claim.run_id, org_id=stored.actor.org_id, **row)
            )

    end = given_up(stored, claim)[-1]

    assert most - Decimal("0.000004") < stored.row(claim.run_id)["cost_usd"] <= most
    assert USED.usage.output_tokens < end["usage"]["output_tokens"] < 1000
    assert USED.usage.input_tokens < end["usage"]["input_tokens"] < sent(400)


def test_messages_that_the_model_was_not_sent_are_not_counted(stored: StoredRuns) -> None:
    """Messages before the thread's truncation point are not billed; the last one always is."""
    claims = []
    for position in (2, 12):
        thread_id = stored.thread()
        with stored.connections.transaction() as tx:
            for size in (1000, 400):
                threads.add_message(tx, stored.actor, thread_id, content="x" * size)
        claims.append(lost(stored, "x", thread_id=thread_id))
        with stored.connections.statement() as tx:
            point = ContextCompacted(window_tokens=8_000, upto_position=position)
            thread_contexts.move(tx, claims[-1], point)

    assert [sent(400)] * 2 == [tokens(given_up(stored, claim)[-1])[0] for claim in claims]


@pytest.mark.parametrize("what", ["route", "file", "persona"])
def test_what_is_gone_meanwhile_keeps_no_run_from_ending(
    stored: StoredRuns, tmp_path: Path, what: str
) -> None:
    """A lost call has no price without its route, and no prompt without its persona."""
    claim = lost(stored, "x" * 40)
    if what == "file":
        file = tmp_path / "routes.yaml"
        file.write_text("routes: 7")
        settings = replace(stored.connections.settings, routes_file=str(file))
        stored = replace(stored, connections=replace(stored.connections, settings=settings))
    else:
        stored.set(claim.run_id, **{f"{what}_id": "gone@9"})

    told = given_up(stored, claim)

    assert "failed" == stored.state(claim.run_id)
    assert (100 if what == "persona" else sent(400), 10, "estimated") == tokens(told[-1])
    assert (what == "persona") == (told[-1]["cost_usd"] > 0)


def test_what_a_fallback_that_is_gone_has_cost_stays_under_its_name(stored: StoredRuns) -> None:
    """The lost call is free, the turns before it are not."""
    used = Usage(input_tokens=1000, output_tokens=10)
    cost = RunCost(used, Decimal(5), (RouteCost("gone", "m2", used, Decimal(5)),))
    finished = (MessageCompleted(str(new_id()), "y", used), cost)
    claim = lost(stored, "x", RunFallback("scripted", "gone", "m2", "provider.timeout"), *finished)

    given_up(stored, claim)

    with stored.connections.reading() as sql:
        [row] = sql.execute(select(run_usage).where(run_usage.c.run_id == claim.run_id))
    assert ("gone", "m2", Decimal(5)) == (row.route_id, row.model, row.cost_usd)


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_persona_of_another_release_keeps_no_run_from_ending(
    stored: StoredRuns, is_cancelled: bool
) -> None:
    """A later one has published it, with a field that is not known here."""
    claim = lost(stored, "x" * 40)
    with stored.connections.transaction() as tx:
        published_personas.publish(tx, stored.actor, "brief", "1", {"mood": "of_later"})
    stored.set(claim.run_id, persona_id="brief@1", crashes=0 if is_cancelled else 3)

    sweep.sweep(stored.connections)
    if is_cancelled:
        stored.cancel(claim.run_id)

    assert ("cancelled" if is_cancelled else "failed") == stored.state(claim.run_id)


def test_what_the_run_did_not_see_is_not_counted(stored: StoredRuns) -> None:
    """Messages after its place in the thread."""
    claim = lost(stored, "x")
    thread_id = stored.row(claim.run_id)["thread_id"]
    with stored.connections.transaction() as tx:
        threads.add_message(tx, stored.actor, thread_id, content="later")

    assert sent(400) == tokens(given_up(stored, claim)[-1])[0]
