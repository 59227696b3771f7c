"""Tool calls that an agent worker announces: their approval and their beginning."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from arkloop.shared.runs import unbegun_calls
from arkloop.shared.storage.connections import Connections
from tests.api.endpoints.agent_worker import (
    MakeWorker,
    call,
    data_of,
    result,
    start,
    turn,
    worker,
)
from tests.clients import User, details_of, error_of
from tests.query_plans import noted

__all__ = ["start", "worker"]  # fixtures


def test_a_call_is_approved_before_it_begins(
    alice: User, worker: MakeWorker, start: Callable[..., str]
) -> None:
    """The request names a recorded call; the next claim has the reply, and what has begun."""
    run_id, mine = start(), worker()
    mine.take()
    asked = mine.write("ask", turn(), call("a", amount=5), approval_of="a")
    assert (200, "waiting_for_input") == (asked.status_code, asked.json["status"])
    pending = alice.get(f"/v1/runs/{run_id}").json["pending_input"]
    assert ("tool_confirmation", "look_up", {"amount": 5}) == tuple(
        pending[name] for name in ("kind", "tool_name", "arguments")
    )
    refused = alice.post(f"/v1/runs/{run_id}/input", json={"content": '{"decision": "edit"}'})
    assert 422 == refused.status_code
    edit = '{"decision": "edit", "arguments": {"amount": 4}}'
    alice.post(f"/v1/runs/{run_id}/input", json={"content": edit})

    taken = mine.take()

    assert [{"tool_call_id": "a", "arguments": {"amount": 5}, "answer": edit}] == taken["approvals"]
    assert ([], []) == (taken["answers"], taken["begun"])
    assert {"amount": 4} == taken["messages"][-1]["tool_calls"][0]["arguments"]
    assert 200 == mine.write("append", begun=["a"]).status_code
    mine.write("release")
    assert ["a"] == mine.take()["begun"]


def test_the_arguments_of_a_call_may_be_null(
    alice: User, worker: MakeWorker, start: Callable[..., str]
) -> None:
    """Null, which the model wrote, is recorded and shown to people and the next claim as it is."""
    run_id, mine = start(), worker()
    mine.take()
    made, guarded = ({**call(id_), "arguments": None} for id_ in ("a", "b"))

    appended = mine.write("append", turn(), made, result("a", "No object."), guarded)

    assert 200 == appended.status_code, appended.text
    assert 200 == mine.write("ask", approval_of="b").status_code
    pending = alice.get(f"/v1/runs/{run_id}").json["pending_input"]
    assert ("look_up", None) == (pending["tool_name"], pending["arguments"])
    alice.post(f"/v1/runs/{run_id}/input", json={"content": "yes"})
    taken = mine.take()
    assert [None, None] == [one["arguments"] for one in taken["messages"][1]["tool_calls"]]
    assert [{"tool_call_id": "b", "arguments": None, "answer": "yes"}] == taken["approvals"]


def test_an_approval_that_is_reserved_for_the_org_says_so(
    alice: User, worker: MakeWorker, start: Callable[..., str]
) -> None:
    """The persona decides; a question is for everybody."""
    guarded = {"key": "guarded", "agent": "mine", "approved_by": "org"}
    assert 201 == alice.post("/v1/personas", json=guarded).status_code
    pending = []
    for ask in ({"approval_of": "a"}, {"question": "Why?"}):
        run_id, mine = start(persona_id="guarded"), worker()
        mine.take()
        assert 200 == mine.write("ask", turn(), call("a"), **ask).status_code
        pending.append(alice.get(f"/v1/runs/{run_id}").json["pending_input"])

    assert ["org", None] == [one.get("approved_by") for one in pending]


@pytest.mark.parametrize(
    "body",
    [
        {"approval_of": "b"},
        {"approval_of": "done"},
        {"approval_of": "a", "key": "k"},
        {"approval_of": "a", "options": ["yes"]},
        {"approval_of": "a b"},
        {},
    ],
)
def test_an_approval_is_of_an_open_call(
    worker: MakeWorker, start: Callable[..., str], body: dict[str, Any]
) -> None:
    """A request for anything else is refused, and nothing is written."""
    start()
    mine = worker()
    mine.take()
    mine.write("append", turn(), call("done"), result("done", "1"))

    response = mine.write("ask", turn(), call("a"), **body)

    assert (422, "validation.error") == error_of(response)
    assert 200 == mine.write("ask", turn(), call("a"), approval_of="a").status_code


def test_what_begins_is_looked_for_without_reading_other_calls(
    worker: MakeWorker, start: Callable[..., str], connections: Connections
) -> None:
    """One statement looks for all of them, and returns nothing of calls with long results."""
    start()
    mine = worker()
    mine.take()
    text = '{"data":{"tool_call_id":"done"}}'
    calls = [call(id_, text=text, data={"tool_call_id": "done"}) for id_ in ("a", 'b"')]
    mine.write("append", turn(), call("done"), result("done", "x" * 60_000), *calls)

    with noted(connections) as statements:
        assert 200 == mine.write("append", begun=["a", 'b"']).status_code

    [statement] = [one for one in statements if "substring" in one[0]]
    with connections.reading() as sql:
        assert 2 == len(sql.exec_driver_sql(*statement).all())


def test_a_call_that_does_not_exist_cannot_begin(
    worker: MakeWorker, start: Callable[..., str]
) -> None:
    """The ledger has calls of the run alone."""
    start()
    mine = worker()
    mine.take()

    assert (422, "validation.error") == error_of(mine.write("append", begun=["x"]))


def test_a_worker_gets_every_call_of_a_long_run(
    alice: User, worker: MakeWorker, start: Callable[..., str]
) -> None:
    """Calls, answers and approvals are whole; of long outputs before 8 MiB a beginning is left."""
    run_id, mine = start(), worker()
    mine.take()
    mine.write("ask", question="How much?", key="amount")
    alice.post(f"/v1/runs/{run_id}/input", json={"content": "5"})
    mine.take()
    mine.write("ask", turn(), call("pay", amount=5), approval_of="pay")
    alice.post(f"/v1/runs/{run_id}/input", json={"content": "yes"})
    mine.take()
    said = "\N{SNOWMAN}" + "s" * 2000
    mine.write("append", begun=["pay"])
    mine.write("append", result("pay", "receipt 1"), turn(said), call("long"))
    mine.write("append", result("long", "\N{SNOWMAN}" + "x" * 60_000))
    for part in range(5):
        ids = [f"{part}-{number}" for number in range(30)]
        results = [result(id_, "y" * 60_000) for id_ in ids]
        assert 200 == mine.write("append", *map(call, ids), *results).status_code
    mine.write("release")

    taken = mine.take()

    assert [("amount", "5")] == [(one["key"], one["answer"]) for one in taken["answers"]]
    assert [("pay", "yes")] == [(one["tool_call_id"], one["answer"]) for one in taken["approvals"]]
    _, paying, receipt, saying, long, *others = taken["messages"]
    assert ["pay"] == [one["id"] for one in paying["tool_calls"]]
    assert ("pay", "receipt 1") == (receipt["tool_call_id"], receipt["content"])
    cut = "\n[cut: newer turns of the run have 8 MiB]"
    assert said[:1024] + cut == saying["content"]
    assert "\N{SNOWMAN}" + "x" * 1023 + cut == long["content"]
    assert 151 == len(saying["tool_calls"])
    assert "y" * 1024 + cut == others[0]["content"]
    whole = [one for one in others if one["content"] == "y" * 60_000]
    assert others[-len(whole) :] == whole
    assert 130 < len(whole) < 140


def test_a_response_has_few_long_runs(worker: MakeWorker, start: Callable[..., str]) -> None:
    """Several runs with long outputs come with two polls, and not with one."""
    workers = [worker() for _ in range(3)]
    for mine in workers:
        start()
        mine.take()
        for part in range(3):
            ids = [f"{part}-{number}" for number in range(30)]
            results = [result(id_, "y" * 60_000) for id_ in ids]
            assert 200 == mine.write("append", turn(), *map(call, ids), *results).status_code
    for mine in workers:
        mine.write("release")

    first = [run["run_id"] for run in mine.poll(max_runs=3)]
    others = [run["run_id"] for run in mine.poll(held=first)]

    assert (2, 1) == (len(first), len(others))
    assert {one.run["run_id"] for one in workers} == {*first, *others}


def test_a_result_follows_the_turn_of_its_call(
    worker: MakeWorker, start: Callable[..., str]
) -> None:
    """An agent began another turn while a call that it made side by side was in progress."""
    start()
    mine = worker()
    mine.take()
    mine.write("append", turn("One."), call("a"), call("b"), result("b", "2"))
    mine.write("append", turn("Two."), call("c"), result("a", "1"), result("c", "3"))
    mine.write("release")

    messages = mine.take()["messages"][1:]

    assert ["One.", "2", "1", "Two.", "3"] == [message["content"] for message in messages]


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("ask", {"question": "Go?"}),
        ("ask", {"approval_of": "c"}),
        ("release", {}),
        ("delegate", {"tasks": [{"tool_call_id": "d", "persona": "plain", "task": "Do."}]}),
    ],
)
def test_a_worker_gets_the_calls_that_have_not_begun(
    alice: User,
    worker: MakeWorker,
    start: Callable[..., str],
    connections: Connections,
    verb: str,
    body: dict[str, Any],
) -> None:
    """An execution that ends in order names them, and those that begin later are left out."""
    alice.post("/v1/personas", json={"key": "plain"})
    delegating = {"key": "custom", "version": "2", "agent": "mine", "delegates": ["plain"]}
    assert 201 == alice.post("/v1/personas", json=delegating).status_code
    run_id, mine = start(), worker()
    assert [] == mine.take()["unbegun"]
    mine.write("append", turn(), call("a"), call("b"), call("c"))
    refused = mine.write(verb, unbegun=["a", "x"], **body)
    assert (422, "validation.error") == error_of(refused)
    repeated = mine.write(verb, unbegun=["a", "b", "a"], **body)
    assert {"unbegun.2": ["duplicate id"]} == details_of(repeated)

    assert 200 == mine.write(verb, unbegun=["a", "b"], **body).status_code

    if verb == "ask":
        alice.post(f"/v1/runs/{run_id}/input", json={"content": "yes"})
    if verb == "delegate":  # a worker gets the run when the sub-run has ended
        with connections.reading() as sql:
            assert {"a", "b"} == unbegun_calls.read(sql, UUID(run_id)).unbegun
        return
    assert ["a", "b"] == mine.take()["unbegun"]
    mine.write("append", result("a", "1"))
    assert 200 == mine.write("append", begun=["b"]).status_code
    mine.write("release")
    assert ([], ["b"]) == (mine.take()["unbegun"], mine.run["begun"])
    # Not `begun`, by which a service of the release before refuses the field.
    assert {"tool_call_id"} == details_of(mine.write("append", begun=["b"])).keys()


@pytest.mark.parametrize(
    "reply", ["no", "perhaps", '{"decision": "edit", "arguments": {"persona": "p", "task": "B"}}']
)
def test_a_task_that_a_person_has_not_approved_is_not_given_out(
    alice: User, worker: MakeWorker, connections: Connections, reply: str
) -> None:
    """The person has denied the call, said neither, or replaced the task by another one."""
    alice.post("/v1/personas", json={"key": "p", "system_prompt": "Hi"})
    alice.post("/v1/personas", json={"key": "boss", "agent": "mine", "delegates": ["p"]})
    run_id = alice.post("/v1/runs", json={"persona_id": "boss", "message": "Hi"}).json["run_id"]
    mine = worker()
    mine.take()
    asked = call("a", "delegate", persona="p", task="A")
    mine.write("ask", turn(), asked, approval_of="a")
    alice.post(f"/v1/runs/{run_id}/input", json={"content": reply})
    mine.take()

    given = {"tool_call_id": "a", "persona": "p"}
    refused = mine.write("delegate", begun=["a"], tasks=[{**given, "task": "A"}])

    assert (422, "validation.error") == error_of(refused)
    assert ["tasks"] == list(details_of(refused))
    assert [] == data_of(connections, run_id, "run.delegated")
    replaced = mine.write("delegate", begun=["a"], tasks=[{**given, "task": "B"}])
    assert (200 if "edit" in reply else 422) == replaced.status_code
