"""Traces through a collector that others wrote: Rotel, from PyPI, which reads and writes OTLP.

What it has read it sends on, in an encoding of its own, to the collector of the tests.
"""

import importlib.util
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arkloop.cli.dev.embedded_server import free_port
from tests.collector import collector
from tests.system import running_system
from tests.waiting import eventually


def _program() -> Path:
    """Return the path of Rotel; skips without it, or fails in CI."""
    found = importlib.util.find_spec("rotel")
    if found is None or found.origin is None:
        stop = pytest.fail if os.environ.get("NEED_COLLECTOR") == "1" else pytest.skip
        stop("Rotel is not installed: run `make test-collector`")
    return Path(found.origin).parent / "rotel-agent"


@contextmanager
def rotel(folder: Path, send_to: str) -> Iterator[str]:
    """Run Rotel, which sends on what it gets; yields its URL."""
    ports = {"http": free_port(), "grpc": free_port()}
    command = [
        *(_program(), "start", "--exporter", "otlp", "--otlp-exporter-protocol", "http"),
        *("--otlp-exporter-endpoint", send_to),
        *(f"--otlp-{kind}-endpoint=127.0.0.1:{port}" for kind, port in ports.items()),
        *("--pid-file", folder / "pid", "--log-file", folder / "log", "--batch-timeout", "50ms"),
    ]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    address = ("127.0.0.1", ports["http"])

    def listens() -> bool:
        with socket.socket() as client:
            return client.connect_ex(address) == 0

    try:
        eventually(listens)
        yield f"http://127.0.0.1:{ports['http']}"
    finally:
        process.kill()
        process.wait()


@pytest.mark.collector
def test_a_collector_from_a_package_reads_the_traces_of_runs(
    new_database: Callable[[], str], tmp_path: Path
) -> None:
    """It accepts every request, and has the whole tree of a run, with attributes and resources."""
    with collector() as receiver, rotel(tmp_path, receiver.url) as url:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": url}
        with running_system(new_database, tmp_path, web=1, environ=environ) as system:
            someone = system.caller()
            call = {"tool": "calculator", "args": {"expression": "6*7"}}
            run_id = someone.run(call, {"say": "42"})
            trace_id = someone.ended(run_id)["trace_id"]
            eventually(lambda: len(receiver.of(trace_id)) == 7)
        spans = {span.name: span for span in receiver.of(trace_id)}
        logged = "".join(path.read_text() for path in tmp_path.glob("*.log"))

    request = spans["POST /v1/threads/<id:thread_id>/runs"]
    parents = [request, spans["create run"], spans["claim run"], spans["invoke_agent assistant"]]
    assert [one.span_id for one in parents] == [
        spans[name].parent_id
        for name in ("create run", "claim run", "invoke_agent assistant", "execute_tool calculator")
    ]
    [model] = {span.name for span in spans.values() if span.name.startswith("chat ")}
    assert 0 < spans[model].attributes["gen_ai.usage.input_tokens"]
    assert run_id == request.attributes["arkloop.run.id"]
    assert ("arkloop-web", "arkloop-worker") == (
        request.resource["service.name"],
        spans[model].resource["service.name"],
    )
    assert "exporting spans failed" not in logged
