"""Runs whose time is over before a last answer: their open calls, and the text so far."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from arkloop.shared.catalog import published_personas
from arkloop.shared.config import Settings
from arkloop.shared.errors import LeaseLost
from arkloop.shared.events import types
from arkloop.shared.runs.states import RunState
from arkloop.worker.attempt import execution
from arkloop.worker.contract.outcomes import DeadlineExceeded
from arkloop.worker.process.process import WorkerProcess
from tests.stored_runs import StoredRuns, ago
from tests.worker.attempt.agent_runs import LOST, data, stopped
from tests.worker.attempt.executed_runs import scripted

SLEEP = {"tool": "sleep", "args": {"seconds": 60}}
OVER = "The run's time was over during this call; it may or may not have taken effect."


@pytest.fixture(scope="module")
def settings(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """The settings with the tool that takes time, and a route whose server never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        file = tmp_path_factory.mktemp("routes") / "routes.yaml"
        file.write_text(f"routes: [{{id: silent, provider: openai, model: m, base_url: '{url}'}}]")
        yield replace(settings, faults=True, routes_file=str(file))


def landed(stored: StoredRuns, run_id: UUID) -> bool:
    """Return whether the run has ended at its time, and its call with an unknown outcome."""
    row, ended = stored.row(run_id), data(stored, run_id, "tool.result")
    results = [(result["output"], result["is_error"]) for result in ended]
    assert [(OVER, True)] == results
    return (row["state"], row["stop_reason"]) == (RunState.COMPLETED, "timeout")


def test_a_call_in_progress_gets_a_result(stored: StoredRuns, process: WorkerProcess) -> None:
    """The next run of the thread reads of the call, whose effect it may have had."""
    run_id = scripted(stored, SLEEP)

    stopped(process, stored, run_id, DeadlineExceeded(1), after=("tool.call", 1), begun=1)

    assert landed(stored, run_id)


def test_a_call_of_a_lost_attempt_gets_a_result(
    stored: StoredRuns, process: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is over before the next attempt has read the history and could make it again."""
    run_id = scripted(stored, SLEEP)
    stopped(process, stored, run_id, LeaseLost(), after=("tool.call", 1), begun=1)
    stored.set(run_id, **LOST)

    def late(*_: Any) -> None:
        raise DeadlineExceeded(1)

    monkeypatch.setattr(process.histories, "history_of", late)
    execution.execute(process, run_id)

    assert landed(stored, run_id)


def test_a_run_lands_whose_time_is_over_while_a_server_is_asked_for_a_context(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """The server is that of a fallback, which the run does not use."""
    with stored.connections.transaction() as tx:
        persona = {"fallback_route_ids": ["silent"], "timeout_seconds": 10}
        published_personas.publish(tx, stored.actor, "brief", "1", persona)
    run_id = scripted(stored, {"say": "one"}, persona_id="brief@1")
    stored.write(stored.held(run_id), types.MessageDelta("half an ans"))
    stored.set(run_id, **LOST, started_at=ago(seconds=30))

    execution.execute(process, run_id)

    row = stored.row(run_id)
    assert (RunState.COMPLETED, "timeout") == (row["state"], row["stop_reason"])
    [completed] = data(stored, run_id, "message.completed")
    assert "half an ans" == completed["content"]
