"""Runs on routes whose stored keys can no longer be decrypted."""

import json
from dataclasses import replace

import pytest

from arkloop.shared.catalog import llm_providers, published_personas
from arkloop.shared.config import Settings
from arkloop.shared.events import types
from arkloop.shared.runs.states import RunState
from arkloop.shared.sealing import org_keys
from arkloop.worker.attempt import execution
from arkloop.worker.process.process import WorkerProcess
from tests.stored_runs import StoredRuns
from tests.worker.attempt.executed_runs import scripted
from tests.worker.providers.fake_vendor import delta, openai_stream, raw, vendor

#: What a vendor that checks no keys would answer.
ANSWER = raw(openai_stream(delta(content="Hi."), delta("stop")))


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, allowed_networks=("127.0.0.0/8",))


def lost_route(stored: StoredRuns, url: str) -> str:
    """Add a model of a provider with a key, erase the org's secrets, and return its route."""
    with stored.connections.transaction() as tx:
        provider = llm_providers.create(
            tx, stored.actor, name="lost", kind="openai", base_url=url, api_key="sk-lost"
        )
        model = llm_providers.create_model(tx, stored.actor, provider.id, model="m")
        assert org_keys.erase(tx, stored.actor.org_id)
    return str(model.id)


def test_a_run_whose_key_is_lost_fails_before_anything_is_sent(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """A vendor that checks no keys does not get the conversation, and the error says why."""
    with vendor(ANSWER) as fake:
        route_id = lost_route(stored, fake.url)
        run_id = scripted(stored, {"say": "no"}, route_id=route_id, model="m")
        execution.execute(process, run_id)

    row = stored.row(run_id)
    assert (RunState.FAILED, []) == (row["state"], fake.heads)
    assert ("provider.auth", False) == (row["error_code"], row["error_retryable"])
    assert "The stored key of this route cannot be decrypted." == row["error_message"]


def test_a_run_whose_key_is_lost_falls_back(stored: StoredRuns, process: WorkerProcess) -> None:
    """Its next route takes over, as after any other refusal of a key."""
    with stored.connections.transaction() as tx:
        persona = {"fallback_route_ids": ["scripted"]}
        published_personas.publish(tx, stored.actor, "brief", "1", persona)
    with vendor(ANSWER) as fake:
        route_id = lost_route(stored, fake.url)
        columns = {"route_id": route_id, "model": "m", "persona_id": "brief@1"}
        run_id = scripted(stored, {"say": "done"}, **columns)
        execution.execute(process, run_id)

    assert (RunState.COMPLETED, []) == (stored.state(run_id), fake.heads)
    [left] = [e for e in stored.events(run_id) if e.type == types.RunFallback.type]
    assert left.payload is not None
    assert "provider.auth" == json.loads(left.payload)["data"]["reason"]
