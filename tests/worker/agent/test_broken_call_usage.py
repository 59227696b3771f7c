"""The usage that a vendor reported of a broken call, from its stream to the run's row."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from arkloop.shared.catalog import model_routes
from arkloop.shared.config import Settings
from arkloop.shared.events import types
from arkloop.shared.events.event_log import data_of
from arkloop.shared.runs.states import RunState
from arkloop.shared.threads import threads
from arkloop.worker.attempt import execution
from arkloop.worker.process.process import WorkerProcess
from tests.stored_runs import StoredRuns
from tests.waiting import eventually
from tests.worker.providers.fake_vendor import STREAM_HEAD, FakeVendor, anthropic_stream, raw

USAGE = {"input_tokens": 5000, "cache_read_input_tokens": 40_000}
START = {"type": "message_start", "message": {"role": "assistant", "usage": USAGE}}
TEXT = {
    "type": "content_block_delta",
    "index": 0,
    "delta": {"type": "text_delta", "text": "Hello"},
}
FINISH = {
    "type": "message_delta",
    "delta": {"stop_reason": "end_turn"},
    "usage": {"output_tokens": 3},
}
ERROR = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}


def _hang(client: socket.socket) -> None:
    """Send some words, then nothing until the other side is gone."""
    client.sendall(STREAM_HEAD + anthropic_stream(START, TEXT, stop=False))
    with suppress(OSError):
        client.recv(1)


@pytest.fixture
def fake(request: pytest.FixtureRequest) -> Iterator[FakeVendor]:
    """The server of the route `a`; its answers are the parameter."""
    started = FakeVendor(*request.param)
    yield started
    started.close()


@pytest.fixture
def process(settings: Settings, fake: FakeVendor, tmp_path: Path) -> Iterator[WorkerProcess]:
    """A worker process that does nothing unasked."""
    file = tmp_path / "routes.yaml"
    url = fake.url.removesuffix("/v1")
    file.write_text(
        f"routes: [{{id: a, provider: anthropic, model: m, base_url: '{url}',"
        " prices: {input: 1, output: 1}}]"
    )
    patient = replace(settings, routes_file=str(file), sweep_seconds=3600, heartbeat_seconds=0.2)
    made = WorkerProcess(patient, model_routes.load(patient))
    assert made.lease.wait_until_valid(60)
    yield made
    made.close()


def run_of(stored: StoredRuns) -> UUID:
    thread_id = stored.thread()
    with stored.connections.transaction() as tx:
        threads.add_message(tx, stored.actor, thread_id, content="Hi")
    return stored.create(thread_id, route_id="a", model="m")


def costs(stored: StoredRuns, run_id: UUID) -> list[Any]:
    """Return input and output tokens of each `run.cost`."""
    usages = [
        data_of(event.payload)["usage"]
        for event in stored.events(run_id)
        if event.type == types.RunCost.type
    ]
    return [(usage["input_tokens"], usage["output_tokens"]) for usage in usages]


@pytest.mark.parametrize(
    "fake",
    [
        (
            raw(anthropic_stream(START, ERROR, stop=False)),
            raw(anthropic_stream(START, TEXT, FINISH)),
        )
    ],
    indirect=True,
)
def test_a_try_that_broke_off_before_its_first_word_is_not_free(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """Its cost is reported before the next try; there is no text to void."""
    run_id = run_of(stored)

    execution.execute(process, run_id)

    assert RunState.COMPLETED == stored.state(run_id)
    assert [(45_000, 0), (90_000, 3)] == costs(stored, run_id)
    types = stored.types(run_id)
    assert types.index("run.cost") < types.index("message.delta")
    assert "message.reset" not in types
    assert 90_000 == stored.row(run_id)["input_tokens"]


@pytest.mark.parametrize("fake", [(_hang,)], indirect=True)
def test_a_cancelled_call_costs_the_input_that_the_vendor_told(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """What came from its cache too; the output is estimated by the text."""
    run_id = run_of(stored)
    attempt = threading.Thread(target=execution.execute, args=(process, run_id))
    attempt.start()
    eventually(lambda: "message.delta" in stored.types(run_id))
    stored.cancel(run_id)
    attempt.join(60)

    assert RunState.CANCELLED == stored.state(run_id)
    assert [(45_000, 2)] == costs(stored, run_id)
    row = stored.row(run_id)
    assert (40_000, "estimated") == (row["cache_read_tokens"], row["usage_source"])
