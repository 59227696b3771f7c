"""The endpoints of agent workers, as a worker in any language uses them."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, update

from arkloop.shared import ids
from arkloop.shared.runs import claims, queries, recovery, sweep
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.runs import agent_runs, runs, workers
from tests.api.endpoints.agent_worker import (
    MakeWorker,
    Worker,
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


def test_a_run_is_executed_by_an_agent_worker(
    alice: User, worker: MakeWorker, start: Callable[..., str], connections: Connections
) -> None:
    """A worker gets the run with its conversation, and what it writes is the run's stream."""
    run_id = start(end_user_id="eve", metadata={"tier": "gold"})
    mine = worker()

    run = mine.take()
    mine.write("append", delta("Let me "), delta("see."))
    mine.write("append", turn("Let me see."), call("c1", q=1), result("c1", "42"))
    mine.write("append", cost(0.25, input_tokens=10, output_tokens=5))
    ended = mine.write("complete", delta("It is 42."), content="It is 42.")

    assert (run_id, "eve", {"tier": "gold"}, "Hi") == (
        *(run[name] for name in ("run_id", "end_user_id", "metadata", "instructions")),
    )
    assert [{"role": "user", "content": "Hello"}] == run["messages"]
    assert ("completed", False) == (ended.json["status"], ended.json["cancel_requested"])
    assert [
        "run.started",
        *("message.delta", "message.delta", "message.completed", "tool.call", "tool.result"),
        *("run.cost", "message.delta", "message.completed", "run.completed"),
    ] == types_of(connections, run_id)
    shown = alice.get(f"/v1/runs/{run_id}").json
    assert shown is not None
    assert ("It is 42.", 0.25, 2) == (shown["output"], shown["cost_usd"], shown["steps"])
    assert 10 == shown["usage"]["input_tokens"]


def test_the_services_own_workers_leave_such_runs_alone(
    start: Callable[..., str], connections: Connections, worker: MakeWorker, stored: Any
) -> None:
    """A run of an agent is neither found nor claimed by a worker of the service."""
    run_id = UUID(start())

    with connections.reading() as sql:
        found = queries.unclaimed(sql, older_than=-1, limit=1000, suspects=True)

    assert run_id not in found
    assert {} == claims.claim(connections, [run_id], stored.worker())
    assert str(run_id) == worker().take()["run_id"]


def test_a_repeated_write_has_no_effect(
    worker: MakeWorker, start: Callable[..., str], connections: Connections
) -> None:
    """A write whose response was lost is repeated without effect, also the last one of a run."""
    run_id = start()
    mine = worker()
    mine.take()

    first = [mine.write("append", delta("a"), seq=2).json for _ in range(2)]
    last = [mine.write("complete", content="a", seq=3).json for _ in range(2)]

    assert first[0] == first[1]
    assert last[0] == last[1]
    expected = ["run.started", "message.delta", "message.completed", "run.completed"]
    assert expected == types_of(connections, run_id)


@pytest.mark.parametrize(
    ("seq", "verb", "events"),
    [
        (4, "append", [delta("x")]),  # a hole
        (1, "append", [delta("x")]),  # the number of another event
        (2, "append", [call("c1")]),
        (2, "complete", [delta("x")]),
    ],
)
def test_a_write_with_a_wrong_number_is_refused(
    seq: int,
    verb: str,
    events: list[dict[str, Any]],
    worker: MakeWorker,
    start: Callable[..., str],
    connections: Connections,
) -> None:
    """A hole, and a number that another event has, are refused with the number that comes next."""
    run_id = start()
    mine = worker()
    mine.take()
    mine.write("append", delta("a"))

    content = {"content": "x"} if verb == "complete" else {}
    refused = mine.write(verb, *events, seq=seq, **content)

    assert (409, "agent_workers.sequence_conflict") == error_of(refused)
    assert {"next_seq": 3} == refused.json["details"]
    assert ["run.started", "message.delta"] == types_of(connections, run_id)


def test_a_lost_worker_writes_nothing_and_its_successor_continues(
    worker: MakeWorker, start: Callable[..., str], connections: Connections
) -> None:
    """When a worker is silent for its lease, another one gets the run with the last checkpoint;
    every later write of the first is refused.
    """
    run_id = start()
    lost, heir = worker(), worker()
    lost.take()
    lost.write("append", turn("One."), call("c1"), checkpoint={"at": 1})
    lost.write("append", delta("Two, not finished"))
    silent = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, 600)
    with connections.transaction() as tx:
        of_lost = update(workers).where(workers.c.id == UUID(lost.id))
        tx.sql.execute(of_lost.values(seen_at=silent))
        tx.sql.execute(workers.insert().values(id=ids.new_id(), hostname="h", pid=1, lock_key=1))
    sweep.sweep(connections)

    run = heir.take()
    late = [
        lost.write(verb, **more) for verb, more in (("append", {"checkpoint": 2}), ("release", {}))
    ]
    heir.write("complete", result("c1", "7"), content="Done.")

    assert (2, {"at": 1}) == (run["attempt"], run["checkpoint"])
    assert "One." == run["messages"][-1]["content"]
    assert ["c1"] == [one["id"] for one in run["messages"][-1]["tool_calls"]]
    assert [(409, "agent_workers.outdated_fence")] * 2 == [error_of(one) for one in late]
    assert [
        *("run.started", "message.completed", "tool.call", "message.delta"),
        *("run.resumed", "message.reset", "tool.result", "message.completed", "run.completed"),
    ] == types_of(connections, run_id)
    with connections.reading() as sql:
        of_run = select(agent_runs.c.run_id).where(agent_runs.c.run_id == UUID(run_id))
        assert [] == sql.scalars(of_run).all()


def test_a_closed_connection_hands_the_runs_over(
    worker: MakeWorker, start: Callable[..., str], connections: Connections
) -> None:
    """Runs of a worker whose connection was closed go to another one, unless it was heard since."""
    named = [UUID(start())]
    gone = worker()
    gone.take()
    with connections.reading() as sql:
        of_gone = select(workers.c.seen_at).where(workers.c.id == UUID(gone.id))
        before = sql.scalar(of_gone)
    assert before is not None
    gone.beat()

    recovery.recover_from(connections, UUID(gone.id), before, named)
    assert [] == worker().poll()
    with connections.reading() as sql:
        now = sql.scalar(of_gone)
    assert now is not None
    recovery.recover_from(connections, UUID(gone.id), now, named)

    assert 2 == worker().take()["attempt"]
    assert [False] == [run["is_held"] for run in gone.beat()]


def test_a_lost_response_to_a_poll_is_repeated(
    worker: MakeWorker, start: Callable[..., str]
) -> None:
    """A worker that does not know of a run of its own gets it again with its next poll."""
    run_id = start()
    mine = worker()
    first = mine.take()

    assert [first] == mine.poll()
    assert [] == mine.poll(held=[run_id])


def test_a_run_that_its_worker_has_forgotten_is_continued(
    worker: MakeWorker, start: Callable[..., str]
) -> None:
    """A worker that could not end a run gets its calls and checkpoint, and makes no call twice."""
    start()
    mine = worker()
    mine.take()
    mine.write("append", turn("Look."), call("c1"), result("c1", "42"), checkpoint={"at": 1})

    run = mine.take()

    assert ({"at": 1}, 1) == (run["checkpoint"], run["attempt"])
    assert ["user", "assistant", "tool"] == [message["role"] for message in run["messages"]]
    assert 200 == mine.write("complete", content="It is 42.").status_code


def test_a_question_parks_the_run_until_it_is_answered(
    alice: User, worker: MakeWorker, start: Callable[..., str], connections: Connections
) -> None:
    """A run that asks waits without a worker, and is polled again with the answer."""
    run_id = start()
    mine = worker()
    mine.take()

    asked = mine.write(
        "ask",
        turn("Hm."),
        key="refund of order 7",
        question="Which?",
        options=["a", "b"],
    )
    waiting = alice.get(f"/v1/runs/{run_id}").json
    assert waiting is not None
    assert "waiting_for_input" == asked.json["status"] == waiting["status"]
    assert "Which?" == waiting["pending_input"]["prompt"]
    assert [] == worker().poll()
    alice.post(f"/v1/runs/{run_id}/input", json={"content": "b"})
    run = worker().take()

    answer = {"key": "refund of order 7", "question": "Which?", "answer": "b"}
    assert ([answer], 1) == (run["answers"], run["attempt"])


def test_a_cancel_is_reported_and_comes_before_every_other_end(
    alice: User, worker: MakeWorker, start: Callable[..., str], connections: Connections
) -> None:
    """Every response says that a run is being cancelled; whatever ends it then, it is cancelled."""
    run_id = start()
    mine = worker()
    mine.take()
    alice.post(f"/v1/runs/{run_id}:cancel")

    beaten, appended = mine.beat(), mine.write("append", delta("So far")).json
    ended = mine.write("complete", content="Too late").json

    assert [True] == [run["cancel_requested"] for run in beaten]
    assert appended["cancel_requested"]
    assert "cancelled" == ended["status"]
    assert ["run.cancel_requested", "run.cancelled"] == types_of(connections, run_id)[-2:]
    said = alice.get(f"/v1/threads/{mine.run['thread_id']}/messages").json
    assert said is not None
    assert ("So far", True) == (said[-1]["content"], said[-1]["partial"])


@pytest.mark.parametrize(
    ("cancelled", "on_limit", "end"),
    [
        (True, "answer", ("cancelled", None, None)),
        (False, "answer", ("completed", None, "timeout")),
        (False, "fail", ("failed", "run.timeout", None)),
    ],
)
def test_the_sweep_ends_what_a_worker_does_not(
    cancelled: bool,
    on_limit: str,
    end: tuple[str, str | None, str | None],
    alice: User,
    worker: MakeWorker,
    connections: Connections,
) -> None:
    """A run whose time is over ends, and so does one whose worker ignores a cancel."""
    alice.post("/v1/personas", json={"key": "slow", "agent": "mine", "on_limit": on_limit})
    made = alice.post("/v1/runs", json={"persona_id": "slow", "message": "Hi"}).json
    assert made is not None
    run_id = made["run_id"]
    mine = worker()
    mine.take()
    mine.write("append", turn("Well."), call("c1"), delta("So far"))
    past = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, 10)
    with connections.transaction() as tx:
        if cancelled:
            of_run = update(runs).where(runs.c.id == UUID(run_id))
            by = {"cancel_requested_at": past, "cancel_requested_by": alice.id}
            tx.sql.execute(of_run.values(**by))
        else:
            of_run = update(agent_runs).where(agent_runs.c.run_id == UUID(run_id))
            tx.sql.execute(of_run.values(deadline_at=past))

    sweep.sweep(connections)

    shown = alice.get(f"/v1/runs/{run_id}").json
    assert shown is not None
    code = shown["error"] and shown["error"]["code"]
    assert end == (shown["status"], code, shown["stop_reason"])
    assert (409, "agent_workers.outdated_fence") == error_of(mine.write("append", delta("x")))
    if end[0] == "completed":
        assert "So far" == shown["output"]
        [cut_off] = data_of(connections, run_id, "tool.result")
        assert ("c1", True) == (cut_off["tool_call_id"], cut_off["is_error"])


def test_a_released_run_goes_to_another_worker(
    worker: MakeWorker, start: Callable[..., str], connections: Connections
) -> None:
    """A worker that stops gives its runs back, which counts as no crash."""
    run_id = start()
    mine = worker()
    mine.take()

    released = mine.write("release", checkpoint=[1, 2])
    run = worker().take()

    assert "running" == released.json["status"]
    assert ([1, 2], 1) == (run["checkpoint"], run["attempt"])
    assert "deploy" == data_of(connections, run_id, "run.resumed")[0]["reason"]


@pytest.mark.parametrize("data", [None, [1] * 50_000])
def test_a_checkpoint_is_any_json(data: Any, worker: MakeWorker, start: Callable[..., str]) -> None:
    """Null, and many small values, take the place of the one before as any other does."""
    start()
    mine = worker()
    mine.take()
    mine.write("checkpoint", checkpoint={"at": 1})

    stored = [mine.write(verb, checkpoint=data) for verb in ("append", "release")]

    assert [200, 200] == [one.status_code for one in stored]
    assert data == worker().take()["checkpoint"]


@pytest.mark.parametrize(
    ("verb", "body", "field_"),
    [
        ("append", {}, "events"),
        ("append", {"events": [delta("x")]}, "seq"),
        ("append", {"seq": 2, "events": [{"type": "run.completed"}]}, "events.0.type"),
        ("append", {"seq": 2, "events": [{"type": "message.delta"}]}, "events.0.content"),
        ("append", {"seq": 2, "events": [{**delta("x"), "more": 1}]}, "events.0.more"),
        ("append", {"seq": 2, "events": [cost(-1)]}, "events.0.cost_usd"),
        ("append", {"seq": 2, "events": [call("c1")]}, "events"),
        ("append", {"seq": "2", "events": [delta("x")]}, "seq"),
        ("append", {"checkpoint": "x" * 1_048_576}, "checkpoint"),
        ("checkpoint", {}, "checkpoint"),
        ("complete", {"seq": 2}, "content"),
        ("ask", {"seq": 2, "key": "q"}, "question"),
        ("fail", {"seq": 2}, "message"),
        ("release", {}, "seq"),
    ],
)
def test_a_malformed_write_names_its_field(
    verb: str, body: dict[str, Any], field_: str, worker: MakeWorker, start: Callable[..., str]
) -> None:
    """What is missing, unknown or too long is refused by its name."""
    start()
    mine = worker()
    mine.take()

    refused = mine.post(verb, run_id=mine.run["run_id"], fence=mine.run["fence"], **body)

    assert (422, "validation.error") == error_of(refused)
    assert field_ in refused.json["details"]


def test_a_workers_key_sees_nothing_else(
    alice: User, worker: MakeWorker, start: Callable[..., str], register: Any
) -> None:
    """A key with the scope of agent workers reads no run, and gets none of other orgs or agents."""
    run_id = start()
    mine = worker()

    assert (403, "auth.forbidden") == error_of(mine.user.get(f"/v1/runs/{run_id}"))
    poll = {"worker_id": mine.id, "wait_seconds": 0}
    reader = alice.api_key("data.runs.read")
    refused = reader.post("/v1/agent-workers/mine:poll", json=poll)
    assert (403, "auth.forbidden") == error_of(refused)
    assert [] == worker("other").poll()
    assert [] == Worker(register()).poll()
    mine.take()
    stranger = Worker(register(), run=mine.run, seq=mine.seq)
    assert (404, "runs.not_found") == error_of(stranger.write("append", delta("x")))
