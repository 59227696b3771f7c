"""Tool calls that an agent worker announces: their approval and their beginning."""

from collections.abc import Callable
from typing import Any

import pytest

from arkloop.shared.storage.connections import Connections
from tests.api.endpoints.agent_worker import MakeWorker, call, result, start, turn, worker
from tests.clients import User, error_of
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
