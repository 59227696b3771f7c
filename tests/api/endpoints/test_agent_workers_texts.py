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
