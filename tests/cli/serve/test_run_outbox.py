"""Events that the service refuses: no thread that waits for them takes them for stored."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from arkloop.cli.client.server_address import ServerAddress
from arkloop.cli.serve.run_outbox import OUTDATED, RunOutbox
from arkloop.cli.serve.service import Service
from arkloop.shared.agents.agent_run import RunStopped
from arkloop.shared.events.types import ToolCallRequested


class LostRun:
    """A service that reports, after a while, that the run is another worker's."""

    def __init__(self) -> None:
        self.asked, self.may_answer = threading.Event(), threading.Event()


@pytest.fixture
def lost_run() -> Iterator[tuple[LostRun, RunOutbox]]:
    lost = LostRun()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            lost.asked.set()
            lost.may_answer.wait(10)
            body = json.dumps({"code": OUTDATED[0], "message": "Lost.", "details": {}}).encode()
            self.send_response(409)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    address = ServerAddress(f"http://127.0.0.1:{server.server_port}", "key")
    service = Service(address, "/agent-workers/a")
    outbox = RunOutbox(service, {"run_id": "r", "fence": 1, "next_seq": 2}, lambda _: None)
    yield lost, outbox
    outbox.close()
    service.close()
    server.shutdown()
    server.server_close()


def test_a_call_that_another_thread_could_not_store_is_not_made(
    lost_run: tuple[LostRun, RunOutbox],
) -> None:
    """The thread that waits for a call is stopped, although another one had sent it."""
    service, outbox = lost_run
    outbox.note(ToolCallRequested("c", "pay", {}))
    assert service.asked.wait(10)  # the thread that gathers has sent it

    service.may_answer.set()

    with pytest.raises(RunStopped, match="lost"):
        outbox.flush()
