"""Executions of an agent worker: which heartbeats concern them, and how refused ones end."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest

from arkloop.agents import AgentRun
from arkloop.cli.client.server_address import ServerAddress
from arkloop.cli.serve.agent_worker import AgentWorker
from tests.cli.serve.foreign_responses import FOREIGN
from tests.cli.serve.missing_threads import refuse_threads
from tests.cli.serve.polled_runs import RUN, RUN_ID
from tests.cli.serve.scripted_service import scripted_service
from tests.cli.serve.silent_heartbeats import LEASE_SECONDS, SilentHeartbeats
from tests.waiting import eventually


class SlowHeartbeats:
    """A service with one run, which waits and is polled again while a heartbeat is on its way."""

    def __init__(self) -> None:
        self.beating, self.polled_again, self.beaten, self.ended = (
            threading.Event() for _ in range(4)
        )
        self.fence = 0
        self.completed: list[int] = []

    def respond(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        match verb:
            case "poll":
                self.fence += 1
                if self.fence > 2:
                    self.ended.wait(30)
                    return {"lease_seconds": 15.0, "runs": []}
                return {"lease_seconds": 15.0, "runs": [{**RUN, "fence": self.fence}]}
            case "heartbeat":
                return {"lease_seconds": 15.0, "runs": self._beat(body["runs"])}
            case "complete":
                self.completed.append(body["fence"])
                self.ended.set()
        status = "waiting_for_input" if verb == "ask" else "running"
        return {"status": status, "cancel_requested": False, "next_seq": 9}

    def _beat(self, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Respond to the first one late: the run is no longer held under its fence."""
        is_held = not runs or runs[0]["fence"] > 1
        if is_held:
            self.beaten.set()
        else:
            self.beating.set()
            self.polled_again.wait(30)
        return [{"run_id": RUN_ID, "is_held": is_held, "cancel_requested": False} for _ in runs]


@pytest.fixture
def service() -> Iterator[tuple[SlowHeartbeats, ServerAddress]]:
    slow = SlowHeartbeats()
    with scripted_service(lambda verb, body: (200, slow.respond(verb, body))) as address:
        yield slow, address


def test_a_late_heartbeat_stops_no_execution_that_came_after_it(
    service: tuple[SlowHeartbeats, ServerAddress],
) -> None:
    """A run that waited, was answered, and was polled again while it was on its way, continues."""
    slow, address = service

    def agent(run: AgentRun) -> str:
        if slow.fence == 1:
            slow.beating.wait(30)
            return run.ask("Which one?")
        slow.polled_again.set()
        slow.beaten.wait(30)
        return "done"

    worker = AgentWorker(address, "mine", agent, concurrency=1, grace_seconds=1)
    working = threading.Thread(target=worker.run, daemon=True)
    working.start()
    ended = slow.ended.wait(60)
    worker.stop()
    working.join(30)

    assert (True, [2]) == (ended, slow.completed)


def _swallowed_by_a_step(run: AgentRun) -> str:
    def look() -> None:
        run.wait(0.2)  # so that this thread sends the cost, not the one that has sent the call
        run.cost(input_tokens=1)

    return run.step("look", {}, look, tool_call_id="look-1")


def _swallowed_by_the_agent(run: AgentRun) -> str:
    with suppress(Exception):
        run.cost(input_tokens=1)
    return "done"


def _end_of_run(
    agent: Callable[[AgentRun], str],
    refuses: Callable[[str, dict[str, Any]], bool],
    reason: str,
    details: dict[str, list[str]] | None = None,
    **run: Any,
) -> tuple[str, str | None] | None:
    """Serve one run until it has ended; return the last write and its message, None: no end."""
    ended = threading.Event()
    written: list[tuple[str, str | None]] = []

    def respond(verb: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if verb in ("poll", "heartbeat"):
            is_new = verb == "poll" and body["wait_seconds"] and not body["held"] and not written
            runs = [{**RUN, "fence": 1, **run}] if is_new else []
            ended.wait(0 if runs or verb == "heartbeat" else 10)
            return 200, {"lease_seconds": 15.0, "runs": runs}
        if refuses(verb, body):
            return 422, {"code": "validation.error", "message": reason, "details": details or {}}
        written.append((verb, body.get("message")))
        if verb != "append":
            ended.set()
        return 200, {"status": "running", "cancel_requested": False, "next_seq": 9}

    with scripted_service(respond) as address:
        worker = AgentWorker(address, "mine", agent, concurrency=1, grace_seconds=1)
        working = threading.Thread(target=worker.run, daemon=True)
        working.start()
        is_ended = ended.wait(60)
        worker.stop()
        working.join(30)
    return written[-1] if is_ended else None


@pytest.mark.parametrize("agent", [_swallowed_by_a_step, _swallowed_by_the_agent])
def test_a_run_whose_agent_ignores_a_refusal_fails(agent: Callable[[AgentRun], str]) -> None:
    """Its events cannot be stored any more, and it would be polled again and again."""

    def has_cost(_: str, body: dict[str, Any]) -> bool:
        return any(event["type"] == "run.cost" for event in body["events"])

    end = _end_of_run(agent, has_cost, "No price.")

    assert ("fail", "The service refused the agent's events.") == end


def test_a_step_that_exits_fails_its_call_alone() -> None:
    """The model reads it as of any exception, and the agent carries on."""
    written: list[dict[str, Any]] = []

    def refuses(_: str, body: dict[str, Any]) -> bool:
        written.extend(body["events"])
        return False

    end = _end_of_run(lambda run: run.step("p", {}, sys.exit, tool_call_id="a"), refuses, "")

    assert ("complete", None) == end
    [result] = [event for event in written if event["type"] == "tool.result"]
    assert ("The tool failed: SystemExit.", True) == (result["output"], result["is_error"])


def test_an_approval_that_an_older_service_does_not_know_fails_the_run() -> None:
    """The error says what to upgrade: another execution would repeat the agent's calls in vain."""

    def is_unknown(_: str, body: dict[str, Any]) -> bool:
        return "approval_of" in body

    end = _end_of_run(
        lambda run: str(run.approve("refund", {}, tool_call_id="a")),
        is_unknown,
        "The request is not valid; see `details`.",
        {"approval_of": ["Unknown field."]},
    )

    assert end is not None
    assert "fail" == end[0]
    assert "The agent failed: The service is of an earlier release" in (end[1] or "")


def nested(levels: int) -> list[Any]:
    """Return a list within a list, and so on."""
    return [nested(levels - 1)] if levels else []


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("[" * 10_000, "The output is nested deeper than 64 levels."),
        ('{"a":' + "[" * 200 + "]" * 200 + "}", "The property 'a': is nested deeper than 64"),
        ('{"a": 1, "a": 2}', "The property 'a': duplicate field."),
        ("[1]", "The output must be of type object."),
        ({"mean": float("nan")}, "The property 'mean': NaN is not valid JSON."),
        ({"a": [float("-inf")]}, "The property 'a.0': -Infinity is not valid JSON."),
        ({"a": nested(70)}, "The property 'a': is nested deeper than 64 levels."),
    ],
)
def test_a_run_whose_output_is_no_object_fails(returned: Any, message: str) -> None:
    """It has the code of the service; brackets that are never closed exhaust Python's parser."""
    codes: list[str | None] = []

    def refuses(_: str, body: dict[str, Any]) -> bool:
        codes.append(body.get("code"))
        return False

    end = _end_of_run(lambda _: returned, refuses, "", output_schema={"type": "object"})

    assert end is not None
    assert ("fail", "output.invalid") == (end[0], codes[-1])
    assert (end[1] or "").startswith(message)


def test_the_type_that_json_does_not_have_is_named() -> None:
    """The author of the agent reads in the run what to convert."""
    schema = {"type": "object"}

    end = _end_of_run(lambda _: {"n": Decimal(1)}, lambda *_: False, "", output_schema=schema)

    message = "an object that is not JSON: Object of type Decimal is not JSON serializable."
    assert ("fail", f"The agent returned {message}") == end


def test_an_output_whose_property_the_service_refuses_is_invalid() -> None:
    """A service of the release before names a long integer by the path of its property."""
    codes: list[str | None] = []

    def refuses(verb: str, body: dict[str, Any]) -> bool:
        codes.append(body.get("code"))
        return verb == "complete"

    end = _end_of_run(
        lambda _: {"n": 2**63},
        refuses,
        "The request is not valid; see `details`.",
        {"output.n": ["does not fit in 64 bits"]},
        output_schema={"type": "object"},
    )

    assert ("fail", "The property 'n': does not fit in 64 bits.") == end
    assert "output.invalid" == codes[-1]


def test_the_message_of_a_failure_is_as_long_as_the_service_accepts() -> None:
    """A long refusal of the output is cut, within no character."""

    def is_too_long(verb: str, body: dict[str, Any]) -> bool:
        return verb == "complete" or len(body.get("message", "").encode()) > 8_192

    end = _end_of_run(lambda _: "done", is_too_long, "\u5b57" * 5_000)

    assert ("fail", "\u5b57" * 666) == end


def test_a_web_server_that_falls_silent_costs_no_run() -> None:
    """The heartbeat that it holds is given up in time for another one within the lease."""
    silent = SilentHeartbeats({"lease_seconds": LEASE_SECONDS, "runs": []})
    runs = [{**RUN, "fence": 1}]

    def respond(verb: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        match verb:
            case "heartbeat":
                return 200, silent.respond(body)
            case "poll":
                if not runs:
                    silent.is_over.wait(60)
                return 200, {"lease_seconds": LEASE_SECONDS, "runs": [runs.pop()] if runs else []}
        return 200, {"status": "completed", "cancel_requested": False, "next_seq": 9}

    def agent(run: AgentRun) -> str:
        silent.is_over.wait(60)
        return "done"

    with scripted_service(respond) as address:
        worker = AgentWorker(address, "mine", agent, concurrency=2, grace_seconds=1)
        working = threading.Thread(target=worker.run, daemon=True)
        working.start()
        eventually(lambda: len(silent.heard) > 2)
        silent.is_over.set()
        worker.stop()
        working.join(30)

    assert silent.unheard_seconds < LEASE_SECONDS


class OneRun:
    """A service with one run, which the second poll brings; some of its first responses, from that
    poll on, are not what a worker expects.
    """

    def __init__(self, **first: tuple[int, dict[str, Any] | bytes]) -> None:
        self.written: list[str] = []
        self.beaten = threading.Event()
        self._first = first
        self._is_polled = False

    def respond(self, verb: str, body: dict[str, Any]) -> tuple[int, dict[str, Any] | bytes]:
        if not self._is_polled:
            self._is_polled = True
            return 200, {"lease_seconds": 15.0, "runs": []}
        if (first := self._first.pop(verb, None)) is not None:
            return first
        match verb:
            case "poll":
                is_new = not body["held"] and set(self.written) <= {"append"}
                self.beaten.wait(0 if is_new else 0.1)
                runs = [{**RUN, "fence": 1}] if is_new else []
                return 200, {"lease_seconds": 15.0, "runs": runs}
            case "heartbeat":
                self.beaten.set()
                return 200, {"lease_seconds": 15.0, "runs": []}
        self.written.append(verb)
        return 200, {"status": "running", "cancel_requested": False, "next_seq": 9}

    def served(self, grace_seconds: float, stop_when: Callable[[], bool]) -> AgentWorker:
        """Return the worker after its end, which has to come soon."""

        def agent(run: AgentRun) -> str:
            while not self.beaten.is_set():
                run.wait(0.05)
            run.checkpoint({})
            return "done"

        with scripted_service(self.respond) as address:
            worker = AgentWorker(
                *(address, "mine", agent), concurrency=1, grace_seconds=grace_seconds
            )
            working = threading.Thread(target=worker.run, daemon=True)
            working.start()
            eventually(lambda: not working.is_alive() or stop_when())
            worker.stop()
            working.join(50)  # the grace of most is longer
            assert not working.is_alive()
        return worker


@pytest.mark.parametrize("verb", ["poll", "heartbeat", "append", "complete"])
@pytest.mark.parametrize("response", FOREIGN)
def test_a_response_that_is_not_the_services_is_passed_over(
    verb: str, response: tuple[int, dict[str, Any] | bytes]
) -> None:
    """A gateway responds by itself while the service is away."""
    service = OneRun(**{verb: response})

    worker = service.served(60, lambda: "complete" in service.written)

    assert (["append", "complete"], None) == (service.written, worker.failure)


def test_a_result_that_is_too_long_for_a_gateway_is_sent_once() -> None:
    """It would be refused each time: the run fails."""
    service = OneRun(append=(413, b"<html>Too long</html>"))

    service.served(60, lambda: service.written != [])

    assert ["fail"] == service.written


def test_a_wrong_url_ends_a_worker_that_has_never_polled() -> None:
    """The message names the URL, before the first response of the service."""
    with scripted_service(lambda *_: (404, b"default backend - 404")) as address:
        worker = AgentWorker(*(address, "mine", lambda _: "done"), concurrency=1, grace_seconds=1)
        worker.run()

    assert worker.failure is not None
    assert worker.failure.message.endswith(
        "404 without an error of this service: check ARKLOOP_URL."
    )


@pytest.mark.parametrize(
    ("verb", "response"),
    [
        ("poll", {"lease_seconds": 15.0, "runs": [{}]}),
        ("heartbeat", {"runs": [{}]}),
    ],
)
def test_an_unexpected_error_ends_the_worker(verb: str, response: dict[str, Any]) -> None:
    """Without its polls, or its heartbeats, the process would be of no use."""
    worker = OneRun(**{verb: (200, response)}).served(0, lambda: False)

    assert "The worker stopped: unexpected KeyError; its log has more." == str(worker.failure)


@pytest.mark.parametrize("name", ["agent", "run"])
def test_a_run_without_a_thread_ends_the_worker(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not in progress: the worker releases it at once, also if its function has begun."""
    refuse_threads(monkeypatch, name)
    service = OneRun()

    worker = service.served(60, lambda: False)

    assert "The worker stopped: unexpected RuntimeError; its log has more." == str(worker.failure)
    assert service.written in (["release"], ["append", "release"])
