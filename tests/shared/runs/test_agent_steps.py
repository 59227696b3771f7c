"""The limit of steps of an agent worker's run: what becomes of the turn beyond it."""

from typing import Any

import pytest

from arkloop.shared.storage.connections import Connections
from tests.api.endpoints.agent_worker import (
    MakeWorker,
    Worker,
    call,
    cost,
    data_of,
    delta,
    result,
    turn,
    types_of,
    worker,
)
from tests.clients import User

pytestmark = pytest.mark.own_database

__all__ = ["worker"]  # a fixture

SAID = "It costs 42 USD. Let me double-check."
THOUGHT = {"type": "message.thinking", "content": "Hm."}
TASK = {"tool_call_id": "d", "persona": "plain", "task": "Check."}


#: A call that is recorded before its task is given out.
GIVEN = call("g", "delegate", persona="plain", task="Check.")


def at_last_step(alice: User, worker: MakeWorker, **fields: Any) -> Worker:
    """Take a run that has made its only step."""
    persona = {"key": "short", "agent": "mine", "max_steps": 1, "delegates": ["plain"], **fields}
    alice.post("/v1/personas", json={"key": "plain", "system_prompt": "Hi"})
    alice.post("/v1/personas", json=persona)
    alice.post("/v1/runs", json={"persona_id": "short", "message": "Hi"})
    mine = worker()
    mine.take()
    mine.write("append", turn("Looking."), call("c1"), result("c1", "1"))
    return mine


@pytest.mark.parametrize(
    ("before", "verb", "events", "body"),
    [
        ([delta(SAID)], "append", [turn(SAID), call("c2")], {}),
        ([], "append", [delta(SAID), turn(SAID), call("c2"), result("c2", "2"), call("c3")], {}),
        ([], "append", [turn(SAID), call("c2")], {}),
        ([turn(SAID)], "append", [call("c2")], {}),
        ([turn(SAID)], "append", [turn(""), call("c2")], {}),
        ([turn(SAID), THOUGHT], "append", [turn(""), call("c2")], {}),
        ([delta(SAID)], "ask", [turn(SAID), call("c2")], {"approval_of": "c2"}),
        ([delta(SAID)], "delegate", [turn(SAID)], {"tasks": [TASK]}),
        ([turn(SAID)], "delegate", [], {"tasks": [TASK]}),
        ([GIVEN, turn(SAID)], "delegate", [], {"tasks": [{**TASK, "tool_call_id": "g"}, TASK]}),
    ],
)
def test_the_text_of_a_turn_beyond_the_last_step_is_the_answer(
    before: list[dict[str, Any]],
    verb: str,
    events: list[dict[str, Any]],
    body: dict[str, Any],
    alice: User,
    worker: MakeWorker,
    connections: Connections,
) -> None:
    """The run lands with it, as one of an agent in the service: a step more, and no further call.
    A repeated request has the same response.
    """
    mine = at_last_step(alice, worker)
    if before:
        mine.write("append", *before)
    seq = mine.seq

    first, again = (mine.write(verb, *events, cost(0.5), seq=seq, **body) for _ in range(2))

    run_id = mine.run["run_id"]
    run = alice.get(f"/v1/runs/{run_id}").json
    assert run is not None
    assert ("completed", "max_steps", SAID, 2, 0.5) == (
        *(run[name] for name in ("status", "stop_reason", "output", "steps", "cost_usd")),
    )
    assert (200, 200, first.json) == (first.status_code, again.status_code, again.json)
    assert ["Looking.", SAID] == [
        one["content"] for one in data_of(connections, run_id, "message.completed")
    ]
    calls = [one["tool_call_id"] for one in data_of(connections, run_id, "tool.call")]
    assert ["c1"] == [id_ for id_ in calls if id_ != "g"]
    messages = alice.get(f"/v1/threads/{mine.run['thread_id']}/messages").json
    assert messages is not None
    assert SAID == messages[-1]["content"]


@pytest.mark.parametrize("before", [[delta(SAID)], [], [THOUGHT]])
def test_a_run_that_fails_at_its_last_step_keeps_the_text(
    before: list[dict[str, Any]], alice: User, worker: MakeWorker, connections: Connections
) -> None:
    """It is a partial message, as that of an agent in the service, streamed or not."""
    mine = at_last_step(alice, worker, on_limit="fail")
    for event in before:
        mine.write("append", event)

    mine.write("append", turn(SAID), call("c2"))

    run = alice.get(f"/v1/runs/{mine.run['run_id']}").json
    messages = alice.get(f"/v1/threads/{mine.run['thread_id']}/messages").json
    assert run is not None
    assert messages is not None
    assert ("failed", "run.max_steps") == (run["status"], run["error"]["code"])
    assert (SAID, True) == (messages[-1]["content"], messages[-1]["partial"])
    assert ["message.delta", "run.failed"] == types_of(connections, mine.run["run_id"])[-2:]


@pytest.mark.parametrize("is_in_two", [False, True])
def test_text_of_a_turn_before_is_not_that_of_the_turn_beyond(
    is_in_two: bool, alice: User, worker: MakeWorker
) -> None:
    """Two turns are in one request: the text of the first was streamed, that of the other not."""
    persona = {"key": "short", "agent": "mine", "max_steps": 1, "on_limit": "fail"}
    alice.post("/v1/personas", json=persona)
    alice.post("/v1/runs", json={"persona_id": "short", "message": "Hi"})
    mine = worker()
    mine.take()
    if is_in_two:
        mine.write("append", delta("Looking."))
    first = [] if is_in_two else [delta("Looking.")]

    turns = [turn("Looking."), call("c1"), result("c1", "1"), turn(SAID), call("c2")]
    mine.write("append", *first, *turns)

    messages = alice.get(f"/v1/threads/{mine.run['thread_id']}/messages").json
    assert messages is not None
    assert (SAID, True) == (messages[-1]["content"], messages[-1]["partial"])


def test_a_result_beside_a_turn_beyond_the_last_step_is_kept(
    alice: User, worker: MakeWorker, connections: Connections
) -> None:
    """Its call belongs to an earlier turn, and is not one that the limit has ended."""
    mine = at_last_step(alice, worker)
    mine.write("append", call("c0"))

    mine.write("append", turn(SAID), result("c0", "0"), call("c2"), result("c2", "2"))

    results = data_of(connections, mine.run["run_id"], "tool.result")
    assert [("c1", "1"), ("c0", "0")] == [(one["tool_call_id"], one["output"]) for one in results]


def test_an_answer_in_the_request_of_the_last_calls_is_no_step_too_many(
    alice: User, worker: MakeWorker
) -> None:
    """A worker that gathers its events ends as one that sends each by itself."""
    mine = at_last_step(alice, worker)

    written = mine.write("append", call("c2"), result("c2", "2"), turn(SAID))
    mine.write("complete", content=SAID)

    run = alice.get(f"/v1/runs/{mine.run['run_id']}").json
    assert run is not None
    assert "running" == written.json["status"]
    assert ("completed", "stop", SAID) == (run["status"], run["stop_reason"], run["output"])


@pytest.mark.parametrize("events", [[], [turn(SAID)], [turn(SAID), cost(0.5)]])
def test_a_task_whose_call_is_on_record_is_no_step(
    events: list[dict[str, Any]], alice: User, worker: MakeWorker, connections: Connections
) -> None:
    """Its call belongs to an earlier turn, whatever text has followed."""
    mine = at_last_step(alice, worker)
    mine.write("append", GIVEN, turn("Let me check."))
    seq, tasks = mine.seq, [{**TASK, "tool_call_id": "g"}]

    first, again = (mine.write("delegate", *events, seq=seq, tasks=tasks) for _ in range(2))

    run_id = mine.run["run_id"]
    run = alice.get(f"/v1/runs/{run_id}").json
    assert run is not None
    assert ("running", 1) == (run["status"], len(data_of(connections, run_id, "run.delegated")))
    assert (200, first.json) == (first.status_code, again.json)
