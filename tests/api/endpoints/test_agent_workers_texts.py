"""The text of an agent worker's run that is the run's when it ends, or goes to another worker."""

from collections.abc import Callable
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
    start,
    turn,
    worker,
)
from tests.clients import User

SAID = "It costs 42 USD."
THOUGHT = {"type": "message.thinking", "content": "Hm."}
TASK = {"tool_call_id": "c", "persona": "assistant", "task": "Check."}

pytestmark = pytest.mark.own_database

__all__ = ["start", "worker"]  # fixtures


@pytest.fixture
def limited(alice: User, worker: MakeWorker) -> Callable[..., tuple[Worker, str]]:
    """Call it for a worker that has taken a run of a persona with these limits."""

    def limited(**limits: Any) -> tuple[Worker, str]:
        assert alice.post("/v1/personas", json={"key": "short", "agent": "mine", **limits}).json
        made = alice.post("/v1/runs", json={"persona_id": "short", "message": "Hi"}).json
        assert made is not None
        mine = worker()
        mine.take()
        return mine, str(made["run_id"])

    return limited


def said(alice: User, run_id: str) -> list[str]:
    """Return the texts of the run's turns, as its timeline has them."""
    run = alice.get(f"/v1/runs/{run_id}").json
    assert run is not None
    entries = alice.get(f"/v1/threads/{run['thread_id']}/timeline").json
    assert entries is not None
    return [one["text"] for entry in entries for one in entry.get("turns", ())]


def half_void(mine: Worker) -> None:
    """Stream a text and take the end of it back."""
    void = {"type": "message.reset", "from_seq": mine.seq + 1}
    mine.write("append", delta("Hello there. "), delta("wrong"), void)


@pytest.mark.parametrize("end", ["fail", "cancel", "limit"])
def test_text_before_the_number_of_a_reset_is_kept(
    alice: User, limited: Callable[..., tuple[Worker, str]], end: str
) -> None:
    """It is the message of a run that ends so, and what a client shows that followed its events."""
    mine, run_id = limited(max_cost_usd=1)
    half_void(mine)

    if end == "fail":
        mine.write("fail", message="No.")
    elif end == "cancel":
        alice.post(f"/v1/runs/{run_id}:cancel")
        mine.write("release")
    else:
        mine.write("append", cost(5))

    run = alice.get(f"/v1/runs/{run_id}").json
    assert run is not None
    messages = alice.get(f"/v1/threads/{run['thread_id']}/messages").json
    assert messages is not None
    assert ["Hello there. "] == said(alice, run_id)
    assert "Hello there. " == messages[-1]["content"]


def test_text_before_the_number_of_a_reset_is_void_for_the_next_worker(
    alice: User, worker: MakeWorker, start: Callable[..., str]
) -> None:
    """It begins the turn anew: its text is shown once."""
    run_id, mine = start(), worker()
    mine.take()
    half_void(mine)
    mine.write("release")

    mine.take()
    mine.write("append", delta("Hello there. "), delta("It is 42."))

    assert ["Hello there. It is 42."] == said(alice, run_id)


@pytest.mark.parametrize("is_one_write", [False, True])
def test_text_before_the_number_of_a_reset_counts_as_streamed(
    limited: Callable[..., tuple[Worker, str]], connections: Connections, is_one_write: bool
) -> None:
    """The turn beyond the last step has it: it is not streamed once more."""
    mine, run_id = limited(max_steps=1)
    mine.write("append", turn("One."), call("a"), result("a", "1"))
    void = {"type": "message.reset", "from_seq": mine.seq + 1}
    writes = [[delta("Hello there. "), delta("wrong"), void], [turn("Hello there. "), call("b")]]
    if is_one_write:
        writes = [[*writes[0], *writes[1]]]

    for events in writes:
        ended = mine.write("append", *events)

    assert "completed" == ended.json["status"]
    shown = [one["content"] for one in data_of(connections, run_id, "message.delta")]
    assert ["Hello there. ", "wrong"] == shown


@pytest.mark.parametrize(
    ("before", "verb", "last", "body"),
    [
        ([delta(SAID)], "append", [cost(5)], {}),
        ([], "append", [delta(SAID), cost(5), turn(SAID), call("c")], {}),
        ([], "append", [delta(SAID), cost(0.1), cost(5), turn(SAID), call("c"), cost(1)], {}),
        (
            [],
            "append",
            [delta(SAID), cost(5), turn(SAID), call("c"), result("c", "1"), cost(1)],
            {},
        ),
        ([delta(SAID)], "append", [cost(5), turn(SAID), call("c")], {}),
        ([], "append", [cost(5), turn(SAID), call("c")], {}),
        ([], "append", [delta(SAID), turn(SAID), cost(5), call("c")], {}),
        ([], "append", [delta(SAID), cost(5), turn(SAID)], {}),
        ([turn(SAID)], "append", [cost(5), turn(), call("c")], {}),
        ([turn(SAID)], "append", [THOUGHT, cost(5)], {}),
        ([turn(SAID), delta("\n")], "append", [cost(5)], {}),
        ([delta(SAID)], "ask", [cost(5), turn(SAID), call("c")], {"approval_of": "c"}),
        ([delta(SAID)], "delegate", [cost(5), turn(SAID)], {"tasks": [TASK]}),
        ([turn(SAID)], "delegate", [cost(5)], {"tasks": [TASK]}),
    ],
)
def test_text_beside_the_cost_that_is_too_much_is_the_answer(
    before: list[dict[str, Any]],
    verb: str,
    last: list[dict[str, Any]],
    body: dict[str, Any],
    alice: User,
    limited: Callable[..., tuple[Worker, str]],
    connections: Connections,
) -> None:
    """It does not matter in how many requests it came: calls behind the cost are not stored.
    A repeated request has the same response.
    """
    mine, run_id = limited(max_cost_usd=1, delegates=["assistant"])
    if before:
        mine.write("append", *before)
    seq = mine.seq

    first, again = (mine.write(verb, *last, seq=seq, **body) for _ in range(2))

    run = alice.get(f"/v1/runs/{run_id}").json
    assert run is not None
    assert ("completed", "budget", SAID) == (run["status"], run["stop_reason"], run["output"])
    assert sum(one["cost_usd"] for one in last if "cost_usd" in one) == run["cost_usd"]
    assert (200, first.json) == (again.status_code, again.json)
    assert [SAID] == [text for text in said(alice, run_id) if text.strip()]
    assert [] == data_of(connections, run_id, "tool.call")


def test_a_cost_that_is_too_much_leaves_the_text_of_a_run_that_fails(
    alice: User, limited: Callable[..., tuple[Worker, str]]
) -> None:
    """It is a partial message, as without the turn behind the cost."""
    mine, run_id = limited(max_cost_usd=1, on_limit="fail")

    mine.write("append", delta(SAID), cost(5), turn(SAID), call("c"))

    run = alice.get(f"/v1/runs/{run_id}").json
    assert run is not None
    messages = alice.get(f"/v1/threads/{run['thread_id']}/messages").json
    assert messages is not None
    assert ("failed", "budget.exhausted") == (run["status"], run["error"]["code"])
    assert (SAID, True) == (messages[-1]["content"], messages[-1]["partial"])


def test_calls_behind_a_cost_within_the_budget_are_stored(
    limited: Callable[..., tuple[Worker, str]], connections: Connections
) -> None:
    """All steps of a request are those of the run."""
    mine, run_id = limited(max_cost_usd=1)
    steps = [(cost(0.1), turn(SAID), call(id_), result(id_, "1")) for id_ in "abc"]

    written = mine.write("append", *(event for step in steps for event in step))

    assert ("running", 14) == (written.json["status"], written.json["next_seq"])
    assert 3 == len(data_of(connections, run_id, "tool.call"))
