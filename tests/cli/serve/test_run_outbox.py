"""Events on their way to the service: which request has them, and what becomes of refused ones."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from arkloop.cli.client.server_address import ServerAddress
from arkloop.cli.serve.run_outbox import MAX_EVENTS, OUTDATED, RunOutbox
from arkloop.cli.serve.service import Service
from arkloop.shared.agents.agent_run import RunStopped
from arkloop.shared.events.types import MessageCompleted, ToolCallRequested
from arkloop.shared.events.usage import Usage

STORED = {"status": "running", "cancel_requested": False}
LOST = {"code": OUTDATED[0], "message": "Lost.", "details": {}}


class SlowService:
    """A service that responds once it may: that it has stored the events, or `refusal`."""

    def __init__(self) -> None:
        self.asked, self.may_answer = threading.Event(), threading.Event()
        self.refusal: dict[str, Any] | None = None
        self.bodies: list[dict[str, Any]] = []


@pytest.fixture
def slow() -> Iterator[tuple[SlowService, RunOutbox]]:
    slow = SlowService()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            slow.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            slow.asked.set()
            slow.may_answer.wait(60)
            body = json.dumps(slow.refusal or STORED).encode()
            self.send_response(409 if slow.refusal else 200)
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
    yield slow, outbox
    outbox.close()
    service.close()
    server.shutdown()
    server.server_close()


def test_a_call_that_another_thread_could_not_store_is_not_made(
    slow: tuple[SlowService, RunOutbox],
) -> None:
    """The thread that waits for a call is stopped, although another one had sent it."""
    service, outbox = slow
    service.refusal = LOST
    outbox.note(ToolCallRequested("c", "pay", {}))
    assert service.asked.wait(30)  # the thread that gathers has sent it

    service.may_answer.set()

    with pytest.raises(RunStopped, match="lost"):
        outbox.flush()


def test_the_end_of_a_turn_is_sent_with_its_checkpoint(
    slow: tuple[SlowService, RunOutbox],
) -> None:
    """The thread that gathers, which has more to send, does not send it before."""
    service, outbox = slow
    outbox.note(*(ToolCallRequested(f"c{n}", "look", {}) for n in range(MAX_EVENTS + 1)))
    assert service.asked.wait(30)
    ended, at = MessageCompleted("m", "Hi.", Usage()), {"at": 1}
    sending = threading.Thread(
        target=outbox.send, args=("append", ended), kwargs={"checkpoint": at}
    )
    sending.start()
    sending.join(0.2)

    service.may_answer.set()
    sending.join(30)

    ends = [body for body in service.bodies if body["events"][-1]["type"] == ended.type]
    assert [at] == [body["checkpoint"] for body in ends]
    assert MAX_EVENTS + 2 == sum(len(body["events"]) for body in service.bodies)
