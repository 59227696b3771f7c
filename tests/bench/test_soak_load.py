"""The clients of a soak see which responses are faults, and which are missing."""

import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bench.http_clients import Loop, Target
from bench.soak import load as soak_load
from bench.soak.load import Load

TOKEN = "/v1/client-tokens"


class Service(ThreadingHTTPServer):
    """A server with the statuses of each path, the last of which it repeats; without one it is
    silent.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, statuses: dict[str, list[int]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses = {TOKEN: [201]} | statuses
        self.asked = Counter[str]()
        self.is_over = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked[self.path] += 1
        if not (statuses := self.server.statuses.get(self.path, [])):
            self.server.is_over.wait()
            return
        body = b'{"token": "of an end user"}'
        self.send_response(statuses.pop(0) if len(statuses) > 1 else statuses[0])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Keep silent."""


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients repeat what was refused at once; none of what they do by themselves begins."""
    monkeypatch.setattr(soak_load, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(soak_load, "FIRST_SECONDS", 600.0)


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients wait for two seconds."""
    monkeypatch.setattr(soak_load, "LATE_SECONDS", 2)


@pytest.fixture
def statuses() -> dict[str, list[int]]:
    """The statuses of the server, by path."""
    return {}


@pytest.fixture
def service(statuses: dict[str, list[int]]) -> Iterator[Service]:
    """A server that runs until the end of the test."""
    with Service(statuses) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.is_over.set()
        server.shutdown()


def load_of(service: Service) -> Load:
    """Return a load that has asked for its client token."""
    target = Target(f"http://127.0.0.1:{service.server_port}", "token")
    load = Load(Loop(), [target], 100, "file")
    load.turn()
    return load


@pytest.mark.usefixtures("impatience")
def test_a_request_without_a_response_is_a_fault(service: Service) -> None:
    """The end of a soak waits for all requests, those without a run, too."""
    load = load_of(service)

    load.call("GET", "/silent")
    load.finish()

    assert 1 == load.faults["GET /silent: no success within 2 s"]


@pytest.mark.usefixtures("impatience")
@pytest.mark.parametrize("statuses", [{"/busy": [503]}])
def test_a_request_that_is_unavailable_for_long_is_a_fault(service: Service) -> None:
    """It is repeated, but not for ever: a soak would not end."""
    load = load_of(service)

    load.call("GET", "/busy")
    load.finish()

    assert 1 == load.faults["GET /busy: no success within 2 s"]
    assert 0 < load.unavailable <= service.asked["/busy"]


@pytest.mark.parametrize("statuses", [{"/busy": [503, 503, 200]}])
def test_a_request_that_succeeds_in_the_end_is_no_fault(service: Service) -> None:
    """A 503 is repeated as documented, and what follows happens once."""
    load, answers = load_of(service), list[object]()

    load.call("GET", "/busy", then=answers.append)
    load.finish()

    assert {} == load.faults
    assert 2 == load.unavailable
    assert 1 == len(answers)


@pytest.mark.parametrize("statuses", [{"/v1/me/usage/daily": [429, 200], "/v1/runs": [429, 200]}])
def test_only_a_report_may_be_too_many(service: Service) -> None:
    """An org has one report at a time; any other 429 is a limit that no load of a soak reaches."""
    load = load_of(service)

    load.call("GET", "/v1/me/usage/daily")
    load.call("POST", "/v1/runs", {})
    load.finish()

    [fault] = load.faults
    assert fault.startswith("POST /v1/runs: 429")
    assert {"/v1/me/usage/daily": 2, "/v1/runs": 1, TOKEN: 1} == service.asked


@pytest.mark.parametrize(
    "statuses",
    [{TOKEN: [503] * 5 + [201], "/v1/runs": [400], **{path: [200] for path in soak_load.READS}}],
)
def test_runs_begin_when_the_client_token_is_there(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy machine makes it late, and an end user without it is refused."""
    monkeypatch.setattr(soak_load, "FIRST_SECONDS", 0.02)
    load = load_of(service)

    while "/v1/runs" not in service.asked:
        assert load.created == 0 or service.asked[TOKEN] == 6
        load.turn()
    load.finish()

    assert 6 == service.asked[TOKEN]
