"""The ends of an agent worker's run: by a failure, an output, its last step or a limit."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, update

from arkloop.shared.accounts import suspensions
from arkloop.shared.runs import claims, sweep
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.accounts import orgs
from arkloop.shared.storage.tables.runs import agent_runs, runs
from tests.api.endpoints.agent_worker import (
    MakeWorker,
    call,
    cost,
    data_of,
    delta,
    result,
    settings,
    start,
    turn,
    types_of,
    worker,
)
from tests.clients import User, error_of

pytestmark = pytest.mark.own_database

__all__ = ["settings", "start", "worker"]  # fixtures


def test_a_failure_is_the_runs(alice: User, worker: MakeWorker, start: Callable[..., str]) -> None:
    """An agent that fails says why."""
    run_id = start()
    mine = worker()
    mine.take()

    mine.write("fail", message="The model is gone.", retryable=True)

    shown = alice.get(f"/v1/runs/{run_id}").json
    assert shown is not None
    failure = {"code": "agent.failed", "message": "The model is gone.", "retryable": True}
    assert failure == shown["error"]


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_run_whose_persona_cannot_be_read_ends_alone(
    alice: User,
    worker: MakeWorker,
    start: Callable[..., str],
    connections: Connections,
    cancelled: bool,
) -> None:
    """The poll that claims it brings the other runs that were claimed with it."""
    newer, other = start(), start()
    mine = worker()
    if cancelled:
        assert 2 == len(mine.poll(max_runs=2))  # a response that is lost
        alice.post(f"/v1/runs/{newer}:cancel")
    of_later_release = update(runs).where(runs.c.id == UUID(newer)).values(options={"later": 1})
    with connections.transaction() as tx:
        tx.sql.execute(of_later_release)

    assert [other] == [run["run_id"] for run in mine.poll(max_runs=2)]

    shown = alice.get(f"/v1/runs/{newer}").json
    assert shown is not None
    if cancelled:
        assert "cancelled" == shown["status"]
    else:
        assert ("worker.crashed", True) == (shown["error"]["code"], shown["error"]["retryable"])
        message = shown["error"]["message"]
        assert "does not have persona 'custom@1', or its release does not support it" in message
    assert [] == mine.poll(held=[other])


def test_a_reported_cost_that_exceeds_the_budget_ends_the_run(
    alice: User, worker: MakeWorker, connections: Connections
) -> None:
    """A cost beyond the persona's limit is counted, and the run fails where it must not land."""
    custom = {"key": "poor", "agent": "mine", "max_cost_usd": 1, "on_limit": "fail"}
    alice.post("/v1/personas", json=custom)
    made = alice.post("/v1/runs", json={"persona_id": "poor", "message": "Hi"}).json
    assert made is not None
    mine = worker()
    mine.take()

    within = mine.write("append", cost(0.75)).json
    beyond = mine.write("append", cost(0.5)).json

    assert ("running", "failed") == (within["status"], beyond["status"])
    shown = alice.get(f"/v1/runs/{made['run_id']}").json
    assert shown is not None
    assert ("budget.exhausted", 1.25) == (shown["error"]["code"], shown["cost_usd"])


def test_the_output_must_fit_the_schema(
    alice: User, worker: MakeWorker, connections: Connections
) -> None:
    """What does not fit is refused, and the run continues; what fits is the run's output."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    alice.post("/v1/personas", json={"key": "exact", "agent": "mine", "output_schema": schema})
    made = alice.post("/v1/runs", json={"persona_id": "exact", "message": "Hi"}).json
    assert made is not None
    mine = worker()
    mine.take()

    for content, output, name in (
        ("text", None, "output"),
        ("text", {"n": 1}, "content"),
        ("[" * 2_000, {"n": 1}, "content"),
        ('{"n": "1"}', {"n": "1"}, "output"),
        ("{}", {}, "output"),
    ):
        refused = mine.write("complete", content=content, output=output)
        assert (422, "validation.error") == error_of(refused)
        assert [name] == list(refused.json["details"])
        assert "text" == content or name == "content" or '"' in refused.json["details"][name][0]
    mine.write("complete", content='{"n": 1}', output={"n": 1})

    shown = alice.get(f"/v1/runs/{made['run_id']}").json
    assert shown is not None
    assert ("completed", {"n": 1}) == (shown["status"], shown["output"])


def test_an_output_may_be_as_large_as_that_of_any_run(alice: User, worker: MakeWorker) -> None:
    """Nodes of the schema times values may be 1,000,000, where 64 characters count as one more, if
    the schema cannot be counted part by part.
    """
    rows = {"type": "array", "items": {"type": "string"}}
    schema = {"type": "object", "properties": {f"f{n}": rows for n in range(40)}}
    schema["not"] = {"required": ["other"]}
    alice.post("/v1/personas", json={"key": "exact", "agent": "mine", "output_schema": schema})
    for count, status in ((80, 200), (140, 422)):
        alice.post("/v1/runs", json={"persona_id": "exact", "message": "Hi"})
        mine = worker()
        mine.take()
        output = {f"f{n}": ["x" * 30] * count for n in range(40)}

        written = mine.write("complete", content=json.dumps(output), output=output)

        assert status == written.status_code
    assert {"output": ["is too large to validate"]} == written.json["details"]


def test_an_agent_says_that_its_output_is_none(
    alice: User, worker: MakeWorker, start: Callable[..., str]
) -> None:
    """Its run fails with the code of a run whose model has none; a repeated request is no other."""
    run_id = start()
    mine = worker()
    mine.take()
    seq = mine.seq

    refused = mine.write("fail", message="No.", code="worker.crashed")
    failed = [mine.write("fail", message="No.", code="output.invalid", seq=seq) for _ in range(2)]
    other = mine.write("complete", content="x", seq=seq)

    assert [422, 200, 200, 409] == [one.status_code for one in (refused, *failed, other)]
    shown = alice.get(f"/v1/runs/{run_id}").json
    assert shown is not None
    assert {"code": "output.invalid", "message": "No.", "retryable": False} == shown["error"]


def test_a_call_after_the_last_step_ends_the_run(
    alice: User, worker: MakeWorker, connections: Connections
) -> None:
    """A run with more such turns than its persona allows fails where it must not land."""
    short = {"key": "short", "agent": "mine", "max_steps": 1, "on_limit": "fail"}
    alice.post("/v1/personas", json=short)
    made = alice.post("/v1/runs", json={"persona_id": "short", "message": "Hi"}).json
    assert made is not None
    mine = worker()
    mine.take()

    first = mine.write("append", turn(), call("c1"), result("c1", "1")).json
    second = mine.write("append", turn(), call("c2")).json

    assert ("running", "failed") == (first["status"], second["status"])
    shown = alice.get(f"/v1/runs/{made['run_id']}").json
    assert shown is not None
    assert "run.max_steps" == shown["error"]["code"]


@pytest.mark.parametrize(
    ("verb", "events", "body", "stop_reason", "output"),
    [
        ("append", [delta("So far"), cost(1.5)], {}, "budget", "So far"),
        ("append", [cost(1.5)], {}, "budget", "No answer: this run reached its limit of cost"),
        ("complete", [cost(1.5)], {"content": "It is 42."}, "budget", "It is 42."),
        ("append", [turn(), call("c1")], {}, "max_steps", "No answer: this run reached its limit"),
        ("reserve", [], {"usd": 1.5}, "budget", "No answer: this run reached its limit of cost"),
    ],
)
def test_a_run_at_a_limit_lands(
    verb: str,
    events: list[dict[str, Any]],
    body: dict[str, Any],
    stop_reason: str,
    output: str,
    alice: User,
    worker: MakeWorker,
    connections: Connections,
) -> None:
    """It completes with its text so far, as runs in the service's own workers do."""
    custom = {"key": "poor", "agent": "mine", "max_cost_usd": 1, "max_steps": 1}
    alice.post("/v1/personas", json=custom)
    made = alice.post("/v1/runs", json={"persona_id": "poor", "message": "Hi"}).json
    assert made is not None
    run_id = made["run_id"]
    mine = worker()
    mine.take()
    mine.write("append", turn(), call("c0"), result("c0", "1"))

    if verb == "reserve":
        held = {"run_id": run_id, "fence": mine.run["fence"]}
        status = mine.post(verb, **held, **body).json["status"]
    else:
        status = mine.write(verb, *events, **body).json["status"]

    shown = alice.get(f"/v1/runs/{run_id}").json
    assert shown is not None
    assert ("completed", "completed", stop_reason) == (
        *(status, shown["status"], shown["stop_reason"]),
    )
    assert shown["output"].startswith(output)
    kinds = types_of(connections, run_id)
    assert kinds.count("tool.call") == kinds.count("tool.result")
    assert "run.limit_reached" in kinds


def test_calls_of_all_turns_have_results_after_a_landing(
    alice: User, worker: MakeWorker, connections: Connections
) -> None:
    """An agent may begin a turn before each call of the turns before it has its result."""
    alice.post("/v1/personas", json={"key": "poor", "agent": "mine", "max_cost_usd": 1})
    made = alice.post("/v1/runs", json={"persona_id": "poor", "message": "Hi"}).json
    assert made is not None
    mine = worker()
    mine.take()

    mine.write("append", turn(), call("slow"), call("c1"), result("c1", "1"))
    mine.write("append", turn(), call("c1"), call("c2"), result("c2", "2"))
    mine.write("append", turn(), cost(1.5))

    results = data_of(connections, made["run_id"], "tool.result")
    assert ["c1", "c2", "slow", "c1"] == [one["tool_call_id"] for one in results]
    assert [False, False, True, True] == [one["is_error"] for one in results]


@pytest.mark.parametrize("limit", ["budget", "time"])
def test_a_run_that_must_have_an_object_fails_without_one_at_a_limit(
    limit: str, alice: User, worker: MakeWorker, connections: Connections
) -> None:
    """Its text is no output; the code is that of runs in the service's own workers."""
    schema = {"type": "object", "required": ["b"]}
    custom = {"key": "strict", "agent": "mine", "max_cost_usd": 1, "output_schema": schema}
    alice.post("/v1/personas", json=custom)
    made = alice.post("/v1/runs", json={"persona_id": "strict", "message": "Hi"}).json
    assert made is not None
    mine = worker()
    mine.take()
    mine.write("append", turn(), call("c"), delta("So far"))

    if limit == "budget":
        mine.write("append", cost(1.5))
    else:
        past = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, 10)
        with connections.transaction() as tx:
            of_run = update(agent_runs).where(agent_runs.c.run_id == UUID(made["run_id"]))
            tx.sql.execute(of_run.values(deadline_at=past))
        sweep.sweep(connections)

    shown = alice.get(f"/v1/runs/{made['run_id']}").json
    assert shown is not None
    assert ("failed", "output.invalid") == (shown["status"], shown["error"]["code"])
    assert "reached its" in shown["error"]["message"]
    kinds = types_of(connections, made["run_id"])
    assert ["tool.result", "run.limit_reached", "run.failed"] == kinds[-3:]


@pytest.mark.parametrize("waits_for", ["person", "suspension"])
def test_a_wait_does_not_end_a_run_that_is_claimed_again(
    waits_for: str,
    alice: User,
    worker: MakeWorker,
    start: Callable[..., str],
    connections: Connections,
) -> None:
    """A sweep between the claim and the hand-over does not know the deadline of before the wait."""
    run_id = start()
    mine = worker()
    mine.take()
    wait = func.make_interval(0, 0, 0, 0, 2)  # hours
    row = update(runs).where(runs.c.id == UUID(run_id))
    limit = update(agent_runs).where(agent_runs.c.run_id == UUID(run_id))
    if waits_for == "person":
        mine.write("ask", key="q1", question="Which?")
    with connections.transaction() as tx:
        tx.sql.execute(row.values(started_at=runs.c.started_at - wait))
        tx.sql.execute(limit.values(deadline_at=agent_runs.c.deadline_at - wait))
        if waits_for == "person":
            tx.sql.execute(row.values(waiting_since=runs.c.waiting_since - wait))
        else:
            since = {"suspended_at": func.now() - wait, "suspension_reason": "Unpaid bills"}
            tx.sql.execute(row.values(state="queued", queued_at=func.now() - wait))
            tx.sql.execute(update(orgs).where(orgs.c.id == alice.org_id).values(since))
            suspensions.resume(tx, alice.org_id)
    if waits_for == "person":
        alice.post(f"/v1/runs/{run_id}/input", json={"content": "b"})

    assert claims.claim(connections, [UUID(run_id)], UUID(mine.id), have_agent=True)
    sweep.sweep(connections)

    deadline_at = datetime.fromisoformat(mine.take()["deadline_at"])
    assert 800 < (deadline_at - datetime.now(UTC)).total_seconds() <= 900
    with connections.reading() as sql:
        assert 1 == sql.scalar(select(func.count()).where(agent_runs.c.run_id == UUID(run_id)))


@pytest.mark.parametrize(
    ("events", "last_turn"),
    [
        ([], None),
        ([turn("One.")], "One."),
        ([turn("One."), call("c1")], None),
        ([turn("One."), call("c1"), result("c1", "42")], None),
        ([turn("One."), call("c1"), result("c1", "42"), turn("Two."), delta("Th")], "Two."),
        ([turn("One."), call("c1"), turn("Two."), result("c1", "Left.")], "Two."),
    ],
)
def test_the_next_worker_knows_what_was_said_last(
    events: list[dict[str, Any]],
    last_turn: str | None,
    worker: MakeWorker,
    start: Callable[..., str],
    connections: Connections,
) -> None:
    """An agent that has nothing to add to its last turn has answered with it."""
    run_id = start()
    mine = worker()
    first = mine.take()

    mine.write("release", *events)
    other = worker()
    second = other.take()

    assert (None, last_turn) == (first["last_turn"], second["last_turn"])
    if last_turn is not None:
        said = data_of(connections, run_id, "message.completed")
        assert 200 == other.write("complete", content=last_turn).status_code
        assert said == data_of(connections, run_id, "message.completed")


def test_each_model_of_a_run_is_counted_by_itself(
    alice: User, worker: MakeWorker, start: Callable[..., str], connections: Connections
) -> None:
    """A later call of a model is added to its earlier ones; of models there are 16 at most."""
    run_id = start()
    mine = worker()
    mine.take()

    models = ["small", "large", "small", *(f"m{i}" for i in range(20)), "small", "large"]
    for model in models:
        assert 200 == mine.write("append", {**cost(0.25), "model": model}).status_code
    mine.write("complete", turn("Done."), content="Done.")

    *_, last = data_of(connections, run_id, "run.cost")
    routes = {part["route_id"]: (part["model"], part["cost_usd"]) for part in last["routes"]}
    assert ("large", 0.5) == routes["agent/mine/large"]
    assert ("small", 0.25 * (3 + 20 - 14)) == routes["agent/mine"]
    assert 16 == len(routes)
    rows = alice.get("/v1/me/usage/by-model").json or []
    assert {(row["model"], row["cost_usd"]) for row in rows} == set(routes.values())
    assert 0.25 * len(models) == sum(row["cost_usd"] for row in rows)


def test_a_cost_beyond_the_budget_after_a_cancel_counts(
    alice: User, worker: MakeWorker, start: Callable[..., str]
) -> None:
    """The run is cancelled, with what its call in progress has cost."""
    limit = {"max_cost_usd": 1}
    alice.post("/v1/personas", json={"key": "limited", "agent": "mine", **limit})
    run_id = start(persona_id="limited")
    mine = worker()
    mine.take()
    alice.post(f"/v1/runs/{run_id}:cancel", json={})

    written = mine.write("append", cost(1.5))

    shown = alice.get(f"/v1/runs/{run_id}").json
    assert shown is not None
    assert ("cancelled", "cancelled", 1.5) == (
        *(written.json["status"], shown["status"], shown["cost_usd"]),
    )
