"""Requests of a run, as interrupts of AG-UI."""

import json
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from werkzeug.test import TestResponse

from arkloop.api.protocols.agui_interrupts import content_of, interrupt_of
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.events.types import (
    RunInputReceived,
    RunWaitingForInput,
    ToolCallRequested,
    ToolResult,
)
from arkloop.shared.ids import new_id
from arkloop.shared.runs.states import RunState
from tests.api.protocols.test_agui_runs import SAID, events_of, newest, send
from tests.api.protocols.test_agui_threads import snapshot
from tests.clients import User
from tests.stored_runs import StoredRuns

ASKED = {"request_id": "r", "kind": "tool_confirmation", "prompt": "?", "expires_at": "later"}


@pytest.mark.parametrize("fields", [{"approved_by": "org"}, {"url": "https://a.example/"}, {}])
def test_an_interrupt_names_the_approvers_and_the_page_to_visit(fields: dict[str, Any]) -> None:
    """A page shows no buttons for what its user may not decide."""
    interrupt = interrupt_of({**ASKED, **fields}, "call", may_edit=False)

    assert (fields or None) == interrupt.metadata


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        *(("authorization", payload) for payload in (None, {"approved": False}, "no", 0, 1)),
        *(("tool_confirmation", payload) for payload in (None, {}, False, {"approved": "no"})),
    ],
)
def test_a_payload_of_another_form_is_no_reply(kind: str, payload: Any) -> None:
    """It is taken neither for a yes nor for a no."""
    with pytest.raises(InvalidRequest):
        content_of({"kind": kind}, "resolved", payload)


@pytest.mark.parametrize(
    ("status", "payload", "content"),
    [
        ("resolved", True, "accept"),
        ("resolved", False, "decline"),
        ("cancelled", None, "cancel"),
        ("cancelled", True, "cancel"),
    ],
)
def test_a_visit_to_a_page_is_agreed_to_or_not(status: str, payload: Any, content: str) -> None:
    """A person who leaves without a decision has cancelled it."""
    assert content == content_of({"kind": "authorization"}, status, payload)


def test_an_approval_without_a_payload_leaves_the_interrupt_open(
    alice: User, stored: StoredRuns
) -> None:
    """The page has forgotten it, and sends the reply once more."""
    send(alice, SAID).close()
    claim = stored.held(run_id := newest(stored))
    stored.write(claim, ToolCallRequested("c", "look_up", {}))
    asked: dict[str, Any] = {"kind": "tool_confirmation", "tool_call_id": "c"}
    stored.park(replace(claim, last_seq=stored.last_seq(run_id)), request_id := new_id(), **asked)
    reply = {"interruptId": str(request_id), "status": "resolved"}
    refused = send(alice, SAID, run_id="r", resume=[reply])
    assert RunState.WAITING == stored.state(run_id)
    [shown] = events_of(connect(alice))[-1]["outcome"]["interrupts"]
    approved = {**reply, "payload": {"approved": True}}
    send(alice, SAID, run_id="r", resume=[approved]).close()

    error = events_of(refused)[-1]
    assert ("RUN_ERROR", InvalidRequest.code) == (error["type"], error["code"])
    assert str(request_id) == shown["id"]
    assert RunState.QUEUED == stored.state(run_id)


@pytest.mark.parametrize(
    ("reply", "shown"),
    [
        ({"decision": "edit", "arguments": {"exact": False}}, '{"exact":false}'),
        ({"decision": "approve"}, '{"exact":true}'),
        (None, '{"exact":true}'),
    ],
)
def test_a_page_that_connects_is_shown_the_arguments_of_the_reply(
    alice: User, stored: StoredRuns, reply: Any, shown: str
) -> None:
    """Nobody may have replied before the end."""
    send(alice, SAID).close()
    claim = stored.held(run_id := newest(stored))
    stored.write(claim, ToolCallRequested("c", "look_up", {"exact": True}))
    stored.write(claim, RunWaitingForInput(**ASKED, tool_call_id="c"))
    if reply is not None:
        stored.write(claim, RunInputReceived("r", json.dumps(reply)))
    stored.finish(replace(claim, last_seq=stored.last_seq(run_id)))

    [call] = snapshot(alice, "chat-1")[-1]["toolCalls"]
    assert shown == call["function"]["arguments"]


PROPOSED = {"expression": "6*7"}
MISFIT = {"expression": 5}


@pytest.fixture
def asked_again(alice: User, stored: StoredRuns) -> tuple[UUID, UUID, list[dict[str, Any]]]:
    """A run that asks again about a call, whose edited arguments do not fit its tool.

    It comes with the id of the second request, and what the page is shown before that.
    """
    send(alice, SAID).close()
    claim = stored.held(run_id := newest(stored))
    stored.write(claim, ToolCallRequested("c", "calculator", PROPOSED))
    asked: dict[str, Any] = {"kind": "tool_confirmation", "tool_call_id": "c"}
    stored.park(replace(claim, last_seq=stored.last_seq(run_id)), first := new_id(), **asked)
    stream = resume(alice, first, {"approved": True, "editedArgs": MISFIT})
    claim = stored.held(run_id)
    stored.park(replace(claim, last_seq=stored.last_seq(run_id)), second := new_id(), **asked)
    return run_id, second, events_of(stream)


def resume(alice: User, request_id: UUID, payload: Any) -> TestResponse:
    reply = {"interruptId": str(request_id), "status": "resolved", "payload": payload}
    return send(alice, SAID, resume=[reply])


def connect(alice: User) -> TestResponse:
    body = {"threadId": "chat-1", "runId": "c", "messages": [], "protocolVersion": "1.0"}
    return alice.post("/v1/agui/connect", json=body)


def arguments_in(events: list[dict[str, Any]]) -> list[Any]:
    """Return the arguments of the call in each of the snapshots."""
    shown = [one for event in events for one in event.get("messages", ()) if "toolCalls" in one]
    return [json.loads(one["toolCalls"][0]["function"]["arguments"]) for one in shown]


def test_a_page_is_shown_the_proposed_arguments_where_it_is_asked_again(
    alice: User, stored: StoredRuns, asked_again: Any
) -> None:
    """A plain approval is one of these: those that a person has given do not fit the tool."""
    run_id, second, shown = asked_again
    assert [MISFIT, PROPOSED] == arguments_in(shown)
    assert "RUN_FINISHED" == shown[-1]["type"]

    streams = [resume(alice, second, {"approved": True})]
    claim = stored.held(run_id)
    streams.append(connect(alice))
    stored.write(claim, ToolResult("c", "calculator", "42", False, 1))
    stored.finish(replace(claim, last_seq=stored.last_seq(run_id)))
    streams.append(connect(alice))

    assert [[], [PROPOSED], [PROPOSED]] == [arguments_in(events_of(one)) for one in streams]


def test_a_thread_has_the_proposed_arguments_if_the_second_request_has_no_reply(
    alice: User, stored: StoredRuns, asked_again: Any
) -> None:
    """The run is cancelled while it asks again."""
    stored.cancel(asked_again[0])

    assert [PROPOSED] == arguments_in(events_of(connect(alice)))
