"""The limits on the writes of agent workers: what is too much ends the run."""

import json
from dataclasses import replace

import pytest

from arkloop.api.app import create_app
from arkloop.shared import ids
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.runs import agent_limits
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.postgres import MAINTENANCE_TIMEOUTS
from tests.clients import User

UNPRICED = {"type": "run.cost", "model": "nobody-knows-it", "input_tokens": 10}


@pytest.fixture
def small(alice: User, connections: Connections) -> User:
    """A user of a server on which a run's events have 1 MiB at most, with an agent's persona."""
    settings = replace(connections.settings, run_output_mib=1)
    app = create_app(connections=replace(connections, settings=settings))
    alice.post("/v1/personas", json={"key": "custom", "agent": "mine"})
    alice.post("/v1/personas", json={"key": "poor", "agent": "mine", "max_cost_usd": 1})
    return replace(alice, client=app.test_client())


def taken(user: User, persona: str) -> dict[str, object]:
    """Start a run and take it; return how its writes begin."""
    user.post("/v1/runs", json={"persona_id": persona, "message": "Hi"})
    body = {"worker_id": str(ids.new_id()), "wait_seconds": 0}
    polled = user.post("/v1/agent-workers/mine:poll", json=body).json
    assert polled is not None
    [run] = polled["runs"]
    return {"run_id": run["run_id"], "fence": run["fence"], "seq": run["next_seq"]}


@pytest.mark.parametrize("characters", [100, 8_000])
def test_a_run_that_writes_too_much_fails(small: User, characters: int) -> None:
    """Events beyond `ARKLOOP_RUN_OUTPUT_MIB` fail the run, in small requests and in large ones."""
    own = taken(small, "custom")
    delta = {"type": "message.delta", "content": "x" * characters}
    status, written = "running", 0
    while status == "running" and written < 2 * 1024 * 1024:
        events = [delta] * 200
        answer = small.post("/v1/agent-workers/mine:append", json={**own, "events": events}).json
        assert answer is not None
        own["seq"], status = answer["next_seq"], answer["status"]
        written += characters * len(events)

    run = small.get(f"/v1/runs/{own['run_id']}").json
    assert run is not None
    assert ("failed", "run.output_limit") == (run["status"], run["error"]["code"])


@pytest.mark.parametrize(
    ("persona", "status", "code"),
    [("custom", "running", None), ("poor", "failed", "budget.exhausted")],
)
def test_a_call_without_a_known_price_fails_the_run_under_a_budget(
    small: User, persona: str, status: str, code: str | None
) -> None:
    """Without a budget it counts as 0; both as for an agent in the service's own worker."""
    own = taken(small, persona)

    answer = small.post("/v1/agent-workers/mine:append", json={**own, "events": [UNPRICED]}).json

    run = small.get(f"/v1/runs/{own['run_id']}").json
    assert answer is not None
    assert run is not None
    assert (status, status) == (answer["status"], run["status"])
    error = run["error"] or {"code": None, "message": "'nobody-knows-it'"}
    assert code == error["code"]
    assert "'nobody-knows-it'" in error["message"]
    assert 10 == run["usage"]["input_tokens"] or status == "running"


def test_a_checkpoint_of_a_mebibyte_may_have_as_many_values_as_it_can(small: User) -> None:
    """It is limited by its size alone, as that of an agent in the service's own worker."""
    own = taken(small, "custom")
    body = {"run_id": own["run_id"], "fence": own["fence"], "checkpoint": [0] * 524_287}

    assert 200 == small.post("/v1/agent-workers/mine:checkpoint", json=body).status_code


def test_a_long_output_has_to_fit_its_patterns() -> None:
    """Text without a pattern may be as long as the size of the output allows."""
    schema = {"type": "object", "properties": {"id": {"pattern": "^x+$"}, "text": {}}}
    persona = Persona(key="p", version="1", agent="mine", output_schema=schema)

    def check(**output: str) -> None:
        agent_limits.check_output(persona, json.dumps(output), output)

    check(id="x", text="y" * 50_000)
    for output in ({"id": "y", "text": "y" * 50_000}, {"id": "x" * 100_001}):
        with pytest.raises(InvalidRequest):
            check(**output)


def test_an_output_that_nothing_can_validate_is_refused() -> None:
    """The persona's schema is one that an earlier release took."""
    schema = {"type": "object", "properties": {"n": {"$ref": "#/$defs/none"}}}
    persona = Persona(key="p", version="1", agent="mine", output_schema=schema)

    with pytest.raises(InvalidRequest) as refused:
        agent_limits.check_output(persona, "{}", {})

    [why] = refused.value.details["output"]
    assert why.endswith("does not support its schema: Unresolvable `$ref`: #/$defs/none")


def test_a_write_needs_one_connection(alice: User, connections: Connections) -> None:
    """What it reads of the catalog it reads with its own: else some at once wait for each other."""
    alice.post("/v1/personas", json={"key": "other", "system_prompt": "Hi"})
    persona = {"key": "custom", "agent": "mine", "max_cost_usd": 1, "delegates": ["other"]}
    alice.post("/v1/personas", json=persona)
    single = connections.with_pool(application="single", size=1, timeouts=MAINTENANCE_TIMEOUTS)
    user = replace(alice, client=create_app(connections=single).test_client())
    task = {"tool_call_id": "c", "persona": "other", "task": "t"}
    turn = {"type": "message.completed", "content": ""}
    cost = {"type": "run.cost", "cost_usd": 0.1}
    writes: list[tuple[str, dict[str, object]]] = [
        ("append", {"events": [cost]}),
        ("ask", {"question": "Well?"}),
        ("release", {}),
        ("delegate", {"events": [turn], "tasks": [task]}),
    ]
    for verb, body in writes:
        own = taken(user, "custom")
        # Another process of the server, which knows nothing of the org yet.
        fresh = replace(alice, client=create_app(connections=single).test_client())
        written = fresh.post(f"/v1/agent-workers/mine:{verb}", json={**own, **body})
        assert 200 == written.status_code, (verb, written.text)
    single.close_pool()
