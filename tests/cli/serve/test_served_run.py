"""The run of a served agent: its messages, and what an earlier execution has left."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from arkloop.cli.serve.served_run import ServedRun
from arkloop.cli.serve.service import Service
from arkloop.worker.attempt import agent_messages
from arkloop.worker.contract.attachments import parts_of
from arkloop.worker.contract.messages import UserMessage
from tests.cli.serve.polled_runs import RUN
from tests.cli.serve.scripted_service import scripted_service

Event = dict[str, Any]
CALL = {"id": "a", "name": "look", "arguments": {}}
FILE_ID = "01a2278d-0000-7000-8000-000000000000"
#: The parts of a message as its thread has them, and the files among them as an agent does.
PARTS: list[dict[str, Any]] = [
    {"type": "text", "text": "Look."},
    {
        "type": "image",
        "file_id": FILE_ID,
        "file": {"name": "a.png", "media_type": "image/png", "size": 7},
    },
    {"type": "file", "url": "https://example.com/a.pdf"},
]
FILES = [
    {"kind": "image", "file_id": FILE_ID, "name": "a.png", "media_type": "image/png", "size": 7},
    {"kind": "file", "url": "https://example.com/a.pdf"},
]
LOST = {**RUN, "fence": 1, "messages": [{"role": "assistant", "content": "", "tool_calls": [CALL]}]}


@pytest.fixture
def lost() -> Iterator[tuple[ServedRun, list[Event]]]:
    """The run, and the events that the service gets."""
    sent: list[Event] = []

    def respond(_: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        sent.extend(body["events"])
        return 200, {"status": "running", "cancel_requested": False, "next_seq": 9}

    with scripted_service(respond) as address:
        service = Service(address, "/agent-workers/mine")
        run = ServedRun(service, LOST, threading.Event())
        yield run, sent
        run.outbox.close()
        service.close()


def test_messages_name_their_files_as_in_a_worker_of_the_service() -> None:
    """One agent reads the same fields in both."""
    message = {"role": "user", "content": "Look.", "files": PARTS[1:]}
    polled = {**RUN, "fence": 1, "messages": [message]}
    with scripted_service(lambda *_: (500, {})) as address:
        service = Service(address, "/agent-workers/mine")
        run = ServedRun(service, polled, threading.Event())
        run.outbox.close()
        service.close()

    [inside] = agent_messages.shown([UserMessage("Look.", parts=parts_of(PARTS))])
    assert [inside] == run.messages == [{**message, "files": FILES}]


def test_a_call_that_is_made_again_is_not_settled_meanwhile(
    lost: tuple[ServedRun, list[Event]],
) -> None:
    """A further call begins while it is in progress, and its result is that of its repetition."""
    run, sent = lost

    def look() -> str:
        return run.step("pay", {}, lambda: "paid", tool_call_id="b")

    assert "paid" == run.step("look", {}, look, tool_call_id="a", idempotent=True)

    results = [event for event in sent if event["type"] == "tool.result"]
    assert [("b", "paid"), ("a", "paid")] == [
        (event["tool_call_id"], event["output"]) for event in results
    ]


@pytest.mark.parametrize("schema", [None, {"type": "object"}])
def test_an_answer_that_an_earlier_execution_gave_is_not_streamed_again(
    schema: dict[str, Any] | None,
) -> None:
    """It is that answer as the service has stored it, with U+FFFD for NUL."""
    sent: list[dict[str, Any]] = []

    def respond(_: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        sent.append(body)
        return 200, {"status": "completed", "cancel_requested": False, "next_seq": 9}

    answered = {**RUN, "fence": 1, "last_turn": '{"a": "\ufffd"}', "output_schema": schema}
    with scripted_service(respond) as address:
        service = Service(address, "/agent-workers/mine")
        run = ServedRun(service, answered, threading.Event())
        run.finish('{"a": "\0"}')
        run.outbox.close()
        service.close()

    [end] = sent
    assert (answered["last_turn"], []) == (end["content"], end["events"])
