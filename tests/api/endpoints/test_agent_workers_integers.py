"""Integers beyond 64 bits in the output of agent workers."""

import json

import pytest

from arkloop.shared.storage.connections import Connections
from tests.api.endpoints.agent_worker import MakeWorker, call, cost, data_of, worker
from tests.clients import User

pytestmark = pytest.mark.own_database

__all__ = ["worker"]  # a fixture


def test_an_output_may_have_long_integers(
    alice: User, worker: MakeWorker, connections: Connections
) -> None:
    """A model's output may have them, too; other bodies have integers of 64 bits."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    alice.post("/v1/personas", json={"key": "exact", "agent": "mine", "output_schema": schema})
    made = alice.post("/v1/runs", json={"persona_id": "exact", "message": "Hi"}).json
    assert made is not None
    mine = worker()
    mine.take()
    output = {"n": 10**999}

    too_long = mine.write("complete", content=f'{{"n": 1{10**999}}}', output={"n": 10**1000})
    elsewhere = mine.write("append", call("c", n=2**63))
    cost_of_model = mine.write("complete", cost(10**400), content="{}", output={})
    written = mine.write("complete", content=json.dumps(output), output=output)

    assert {"output.n": ["has more than 1,000 digits"]} == too_long.json["details"]
    assert [422, 422] == [elsewhere.status_code, cost_of_model.status_code]
    assert 200 == written.status_code, written.text
    shown = alice.get(f"/v1/runs/{made['run_id']}").json
    assert shown is not None
    assert output == shown["output"]
    [ended] = data_of(connections, made["run_id"], "run.completed")
    assert output == ended["output"]
