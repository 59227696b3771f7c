"""Integers beyond 64 bits in what agent workers send."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from arkloop.shared.storage.connections import Connections
from tests.api.endpoints.agent_worker import (
    MakeWorker,
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


def test_an_output_may_have_long_integers(
    alice: User, worker: MakeWorker, connections: Connections
) -> None:
    """A model's output may have them, too."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    alice.post("/v1/personas", json={"key": "exact", "agent": "mine", "output_schema": schema})
    made = alice.post("/v1/runs", json={"persona_id": "exact", "message": "Hi"}).json
    assert made is not None
    mine = worker()
    mine.take()
    output = {"n": 10**999}

    too_long = mine.write("complete", content=f'{{"n": 1{10**999}}}', output={"n": 10**1000})
    written = mine.write("complete", content=json.dumps(output), output=output)

    assert {"output.n": ["has more than 1,000 digits"]} == too_long.json["details"]
    assert 200 == written.status_code, written.text
    shown = alice.get(f"/v1/runs/{made['run_id']}").json
    assert shown is not None
    assert output == shown["output"]
    [ended] = data_of(connections, made["run_id"], "run.completed")
    assert output == ended["output"]


def test_calls_and_checkpoints_may_have_long_integers(
    worker: MakeWorker, start: Callable[..., str], connections: Connections
) -> None:
    """Agents in the service may use them, too; the next worker gets them back."""
    run_id, mine = start(), worker()
    mine.take()
    wei = 10**999

    appended = mine.write("append", turn(), call("a", wei=wei), checkpoint={"wei": wei})
    stored = mine.write("checkpoint", checkpoint=[wei])
    released = mine.write("release", result("a", "paid"), checkpoint={"wei": wei})

    assert [200] * 3 == [one.status_code for one in (appended, stored, released)]
    assert [{"wei": wei}] == [one["arguments"] for one in data_of(connections, run_id, "tool.call")]
    run = mine.take()
    assert ({"wei": wei}, wei) == (
        run["checkpoint"],
        run["messages"][1]["tool_calls"][0]["arguments"]["wei"],
    )


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("append", {"events": [cost(10**400)]}),
        ("append", {"events": [cost(0.1, input_tokens=10**20)]}),
        ("append", {"events": [{"type": "message.reset", "from_seq": 10**20}]}),
        ("append", {"events": [{**result("a", ""), "duration_ms": 10**20}]}),
        ("append", {"events": [delta("x")], "seq": 10**20}),
        ("append", {"events": [delta("x")], "fence": 10**20}),
        ("append", {"events": [call("a", n=10**1000)]}),
        ("checkpoint", {"checkpoint": 10**1000}),
        ("reserve", {"usd": 10**400}),
        ("poll", {"worker_id": "01a20e81-4d93-779b-b068-b0852a03871d", "max_runs": 10**20}),
    ],
)
def test_numbers_of_the_service_have_their_own_limits(
    worker: MakeWorker, start: Callable[..., str], verb: str, body: dict[str, Any]
) -> None:
    """Beyond them, and with more than 1,000 digits, it is refused, and the run continues."""
    start()
    mine = worker()
    mine.take()
    own = {"run_id": mine.run["run_id"], "fence": mine.run["fence"]}
    seq = {"seq": mine.seq} if verb == "append" else {}

    refused = mine.post(verb, **{**({} if verb == "poll" else own), **seq, **body})

    assert 422 == refused.status_code, refused.text
    assert 200 == mine.write("complete", content="Done.").status_code
