"""The size of a context, as servers report it."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.errors import Unavailable
from arkloop.shared.security.egress import Policy
from arkloop.worker.contract.outcomes import CancelRequested
from arkloop.worker.providers.context_sizes import ask
from tests.no_descriptor import no_descriptor_left
from tests.worker.recorded_run import RecordedRun

VLLM = {"data": [{"id": "m", "object": "model", "owned_by": "vllm", "max_model_len": 32768}]}
OPENROUTER = {"data": [{"id": "x", "context_length": 1}, {"id": "m", "context_length": 200_000}]}
GROQ = {"data": [{"id": "m", "context_window": 131072}, {"id": "y"}]}
MISTRAL = {"data": [{"id": "m", "max_context_length": 128000}, {"id": "y"}]}
LLAMA = {"data": [{"id": "file.gguf", "owned_by": "llamacpp", "meta": {"n_ctx_train": 8192}}]}
PROPS = {"default_generation_settings": {"n_ctx": 4096}, "total_slots": 2}


class Server(ThreadingHTTPServer):
    """Answers with the next body each time; keeps the paths and the keys that came."""

    def __init__(self, bodies: list[Any], status: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies, self.status = bodies, status
        self.paths: list[str] = []
        self.keys: list[str | None] = []

    @property
    def route(self) -> Route:
        url = f"http://127.0.0.1:{self.server_port}/v1"
        return Route(id="r", provider="openai", model="m", base_url=url, api_key="secret")


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self.server.keys.append(self.headers.get("Authorization"))
        body = self.server.bodies.pop(0)
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serving(*bodies: Any, status: int = 200) -> Iterator[Server]:
    server = Server(list(bodies), status)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("bodies", "size", "path"),
    [
        ([VLLM], 32_768, "/v1/models"),
        ([OPENROUTER], 200_000, "/v1/models"),
        ([GROQ], 131_072, "/v1/models"),
        ([MISTRAL], 128_000, "/v1/models"),
        ([LLAMA, PROPS], 4_096, "/props"),
        ([{"data": []}, {}], None, "/props"),
        ([{"data": [{"id": "m", "context_length": "long"}]}, []], None, "/props"),
        ([{"data": [{"id": "m", "context_length": -1}]}, {}], None, "/props"),
        ([b"<html>"], None, "/v1/models"),
        ([{"data": 7}, {}], None, "/props"),
    ],
)
def test_each_server_has_a_field_of_its_own(bodies: list[Any], size: int | None, path: str) -> None:
    """What cannot be a size counts as unknown."""
    with serving(*bodies) as server:
        assert size == ask(server.route, None, RecordedRun())

    assert path == server.paths[-1]
    assert {"Bearer secret"} == set(server.keys)


def test_a_server_that_fails_or_must_not_be_reached_reports_nothing() -> None:
    """The run starts without a size."""
    with serving({}, {}, status=500) as server:
        assert None is ask(server.route, None, RecordedRun())
    with serving(VLLM) as server:
        assert None is ask(replace(server.route, is_of_org=True), Policy(), RecordedRun())
    assert [] == server.paths
    assert None is ask(server.route, None, RecordedRun())
    assert None is ask(Route(id="r", provider="openai", model="m"), None, RecordedRun())


def test_a_name_that_leads_to_a_private_address_reports_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The address is refused once the name is resolved, and the run starts without a size."""
    with serving(VLLM) as server:
        private = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.server_port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: private)
        url = f"http://models.example:{server.server_port}/v1"

        assert None is ask(replace(server.route, base_url=url), Policy(), RecordedRun())
    assert [] == server.paths


def test_a_run_that_has_to_stop_does_not_wait_for_a_silent_server() -> None:
    """The connection is closed, and the reason of the stop is raised."""
    run = RecordedRun()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def cancel_once_asked() -> None:
            asked, _ = server.accept()
            with asked:
                asked.recv(65_536)
                run.stop.set(CancelRequested())
                assert b"" == asked.recv(1)

        canceller = threading.Thread(target=cancel_once_asked, daemon=True)
        canceller.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        route = Route(id="r", provider="openai", model="m", base_url=url, api_key="secret")
        with pytest.raises(CancelRequested):
            ask(route, None, run)
        canceller.join(60)

    assert not canceller.is_alive()


def test_a_process_without_a_descriptor_learns_nothing() -> None:
    """That the server has not been asked is not taken for its answer, and remembered."""
    with serving(VLLM, VLLM) as server:
        assert 32768 == ask(server.route, None, RecordedRun())
        with no_descriptor_left(), pytest.raises(Unavailable):
            ask(server.route, None, RecordedRun())
