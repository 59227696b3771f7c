"""A call that its worker fetches again while the earlier execution has not ended."""

import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from arkloop.cli.client.server_address import ServerAddress
from arkloop.cli.serve.tool_worker import SIGNAL_SECONDS, ToolWorker
from arkloop.shared import ids
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.tools import ToolOutput, tool
from tests.cli.serve.foreign_responses import FOREIGN
from tests.cli.serve.missing_threads import refuse_threads
from tests.cli.serve.scripted_service import scripted_service
from tests.cli.serve.silent_heartbeats import LEASE_SECONDS, SilentHeartbeats
from tests.waiting import eventually

CALL_ID = str(ids.new_id())
CALL: dict[str, Any] = {
    **dict.fromkeys(("call_id", "run_id", "thread_id", "org_id"), CALL_ID),
    **dict.fromkeys(("tool_call_id", "idempotency_key", "traceparent"), "1"),
    "tool": "work",
    "arguments": {},
    "end_user_id": None,
    "metadata": {},
}
STALE = {"code": "tool_workers.stale_call", "message": "Another fence.", "details": {}}


class CallTwice:
    """A service that loses a call while a heartbeat is on its way, and hands it out again."""

    def __init__(self) -> None:
        self.beating, self.release, self.beaten, self.refused = (
            threading.Event() for _ in range(4)
        )
        self.fence = 0
        self.places = 0
        self.results: list[tuple[str, int]] = []

    def respond(self, verb: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        match verb:
            case "poll":
                return 200, {"tools_hash": "0" * 64, "cancelled": [], "calls": self._poll(body)}
            case "heartbeat":
                fences = [call["fence"] for call in body["calls"]]
                return 200, {"cancelled": [], "lost": [CALL_ID] * self._is_lost(fences)}
        if body["fence"] == 1:
            self.refused.set()
            return 409, STALE
        self.results.append((verb, body["fence"]))
        return 200, {"ok": True, "cancelled": []}

    def _poll(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        self.fence += 1
        match self.fence:
            case 1:
                pass
            case 2:
                self.beating.wait(60)
            case _:
                time.sleep(0.02)
                self.places = body["max_calls"]
                return []
        return [{**CALL, "fence": self.fence}]

    def _is_lost(self, fences: list[int]) -> bool:
        if fences == [2]:
            self.beaten.set()
            return False
        self.beating.set()
        self.release.wait(60)
        return True


@pytest.fixture
def service() -> Iterator[tuple[CallTwice, ServerAddress]]:
    twice = CallTwice()
    with scripted_service(twice.respond) as address:
        yield twice, address


@pytest.mark.parametrize("first", ["heartbeat", "result"])
def test_a_call_that_is_fetched_again_is_executed_to_its_end(
    service: tuple[CallTwice, ServerAddress], first: str
) -> None:
    """Neither news about the earlier execution nor its end concerns the later one."""
    twice, address = service
    executing = threading.Event()
    executions = count(1)

    @tool(idempotent=True)
    def work(context: ToolContext) -> str:
        """Execute the call."""
        if next(executions) == 1:
            if first == "heartbeat":
                context.wait(60)
            executing.wait(60)
            return "late"
        executing.set()
        if first == "result":
            twice.refused.wait(60)
        twice.release.set()
        while not twice.beaten.is_set():
            context.wait(0.01)
        return "done"

    worker = ToolWorker(
        address, "mine", {"work": work}, concurrency=2, lease_seconds=15, grace_seconds=1
    )
    working = threading.Thread(target=worker.run, daemon=True)
    working.start()
    try:
        eventually(lambda: twice.results != [])
        eventually(lambda: twice.places == 2)
    finally:
        worker.stop()
        working.join(30)

    assert [("complete", 2)] == twice.results


def test_a_web_server_that_falls_silent_costs_no_call() -> None:
    """The heartbeat that it holds is given up in time for another one within the lease."""
    silent = SilentHeartbeats({"cancelled": [], "lost": []})
    calls = [{**CALL, "fence": 1}]

    def respond(verb: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        match verb:
            case "heartbeat":
                return 200, silent.respond(body)
            case "poll":
                if not calls:
                    silent.is_over.wait(60)
                fetched = [calls.pop()] if calls else []
                return 200, {"tools_hash": "0" * 64, "cancelled": [], "calls": fetched}
        return 200, {"ok": True, "cancelled": []}

    @tool(idempotent=True)
    def work(context: ToolContext) -> str:
        """Execute the call."""
        silent.is_over.wait(60)
        return "done"

    with scripted_service(respond) as address:
        worker = ToolWorker(
            *(address, "mine", {"work": work}),
            concurrency=2,
            lease_seconds=LEASE_SECONDS,
            grace_seconds=1,
        )
        working = threading.Thread(target=worker.run, daemon=True)
        working.start()
        eventually(lambda: len(silent.heard) > 2)
        silent.is_over.set()
        worker.stop()
        working.join(30)

    assert silent.unheard_seconds < LEASE_SECONDS


def test_a_call_that_is_on_its_way_at_the_stop_is_executed() -> None:
    """The service has leased it to this worker, and may not give it to another one."""
    results: list[tuple[str, Any]] = []

    def respond(verb: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        match verb:
            case "heartbeat":
                return 200, {"cancelled": [], "lost": []}
            case "poll":
                worker.stop()
                time.sleep(3 * SIGNAL_SECONDS)
                calls = [{**CALL, "fence": 1}]
                return 200, {"tools_hash": "0" * 64, "cancelled": [], "calls": calls}
        results.append((verb, body["output"]))
        return 200, {"ok": True, "cancelled": []}

    @tool(idempotent=False)
    def work(context: ToolContext) -> str:
        """Execute the call."""
        return "done"

    with scripted_service(respond) as address:
        worker = ToolWorker(
            address, "mine", {"work": work}, concurrency=1, lease_seconds=15, grace_seconds=10
        )
        worker.run()

    assert [("complete", "done")] == results


class OneCall:
    """A service with one call, which the second poll brings; some of its first responses, from
    that poll on, are not what a worker expects.
    """

    def __init__(
        self, *, output: str | ToolOutput = "done", **first: tuple[int, dict[str, Any] | bytes]
    ) -> None:
        self.results: list[tuple[str, Any]] = []
        self.output = output
        self.beaten = threading.Event()
        self._first = first
        self._calls = [{**CALL, "fence": 1}]
        self._is_polled = False

    def respond(self, verb: str, body: dict[str, Any]) -> tuple[int, dict[str, Any] | bytes]:
        if not self._is_polled:
            self._is_polled = True
            return 200, {"tools_hash": "0" * 64, "cancelled": [], "calls": []}
        if (first := self._first.pop(verb, None)) is not None:
            return first
        match verb:
            case "poll":
                calls = [self._calls.pop()] if self._calls else []
                time.sleep(0 if calls else 0.1)
                return 200, {"tools_hash": "0" * 64, "cancelled": [], "calls": calls}
            case "heartbeat":
                self.beaten.set()
                return 200, {"cancelled": [], "lost": []}
        self.results.append((verb, body["output"] if verb == "complete" else body["error"]))
        return 200, {"ok": True, "cancelled": []}

    def served(self, grace_seconds: float, stop_when: Callable[[], bool]) -> ToolWorker:
        """Return the worker after its end, which has to come soon."""

        @tool(idempotent=True)
        def work(context: ToolContext) -> str | ToolOutput:
            """Execute the call."""
            self.beaten.wait(30)
            return self.output

        with scripted_service(self.respond) as address:
            worker = ToolWorker(
                *(address, "mine", {"work": work}),
                concurrency=1,
                lease_seconds=15,
                grace_seconds=grace_seconds,
            )
            working = threading.Thread(target=worker.run, daemon=True)
            working.start()
            eventually(lambda: not working.is_alive() or stop_when())
            worker.stop()
            working.join(50)  # the grace of most is longer
            assert not working.is_alive()
        return worker


@pytest.mark.parametrize(("characters", "is_cut"), [(490_000, False), (510_000, True)])
def test_a_result_is_cut_by_its_length_in_utf_8(characters: int, is_cut: bool) -> None:
    """Text of another alphabet arrives whole up to the limit, and beyond it without its end."""
    service = OneCall(output="я" * characters)

    service.served(60, lambda: service.results != [])

    [(_, output)] = service.results
    assert (is_cut, not is_cut) == ("[cut: " in output, output == service.output)


@pytest.mark.parametrize("verb", ["poll", "heartbeat", "complete"])
@pytest.mark.parametrize("response", FOREIGN)
def test_a_response_that_is_not_the_services_is_passed_over(
    verb: str, response: tuple[int, dict[str, Any] | bytes]
) -> None:
    """A gateway responds by itself while the service is away."""
    service = OneCall(**{verb: response})

    worker = service.served(60, lambda: service.results != [])

    assert ([("complete", "done")], None) == (service.results, worker.failure)


@pytest.mark.parametrize("status", [200, 413, 422])
def test_a_result_that_cannot_be_stored_is_one(status: int) -> None:
    """Without any, the call would be executed again: its worker would seem to be lost."""
    refusal = {"code": "validation.error", "message": "Not valid.", "details": {}}
    lone = ToolOutput("7", ["\ud800"])  # which is not even sent
    service = OneCall(output=lone) if status == 200 else OneCall(complete=(status, refusal))

    service.served(60, lambda: service.results != [])

    assert [("fail", "The tool's result cannot be stored.")] == service.results


def test_a_wrong_url_ends_a_worker_that_has_never_polled() -> None:
    """The message names the URL, before the first response of the service."""
    with scripted_service(lambda *_: (404, b"default backend - 404")) as address:
        worker = ToolWorker(
            *(address, "mine", {}), concurrency=1, lease_seconds=15, grace_seconds=1
        )
        worker.run()

    assert worker.failure is not None
    assert worker.failure.message.endswith(
        "404 without an error of this service: check ARKLOOP_URL."
    )


@pytest.mark.parametrize(
    ("verb", "response"),
    [
        ("poll", {"tools_hash": "", "cancelled": [], "calls": [{**CALL, "tool": "other"}]}),
        ("heartbeat", {"cancelled": [str(ids.new_id())], "lost": []}),
    ],
)
def test_an_unexpected_error_ends_the_worker(verb: str, response: dict[str, Any]) -> None:
    """Without its polls, or its heartbeats, the process would be of no use."""
    worker = OneCall(**{verb: (200, response)}).served(0, lambda: False)

    assert "The worker stopped: unexpected KeyError; its log has more." == str(worker.failure)


def test_a_call_without_a_thread_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not in progress: the worker does not wait for it for the grace."""
    refuse_threads(monkeypatch, "tool-work")

    worker = OneCall().served(60, lambda: False)

    assert "The worker stopped: unexpected RuntimeError; its log has more." == str(worker.failure)
