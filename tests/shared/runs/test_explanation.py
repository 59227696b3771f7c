"""Explanations of runs in situations that last too short or too long to wait for."""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import insert

from arkloop.shared.accounts import suspensions
from arkloop.shared.config import Settings
from arkloop.shared.errors import RunNotFound
from arkloop.shared.events import types
from arkloop.shared.events.types import Event, RunError
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import new_id
from arkloop.shared.runs import explain_executing, explanation
from arkloop.shared.runs.reasons import Explanation, Reason
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.runs import FIRST_WAITING, tool_calls
from tests.clients import User
from tests.query_plans import Plans, noted
from tests.shared_app import connect_patiently
from tests.stored_runs import StoredRuns, ago

ACCEPTANCE = "tests/acceptance/test_explanations.py"
MakeRun = Callable[..., UUID]


def explained(stored: StoredRuns, run_id: UUID) -> Explanation:
    return explanation.explain(stored.connections, stored.actor, run_id)[1]


@pytest.fixture(autouse=True)
def only_this_run(stored: StoredRuns) -> None:
    """Ends all other runs, and leaves no worker."""
    with stored.connections.transaction() as tx:
        tx.sql.exec_driver_sql("DELETE FROM workers")
        tx.sql.exec_driver_sql(
            "UPDATE runs SET state = 'cancelled', ended_at = now() WHERE ended_at IS NULL"
        )


@pytest.fixture(autouse=True)
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute in which something has happened just now: a test takes seconds of it."""
    monkeypatch.setattr(explanation, "FOUND_SECONDS", 60)
    monkeypatch.setattr(explain_executing, "START_SECONDS", 60)


def executing(stored: StoredRuns, *happened: Event) -> UUID:
    """Return a run that a living worker executes, after these events."""
    claim = stored.claimed()
    stored.write(claim, *happened)
    return claim.run_id


def test_an_unclaimed_run_is_next(stored: StoredRuns) -> None:
    """A run that was queued just now, with a living worker and nothing before it."""
    stored.worker()
    found = explained(stored, stored.create())
    assert ("queue.next", "start") == (found.reason, found.action)
    assert {"workers_alive": 1, "position": 1, "ahead_of_you": 0} == found.details


def test_a_run_that_nobody_takes_waits_for_a_slot(stored: StoredRuns) -> None:
    """Nothing is before it, but no worker has taken it for longer than a look into Postgres."""
    stored.worker()
    assert "queue.slots_full" == explained(stored, stored.create(queued_at=ago(seconds=61))).reason


def test_a_refused_message_is_named(stored: StoredRuns, settings: Settings) -> None:
    """The broker of this process does not take messages: the run is found in Postgres."""
    broken = replace(settings, broker_url="redis://127.0.0.1:1/0")
    connections = connect_patiently(broken)
    own = StoredRuns(connections, stored.actor)
    try:
        own.worker()
        run_id = own.create()
        found = explained(own, run_id)
    finally:
        connections.close()
    assert "queue.broker_refused" == found.reason
    assert "broker" in found.sentence


def test_a_queued_run_of_a_suspended_org_says_so(stored: StoredRuns) -> None:
    """This comes before any other reason: here no worker is alive."""
    run_id = stored.create()
    with stored.connections.transaction() as tx:
        suspensions.suspend(tx, stored.actor.org_id, "Unpaid bills")

    found = explained(stored, run_id)

    assert ("queue.org_suspended", "start") == (found.reason, found.action)
    assert "before the operator resumes" in found.sentence


def test_a_run_that_was_claimed_just_now_is_starting(stored: StoredRuns) -> None:
    """Its worker reads its thread and lists its tools."""
    assert "starting" == explained(stored, stored.claimed().run_id).reason


def test_a_run_for_agent_workers_waits_for_the_next_poll(stored: StoredRuns) -> None:
    """A worker of its agent and its org is alive; others do not count."""
    org_id = stored.actor.org_id
    for agent, of in (("custom", org_id), ("other", org_id), ("custom", new_id())):
        stored.worker(org_id=of, hostname=agent)
    found = explained(stored, stored.create(agent="custom"))
    assert ("queue.agent_worker", {"workers_alive": 1, "agent": "custom"}) == (
        found.reason,
        found.details,
    )


@pytest.mark.parametrize(
    ("resume_reason", "reason"),
    [
        ("worker_lost", "resume.worker_lost"),
        ("deploy", "resume.deploy"),
        ("input", "resume.input"),
        ("sub_runs", "resume.sub_runs"),
    ],
)
def test_a_run_that_resumes_says_after_what(
    stored: StoredRuns, resume_reason: str, reason: str
) -> None:
    """It is queued again, and a worker takes it next; a loss names the attempt to come."""
    claim = stored.claimed()
    stored.set(claim.run_id, state=RunState.QUEUED, resume_reason=resume_reason, crashes=2)

    found = explained(stored, claim.run_id)

    assert reason == found.reason
    assert resume_reason == found.details["resume_reason"]
    if resume_reason == "worker_lost":
        assert (2, 2, 1) == tuple(
            found.details[name] for name in ("attempt", "crashes", "crashes_left")
        )


def test_a_pending_run_of_a_free_thread_starts_with_the_next_sweep(
    stored: StoredRuns, alice: User, make_run: MakeRun
) -> None:
    """Its thread has no active run, as after a release that did not know queues."""
    waiting = {"state": RunState.PENDING, "position": FIRST_WAITING + 1}
    run_id = make_run(alice, alice.thread(), **waiting)
    found = explained(stored, run_id)
    assert ("thread.free", 1) == (found.reason, found.details["position"])


def test_a_sub_run_that_has_not_had_its_turn_says_so(stored: StoredRuns) -> None:
    """Its parent has as many active sub-runs as it may."""
    parent = stored.claimed().run_id
    run_id = stored.create(state=RunState.SUSPENDED, parent_run_id=parent)
    found = explained(stored, run_id)
    assert ("waiting.turn", str(parent)) == (found.reason, found.details["parent_run_id"])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("form", "waiting.form"),
        ("authorization", "waiting.authorization"),
        ("tool_results", "waiting.http_tools"),
    ],
)
def test_what_other_programs_ask_for_is_named(stored: StoredRuns, kind: str, reason: str) -> None:
    """Requests of MCP servers, and HTTP tools that answer later."""
    run_id = stored.create()
    call = {"tool_call_id": "call_1_1", "name": "refund", "arguments": {}}
    pending = {"request_id": str(new_id()), "kind": kind, "prompt": "?", "calls": [call]}
    until = ago(seconds=-60)
    stored.set(
        run_id,
        state=RunState.WAITING,
        pending_input=pending | {"on_expiry": "continue"},
        waiting_since=ago(seconds=5),
        input_expires_at=until,
    )
    with stored.connections.transaction() as tx:
        row = {"tool_call_id": "call_1_1", "fence": 1, "result_from": "http"}
        begun = {"accepted_at": ago(seconds=5), "run_id": run_id, **row}
        tx.sql.execute(insert(tool_calls).values(begun))

    found = explained(stored, run_id)

    assert (reason, "expire") == (found.reason, found.action)
    assert "continues without" in found.sentence
    if kind == "tool_results":
        assert "refund" == found.details["tool_calls"][0]["name"]


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        ("requests", "throttled.requests"),
        ("tokens", "throttled.tokens"),
        ("provider", "throttled.provider"),
        ("budget", "throttled.budget"),
        ("memory", "throttled.memory"),
    ],
)
def test_each_limit_that_throttles_is_named(stored: StoredRuns, cause: str, reason: str) -> None:
    """The cause, the route, and when it is asked again."""
    run_id = executing(stored, types.RunThrottled("slow", cause, 20.0))
    found = explained(stored, run_id)
    assert (reason, "slow", "retry") == (found.reason, found.details["route_id"], found.action)
    assert found.at is not None and found.since is not None
    assert 20 == round((found.at - found.since).total_seconds())


def test_a_throttle_that_is_over_promises_no_time(stored: StoredRuns) -> None:
    """The run may still wait: it asks again every few seconds."""
    found = explained(stored, executing(stored, types.RunThrottled("slow", "budget", 0.0)))
    assert ("throttled.budget", None) == (found.reason, found.at)


def test_a_retry_that_is_being_made_is_a_call(stored: StoredRuns) -> None:
    """The number of the try remains."""
    claim = stored.claimed()
    retry = types.RunRetrying("slow", "provider.overloaded", 2, -5.0)
    stored.write(claim, retry)
    found = explained(stored, claim.run_id)
    assert ("model.calling", 2) == (found.reason, found.details["try_number"])


def test_the_last_call_of_a_run_names_its_limit(stored: StoredRuns) -> None:
    """A budget that is used up, with the message of the limit."""
    limit = types.RunLimitReached("budget", "The budget is used up.")
    found = explained(stored, executing(stored, limit))
    assert ("model.last_call", "budget") == (found.reason, found.details["stop_reason"])
    assert found.sentence.startswith("The budget is used up.")


def test_calls_without_a_result_are_the_ones_that_run(stored: StoredRuns) -> None:
    """A turn's call that has a result is not named; nor are long arguments."""
    call = types.ToolCallRequested
    happened = (
        types.MessageCompleted("m", "", Usage()),
        call("call_1_1", 'quo"ted', {"text": "x" * 5000}),
        call("call_1_2", "second", {}),
        types.ToolResult("call_1_2", "second", "y" * 5000, False, 1),
        types.ToolProgress("call_1_1", 1.0),
    )
    found = explained(stored, executing(stored, *happened))
    assert "tools.running" == found.reason
    assert ['quo"ted'] == [one["name"] for one in found.details["tool_calls"]]


def test_a_call_with_a_long_name_is_shown(stored: StoredRuns) -> None:
    """Models choose names and ids, of up to 4,096 characters each."""
    name, call_id = '"ü' * 2000, "c" * 4000
    happened = (
        types.MessageCompleted("m", "", Usage()),
        types.ToolCallRequested(call_id, name, {}),
        types.ToolCallRequested("call_1_2", "second", {}),
        types.ToolResult(call_id, name, "", False, 1),
    )
    found = explained(stored, executing(stored, *happened))
    assert ["second"] == [one["name"] for one in found.details["tool_calls"]]
    alone = explained(stored, executing(stored, *happened[:2]))
    assert [(call_id, name)] == [
        (one["tool_call_id"], one["name"]) for one in alone.details["tool_calls"]
    ]


def test_text_before_a_cost_is_being_written(stored: StoredRuns) -> None:
    """A custom agent notes costs within the text that it streams."""
    cost = types.RunCost(Usage(), Decimal(0), ())
    run_id = executing(stored, types.MessageDelta("Half"), types.MessageDelta(" of"), cost)
    assert "model.streaming" == explained(stored, run_id).reason


def test_a_cancel_that_is_under_way_is_named(stored: StoredRuns) -> None:
    """Both a run that a worker holds and one that the sweep ends are named."""
    held = stored.claimed().run_id
    stored.cancel(held)
    unheld = stored.create(cancel_requested_at=ago(seconds=1))
    user_id = str(stored.actor.user_id)
    found = [explained(stored, run_id) for run_id in (held, unheld)]
    assert ["cancelling", "cancelling"] == [one.reason for one in found]
    assert {"cancelled_by_user_id": user_id} == found[0].details
    assert "sweep" in found[1].sentence


@pytest.mark.parametrize("seconds", [9, None])
def test_a_worker_that_is_not_heard_is_silent(stored: StoredRuns, seconds: float | None) -> None:
    """Its row says when its lease ends; without the row, the next sweep takes the run over."""
    claim = stored.claimed(seen_at=ago(seconds=seconds or 0))
    if seconds is None:
        with stored.connections.transaction() as tx:
            tx.sql.exec_driver_sql("DELETE FROM workers")
    alone = explained(stored, claim.run_id)
    assert ("worker.silent", None, 0) == (alone.reason, alone.at, alone.details["workers_alive"])
    stored.worker()
    found = explained(stored, claim.run_id)
    assert ("worker.silent", "take_over") == (found.reason, found.action)
    if seconds is None:
        assert None is found.at and "next sweep" in found.sentence
    else:
        assert found.at is not None and found.since is not None
        lease = stored.connections.settings.lease_seconds
        assert lease == (found.at - found.since).total_seconds()


def test_an_end_names_its_cause(stored: StoredRuns) -> None:
    """A crash, a cancel, a run that interrupted this one, a limit that was landed at."""
    failed, cancelled, landed = stored.claimed(), stored.create(), stored.claimed()
    stored.finish(failed, RunState.FAILED, error=RunError("worker.crashed", "It crashed.", False))
    stored.cancel(cancelled)
    superseded = stored.create()
    stored.cancel(superseded)
    stored.set(superseded, superseded_by=cancelled)
    stored.finish(landed)
    stored.set(landed.run_id, stop_reason="budget")

    found = {
        run_id: explained(stored, run_id)
        for run_id in (failed.run_id, cancelled, superseded, landed.run_id)
    }

    assert ["ended.failed", "ended.cancelled", "ended.superseded", "ended.at_limit"] == [
        one.reason for one in found.values()
    ]
    assert "worker.crashed: It crashed. A retry will not help." in found[failed.run_id].sentence
    assert str(cancelled) == found[superseded].details["superseded_by"]
    assert f" for run {cancelled}." in found[superseded].sentence
    assert "limit of cost" in found[landed.run_id].sentence
    assert all(one.action is None for one in found.values())


def test_questions_about_a_run_are_answered_by_indexes(
    stored: StoredRuns, alice: User, make_run: MakeRun
) -> None:
    """No table that grows is read from end to end, whatever the state of the run."""
    call = types.ToolCallRequested("call_1_1", "search", {})
    parent = stored.create(state=RunState.SUSPENDED, attempt=1, waiting_since=ago(seconds=1))
    waiting = {"state": RunState.PENDING, "position": FIRST_WAITING + 1}
    asked = [
        executing(stored, call),
        stored.create(),
        parent,
        make_run(alice, alice.thread(), **waiting),
    ]
    with noted(stored.connections) as statements:
        for run_id in asked:
            explained(stored, run_id)

    # The first is the run itself, and the place in the queue counts queued runs.
    own = [s for s in statements if "tree_cost_usd" not in s[0] and "in_end_user" not in s[0]]
    assert len(own) >= 6
    for statement in own:
        Plans(stored.connections, statement).indexes()


def test_a_run_that_is_not_visible_is_not_found(
    stored: StoredRuns, connections: Connections, register: Callable[..., User]
) -> None:
    """The run itself is not found either."""
    other = StoredRuns.of(connections, register())
    with pytest.raises(RunNotFound):
        explained(other, stored.create())


def test_every_reason_is_met_by_a_test_and_documented() -> None:
    """Tests are here or of the whole service; and the reference says what each of them means."""
    root = Path(__file__).parents[3]
    tests = Path(__file__).read_text() + (root / ACCEPTANCE).read_text()
    reference = (root / "docs/reference/http-api.md").read_text()

    assert [] == [reason for reason in Reason if f'"{reason}"' not in tests]
    assert [] == [reason for reason in Reason if f"`{reason}`" not in reference]
