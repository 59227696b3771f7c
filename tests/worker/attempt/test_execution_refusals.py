"""Runs of an org whose requests a vendor refuses one after the other, since they can never fit."""

import json
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from arkloop.shared.catalog import published_personas
from arkloop.shared.config import Settings
from arkloop.shared.events import types
from arkloop.shared.runs.states import RunState
from arkloop.worker.attempt import execution
from arkloop.worker.process.process import WorkerProcess
from tests.clients import Register
from tests.stored_runs import StoredRuns
from tests.worker.attempt.executed_runs import scripted

TOO_LARGE = {"error": "too_large"}
SAY = {"say": "done"}


@pytest.fixture(scope="module")
def settings(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The settings with a second route, which is nobody's fallback."""
    file = tmp_path_factory.mktemp("routes") / "routes.yaml"
    file.write_text("routes: [{id: dear, provider: scripted, model: m2}]")
    return replace(settings, routes_file=str(file))


def waits(
    process: WorkerProcess,
    stored: StoredRuns,
    step: dict[str, Any],
    state: RunState,
    **columns: Any,
) -> list[tuple[str, float]]:
    """Execute a run that plays the step and ends so; returns for what it waited, in seconds."""
    run_id = scripted(stored, step, **columns)
    execution.execute(process, run_id)
    assert state == stored.state(run_id)
    return waited(stored, run_id)


def waited(stored: StoredRuns, run_id: UUID) -> list[tuple[str, float]]:
    """Return for what a run has waited, in seconds."""
    throttled = [e.payload for e in stored.events(run_id) if e.type == types.RunThrottled.type]
    data = [json.loads(payload)["data"] for payload in throttled if payload]
    return [(wait["reason"], wait["seconds"]) for wait in data]


def test_runs_that_are_refused_again_and_again_start_later(
    process: WorkerProcess, stored: StoredRuns, register: Register
) -> None:
    """Visibly, from the third one on, until one succeeds; those of other orgs never do."""
    assert [[], []] == [waits(process, stored, TOO_LARGE, RunState.FAILED) for _ in range(2)]
    [(reason, seconds)] = waits(process, stored, TOO_LARGE, RunState.FAILED)
    assert ("provider", True) == (reason, 0 < seconds <= 0.25)

    other = StoredRuns.of(stored.connections, register())
    assert [] == waits(process, other, SAY, RunState.COMPLETED)
    [(_, seconds)] = waits(process, stored, SAY, RunState.COMPLETED)
    assert 0 < seconds <= 0.5
    assert [] == waits(process, stored, SAY, RunState.COMPLETED)


def test_with_a_fallback_the_first_route_counts(process: WorkerProcess, stored: StoredRuns) -> None:
    """Its vendor is the one that has refused all of them."""
    with stored.connections.transaction() as tx:
        persona = {"fallback_route_ids": ["dear"]}
        published_personas.publish(tx, stored.actor, "brief", "1", persona)
    refused = {**TOO_LARGE, "times": 9}
    for _ in range(2):
        waits(process, stored, refused, RunState.FAILED, persona_id="brief@1")
    [(reason, _)] = waits(process, stored, refused, RunState.FAILED, persona_id="brief@1")
    assert "provider" == reason


def test_a_run_waits_for_a_part_of_its_time_at_most(
    process: WorkerProcess, stored: StoredRuns
) -> None:
    """What the pause leaves is enough to call the model."""
    with stored.connections.transaction() as tx:
        published_personas.publish(tx, stored.actor, "brief", "1", {"timeout_seconds": 10})
    for _ in range(9):
        process.limits.refusals.add("scripted", stored.actor.org_id)
    run_id = scripted(stored, SAY, persona_id="brief@1")
    execution.execute(process, run_id)
    row = stored.row(run_id)
    assert (RunState.COMPLETED, "stop") == (row["state"], row["stop_reason"])
    assert [("provider", 1.0)] == waited(stored, run_id)


def test_other_failures_make_no_run_wait(process: WorkerProcess, stored: StoredRuns) -> None:
    """A vendor's refusal for the size alone says that the next request may be refused, too."""
    invalid = {"error": "invalid_request"}
    assert [[]] * 4 == [waits(process, stored, invalid, RunState.FAILED) for _ in range(4)]
