"""Answers of a run that is watched, of which an attempt before is still being carried out."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from arkloop.cli.client import client
from arkloop.cli.client.client import Client, Refused
from arkloop.cli.client.display import display_for
from arkloop.cli.client.foreground_run import ForegroundRun, interrupts
from arkloop.cli.client.keyboard import Keyboard
from arkloop.cli.client.server_address import ServerAddress

Response = tuple[int, object]
IN_PROGRESS: Response = (
    409,
    {"code": "idempotency.in_progress", "message": "In progress.", "details": {}},
)
ASKED = {"request_id": "q1", "kind": "user_input", "prompt": "Which one?"}
USED = {"usage": {"input_tokens": 1, "output_tokens": 1, "cost_usd": None}}


def _frame(seq: int, type_: str, data: object) -> bytes:
    event = {"seq": seq, "type": type_, "data": data, "created_at": "2026-01-01T00:00:00Z"}
    return f"id: {seq}\ndata: {json.dumps(event)}\n\n".encode()


@contextmanager
def _asking(*responses: Response) -> Iterator[Client]:
    """Start a server of a run that asks, and ends after it has had these responses to answers."""
    left, answered = list(responses), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._begin(200, "text/event-stream")
            self.wfile.write(_frame(1, "run.waiting_for_input", ASKED))
            answered.wait(60)
            self.wfile.write(_frame(2, "run.completed", USED))

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = left.pop(0)
            self._begin(status, "application/json")
            self.wfile.write(json.dumps(body).encode())
            if not left:
                answered.set()

        def _begin(self, status: int, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    made = Client(ServerAddress(f"http://127.0.0.1:{server.server_port}", "key"))
    yield made
    made.http.close()
    server.shutdown()
    server.server_close()


@pytest.fixture
def _typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A line on standard input."""
    reading, writing = os.pipe()
    os.write(writing, b"red\n")
    os.close(writing)
    with os.fdopen(reading) as pipe:
        monkeypatch.setattr("sys.stdin", pipe)
        yield


def _followed(caller: Client) -> int:
    display = display_for(as_json=True)
    with interrupts() as interrupted:
        return ForegroundRun(caller, display, "run", interrupted, Keyboard()).follow()


@pytest.mark.usefixtures("_typed")
def test_an_answer_that_is_on_its_way_is_sent_again(capsys: pytest.CaptureFixture[str]) -> None:
    """The connection was lost, and the first attempt is slow: the second is no conflict."""
    with _asking(IN_PROGRESS, IN_PROGRESS, (202, {})) as caller:
        assert 0 == _followed(caller)

    assert "not accepted" not in capsys.readouterr().err


@pytest.mark.usefixtures("_typed")
def test_an_answer_that_stays_on_its_way_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the patience: whether the run has the answer is not known."""
    monkeypatch.setattr(client, "PATIENCE_SECONDS", -1.0)
    with _asking(IN_PROGRESS) as caller, pytest.raises(Refused) as refused:
        _followed(caller)

    assert "idempotency.in_progress" == refused.value.code
