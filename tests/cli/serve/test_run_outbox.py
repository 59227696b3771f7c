"""Events on their way to the service: which request has them, and what becomes of refused ones."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from arkloop.cli.serve import run_outbox
from arkloop.cli.serve.run_outbox import MAX_EVENTS, OUTDATED, RunOutbox
from arkloop.cli.serve.served_run import ServedRun
from arkloop.cli.serve.service import Service, encoded
from arkloop.shared.agents.agent_run import RunStopped
from arkloop.shared.events.types import MessageCompleted, ToolCallRequested
from arkloop.shared.events.usage import Usage
from tests.cli.serve.polled_runs import RUN
from tests.cli.serve.scripted_service import scripted_service

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

    def respond(_verb: str, sent: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        slow.bodies.append(sent)
        slow.asked.set()
        slow.may_answer.wait(60)
        return (200, STORED) if slow.refusal is None else (409, slow.refusal)

    with scripted_service(respond) as address:
        service = Service(address, "/agent-workers/a")
        outbox = RunOutbox(service, {"run_id": "r", "fence": 1, "next_seq": 2}, lambda _: None)
        yield slow, outbox
        outbox.close()
        service.close()


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


@pytest.mark.parametrize(
    ("answer", "bodies"),
    [
        ("x" * 1_000, [(2, [MessageCompleted.type], True)]),
        ("x" * 1_048_576, [(2, [MessageCompleted.type], False), (3, [], True)]),
        ("\u5b57" * 349_525, [(2, [MessageCompleted.type], False), (3, [], True)]),
    ],
    ids=["short", "long", "few characters of many bytes"],
)
def test_a_long_answer_is_sent_beside_its_turn(
    answer: str,
    bodies: list[tuple[int, list[str], bool]],
    slow: tuple[SlowService, RunOutbox],
) -> None:
    """Both have the same text, which is too much for one request if it has a mebibyte."""
    service, outbox = slow
    service.may_answer.set()

    outbox.send("complete", MessageCompleted("m", answer, Usage()), content=answer)

    assert bodies == [
        (body["seq"], [event["type"] for event in body["events"]], "content" in body)
        for body in service.bodies
    ]
    assert all(len(encoded(body)) < 2 * 1024 * 1024 for body in service.bodies)


def test_events_of_a_request_that_cannot_be_made_give_their_numbers_back(
    slow: tuple[SlowService, RunOutbox],
) -> None:
    """The failure of the run begins where the service expects it."""
    service, outbox = slow
    service.may_answer.set()

    with pytest.raises(TypeError, match="not JSON serializable"):
        outbox.send("complete", MessageCompleted("m", "Hi.", Usage()), output=object())
    outbox.send("fail", message="The worker failed.")

    assert [(2, [])] == [(body["seq"], body["events"]) for body in service.bodies]


def test_a_service_of_the_release_before_gets_no_code_of_a_failure() -> None:
    """It refuses the field, and would poll the run again and again."""
    codes: list[str | None] = []

    def respond(_: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        codes.append(body.get("code"))
        if "code" in body:
            return 422, {"code": "validation.error", "message": "", "details": {"code": ["?"]}}
        return 200, {**STORED, "status": "failed"}

    with scripted_service(respond) as address:
        service = Service(address, "/agent-workers/a")
        outbox = RunOutbox(service, {"run_id": "r", "fence": 1, "next_seq": 2}, lambda _: None)
        outbox.send("fail", message="No.", code="output.invalid")
        outbox.close()
        service.close()

    assert ["output.invalid", None] == codes


def test_a_call_whose_beginning_cannot_be_recorded_is_left_to_another_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A web process of the release before refuses the field: the call is not made, and the run goes
    back to the queue with all that it has said, after a pause: it may come back at once.
    """
    monkeypatch.setattr(run_outbox, "MAX_PAUSE_SECONDS", 0.2)
    stored: list[tuple[str, int, int]] = []
    refused_at: list[float] = []

    def respond(verb: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        for field in ("begun", "unbegun"):
            if field in body:
                refused_at.append(time.monotonic())
                error = {"code": "validation.error", "message": "", "details": {field: ["?"]}}
                return 422, error
        stored.append((verb, body["seq"], len(body["events"])))
        return 200, STORED

    call = {"id": "a", "name": "pay", "arguments": {}}
    turn = {"role": "assistant", "content": "", "tool_calls": [call]}
    with scripted_service(respond) as address:
        service = Service(address, "/agent-workers/a")
        polled = {**RUN, "fence": 1, "messages": [turn], "unbegun": ["a"]}
        run = ServedRun(service, polled, threading.Event())
        run.thinking("Now.")
        with pytest.raises(RunStopped):
            run.step("pay", {}, lambda: pytest.fail("made"), tool_call_id="a")
        assert time.monotonic() - refused_at[0] >= 0.2
        run.release()
        run.outbox.close()
        service.close()

    assert "shutdown" == run.stopped
    assert [("append", 2, 1), ("release", 3, 0)] == stored
