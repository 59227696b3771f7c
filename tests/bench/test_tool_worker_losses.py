"""The customer's workers of `python -m bench.tool_worker_losses`, whose service fails."""

import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from bench.service import Service
from bench.tool_worker_losses import WORKERS, Workers
from tests.waiting import eventually

SECONDS = 0.5


class _Silent(socketserver.ThreadingTCPServer):
    """A server that closes each connection without a response, and counts them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self.connections = 0

    def process_request(self, request: object, client_address: object) -> None:
        self.connections += 1
        self.shutdown_request(request)  # type: ignore[arg-type]  # typeshed has it narrower


@pytest.fixture
def server() -> Iterator[_Silent]:
    with _Silent() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def test_an_error_ends_workers_that_wait_between_failures(server: _Silent) -> None:
    """Workers end with a benchmark that fails, and do not take a core where requests fail."""
    service = Service()
    service.urls.append(f"http://127.0.0.1:{server.server_address[1]}")
    service.api_key = "-"
    before, began = threading.active_count(), time.monotonic()

    with pytest.raises(TimeoutError), Workers(service, 1):
        eventually(lambda: server.connections >= WORKERS)
        time.sleep(SECONDS)
        raise TimeoutError

    assert threading.active_count() <= before
    took = time.monotonic() - began  # more than it slept, on a busy machine
    assert server.connections <= WORKERS * (took / 0.1 + 2)
