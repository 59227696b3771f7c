"""Runs of orgs whose model servers have names that lead to private addresses."""

import socket
from typing import Any

import pytest

from arkloop.shared.catalog import llm_providers, published_personas
from arkloop.shared.runs.states import RunState
from arkloop.worker.attempt import execution
from arkloop.worker.process.process import WorkerProcess
from tests.stored_runs import StoredRuns
from tests.worker.attempt.executed_runs import said_by, scripted

HOST = "models.example"


@pytest.fixture
def route_id(stored: StoredRuns, monkeypatch: pytest.MonkeyPatch) -> str:
    """The route of a model whose server's name leads to a private address."""
    genuine = socket.getaddrinfo

    def resolve(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        return genuine("10.0.0.7" if host == HOST else host, port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with stored.connections.transaction() as tx:
        url = f"https://{HOST}/v1"
        provider = llm_providers.create(
            tx, stored.actor, name="private", kind="openai", base_url=url, api_key="sk-private"
        )
        return str(llm_providers.create_model(tx, stored.actor, provider.id, model="m").id)


def test_an_unused_fallback_does_not_fail_a_run(
    stored: StoredRuns, process: WorkerProcess, route_id: str
) -> None:
    """The run completes on its own route, which works."""
    with stored.connections.transaction() as tx:
        persona = {"fallback_route_ids": [route_id]}
        published_personas.publish(tx, stored.actor, "brief", "1", persona)
    run_id = scripted(stored, {"say": "done"}, persona_id="brief@1")

    execution.execute(process, run_id)

    assert (RunState.COMPLETED, "done") == (stored.state(run_id), said_by(stored, run_id))


def test_a_run_on_such_a_route_says_what_is_wrong(
    stored: StoredRuns, process: WorkerProcess, route_id: str
) -> None:
    """The error names the operator's setting, and another attempt would not help."""
    run_id = scripted(stored, {"say": "no"}, route_id=route_id, model="m")

    execution.execute(process, run_id)

    row = stored.row(run_id)
    assert RunState.FAILED == row["state"]
    assert ("provider.invalid_request", False) == (row["error_code"], row["error_retryable"])
    assert "ARKLOOP_ALLOWED_NETWORKS" in row["error_message"]
