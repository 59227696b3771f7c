"""Answers of pages to questions, and results of their tools."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from arkloop.shared.claim import Claim
from arkloop.shared.events.types import RunInputReceived, ToolCallRequested, ToolResult
from arkloop.shared.ids import new_id
from arkloop.shared.runs import claims, sweep
from arkloop.shared.runs.pending_calls import TOO_LATE
from arkloop.shared.runs.states import ResultSource
from arkloop.shared.storage.tables.runs import inputs
from arkloop.shared.times import now, rfc3339
from tests.api.endpoints.published_personas import published
from tests.api.protocols import late_calls, ui_chats
from tests.api.protocols.late_calls import LATE, OPEN
from tests.api.protocols.ui_chats import message, post, run_of, shown
from tests.clients import User, error_of
from tests.end_users import end_user
from tests.stored_runs import StoredRuns

#: Of vendors that count the calls of each run anew.
CALL = "call_1_1"


@pytest.fixture
def runs(connections: Any, alice: User) -> StoredRuns:
    return StoredRuns.of(connections, alice)


def asking(alice: User, runs: StoredRuns, chat: str) -> tuple[Claim, UUID]:
    """Create a run of the chat that asks its user; returns its claim and the request's id."""
    claim = runs.held(UUID(run_of(post(alice, message(), chat=chat))))
    runs.write(claim, ToolCallRequested(CALL, "ask_user", {"question": "?"}))
    at_end, request_id = replace(claim, last_seq=runs.last_seq(claim.run_id)), new_id()
    assert runs.park(at_end, request_id, tool_call_id=CALL)
    return claim, request_id


def answer_to(run_id: UUID, *calls: dict[str, Any]) -> dict[str, Any]:
    parts = [{**call, "state": "output-available"} for call in calls]
    return {"id": str(run_id), "role": "assistant", "parts": parts}


def end(runs: StoredRuns, run_id: UUID, request_id: UUID, output: str) -> None:
    """End a run that has got this answer."""
    claim = runs.held(run_id)
    runs.write(claim, RunInputReceived(str(request_id), output))
    runs.write(claim, ToolResult(CALL, "ask_user", output, False, 1))
    assert runs.finish(claim)


def test_calls_of_different_runs_have_different_ids(alice: User, runs: StoredRuns) -> None:
    """Pages give an output to the first call of the chat that has its id."""
    chat = ui_chats.new_id()
    first, request_id = asking(alice, runs, chat)
    runs.answer(first.run_id, "Rome", request_id)
    end(runs, first.run_id, request_id, "Rome")
    second, _ = asking(alice, runs, chat)

    [_, one, _, other] = [entry["parts"][-1] for entry in shown(alice, chat)]
    assert ["output-available", "input-available"] == [one["state"], other["state"]]
    assert [False, False] == [one["providerExecuted"], other["providerExecuted"]]
    assert one["toolCallId"] != other["toolCallId"]
    run_of(post(alice, answer_to(second.run_id, {**other, "output": "Paris"}), chat=chat))
    assert "queued" == runs.state(second.run_id)


@pytest.mark.parametrize("is_bare", [True, False])
def test_a_page_keeps_the_ids_that_it_has(alice: User, runs: StoredRuns, is_bare: bool) -> None:
    """A page of the release before has those of the run: it knows no call by another one."""
    chat = ui_chats.new_id()
    asked, request_id = asking(alice, runs, chat)
    call_id = CALL if is_bare else f"{asked.run_id.hex}.{CALL}"
    call = {"type": "tool-ask_user", "toolCallId": call_id, "output": "Rome"}
    run_of(post(alice, answer_to(asked.run_id, call), chat=chat))
    end(runs, asked.run_id, request_id, "Rome")

    lines = post(alice, answer_to(asked.run_id, call), chat=chat).text.splitlines()

    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    outputs = {c["toolCallId"]: c["output"] for c in chunks if c["type"].startswith("tool-output")}
    assert {call_id: "Rome"} == outputs


@pytest.mark.parametrize("of_request", [True, False])
def test_a_question_with_a_key_is_answered_by_its_own_call(
    alice: User, runs: StoredRuns, of_request: bool
) -> None:
    """The step that it is about has its key as an id, and for a page of the release before that
    call is the question.
    """
    chat, request_id, key = ui_chats.new_id(), new_id(), "cancel-1"
    claim = runs.held(UUID(run_of(post(alice, message(), chat=chat))))
    run_id = claim.run_id
    runs.write(claim, ToolCallRequested(key, "cancel_order", {}))
    at_end = replace(claim, last_seq=runs.last_seq(run_id))
    assert runs.park(at_end, request_id, tool_call_id=key)
    step = {"toolCallId": f"{run_id.hex}.{key}", "output": "Cancelled.", "providerExecuted": True}
    asked = {"toolCallId": f"{run_id.hex}.{request_id}", "output": "yes"}
    if not of_request:
        asked["toolCallId"] = key

    refused = post(alice, answer_to(run_id, step), chat=chat)
    calls = [step, asked] if of_request else [asked]
    run_of(post(alice, answer_to(run_id, *calls), chat=chat))

    assert (409, "runs.not_waiting") == error_of(refused)
    with runs.connections.reading() as sql:
        assert "yes" == sql.scalar(select(inputs.c.content).where(inputs.c.run_id == run_id))


def test_outputs_that_come_with_an_answer_are_those_of_client_tools(
    alice: User, runs: StoredRuns
) -> None:
    """The run knows what it has called: parts of a message may have any name."""
    tool: dict[str, Any] = {"name": "locate", "description": "?", "client": True}
    tool["parameters"] = {"type": "object"}
    persona_id = published(alice, key="located", tools=["calculator"], client_tools=[tool])["id"]
    chat, request_id = ui_chats.new_id(), new_id()
    claim = runs.held(UUID(run_of(post(alice, message(), chat=chat, persona_id=persona_id))))
    run_id, called = claim.run_id, [("mine", "locate"), ("yours", "calculator")]
    runs.write(claim, *(ToolCallRequested(id_, name, {}) for id_, name in called))
    runs.write(claim, ToolCallRequested(CALL, "ask_user", {"question": "?"}))
    at_end = replace(claim, last_seq=runs.last_seq(run_id))
    assert runs.park(at_end, request_id, tool_call_id=CALL)

    calls = [
        {"toolCallId": f"{run_id.hex}.{id_}", "type": "tool-locate", "output": {"city": "Rome"}}
        for id_ in ("mine", "yours", "unknown", CALL)
    ]
    run_of(post(alice, answer_to(run_id, *calls), chat=chat))

    kept = {"tool_call_id": "mine", "output": '{"city":"Rome"}', "is_error": False}
    with runs.connections.reading() as sql:
        assert [kept] == sql.scalar(select(inputs.c.results).where(inputs.c.run_id == run_id))


@pytest.mark.parametrize("sent", [(LATE, OPEN), (OPEN,)])
@pytest.mark.parametrize("is_swept", [True, False])
def test_a_late_result_is_left_out(
    alice: User, runs: StoredRuns, sent: tuple[str, ...], is_swept: bool
) -> None:
    """The page sends it together with the others, which count."""
    chat = ui_chats.new_id()
    run_id = UUID(run_of(post(alice, message(), chat=chat)))
    late_calls.wait_for(runs, run_id)
    if is_swept:
        sweep.sweep(runs.connections)
    calls = [{"toolCallId": f"{run_id.hex}.{id_}", "output": "Rome"} for id_ in sent]

    for _ in range(2):  # the same again changes nothing
        assert f"{run_id}.1" == run_of(post(alice, answer_to(run_id, *calls), chat=chat))

    assert {LATE: TOO_LATE, OPEN: "Rome"} == late_calls.outputs(runs, run_id)


CLIENT_CALLS = [{"tool_call_id": CALL, "name": "locate", "arguments": {}}]


@pytest.mark.parametrize(
    ("asked", "is_of_page"),
    [
        ({"kind": "question", "tool_call_id": CALL}, True),
        ({"kind": "tool_confirmation", "tool_call_id": CALL}, True),
        ({"kind": "tool_results", "calls": CLIENT_CALLS}, True),
        ({"kind": "question"}, False),
    ],
)
def test_a_message_does_not_wait_behind_what_its_page_is_asked(
    alice: User, runs: StoredRuns, asked: dict[str, Any], is_of_page: bool
) -> None:
    """The page would wait for the response, and could not send the answer."""
    chat, second = ui_chats.new_id(), message("Rome")
    run_id = UUID(run_of(post(alice, message("one"), chat=chat)))
    claim = runs.held(run_id)
    with runs.connections.transaction() as tx:
        claims.begin_tool_call(tx, claim, CALL, ResultSource.CLIENT)
    runs.write(claim, ToolCallRequested(CALL, "locate", {}))
    assert runs.park(replace(claim, last_seq=runs.last_seq(run_id)), new_id(), **asked)
    assert "waiting" == runs.state(run_id)

    sent = post(alice, second, chat=chat)
    if is_of_page:
        assert (409, "runs.thread_busy") == error_of(sent)
        assert second["id"] not in [one["id"] for one in shown(alice, chat)]
        in_a_day = rfc3339(now() + timedelta(days=1))
        run_of(post(alice, message("Later"), chat=chat, not_before=in_a_day))
        sent = post(alice, second, chat=chat, on_busy="enqueue")
    assert "pending" == runs.state(UUID(run_of(sent)))


def test_a_page_of_an_end_user_leaves_approvals_to_the_org(alice: User, runs: StoredRuns) -> None:
    """Its response continues meanwhile, and its responses are counted without that wait."""
    guarded = {"tools": ["calculator"], "require_approval": ["*"], "approved_by": "org"}
    persona_id = published(alice, **{"key": "desk", **guarded})["id"]
    chat, ann, request_id = ui_chats.new_id(), end_user(alice, persona_id=persona_id), new_id()
    run_id = UUID(run_of(post(ann, message(), chat=chat)))
    claim = runs.held(run_id)
    runs.write(claim, ToolCallRequested(CALL, "calculator", {}))
    at_end = replace(claim, last_seq=runs.last_seq(run_id))
    assert runs.park(
        at_end, request_id, kind="tool_confirmation", tool_call_id=CALL, approved_by="org"
    )

    states = [[part.get("state") for part in shown(one, chat)[-1]["parts"]] for one in (alice, ann)]
    assert [[None, "approval-requested"], [None, "input-available", None]] == states
    assert "org" == shown(ann, chat)[-1]["parts"][-1]["data"]["approved_by"]
    stream = f"/v1/ui/chat/{chat}/stream"
    assert 204 == alice.get(stream).status_code
    followed = ann.get(stream, buffered=False)
    assert 200 == followed.status_code
    reply = {"id": str(request_id), "approved": True}
    call = {"toolCallId": CALL, "state": "approval-responded", "approval": reply}
    approval = {"id": str(run_id), "role": "assistant", "parts": [call]}
    assert (403, "approvals.reserved") == error_of(post(ann, approval, chat=chat))

    run_of(post(alice, approval, chat=chat))
    again = runs.held(run_id)
    runs.write(again, RunInputReceived(str(request_id), '{"decision": "approve"}'))
    runs.write(again, ToolResult(CALL, "calculator", "42", False, 1))
    runs.write(again, ToolCallRequested("ask", "ask_user", {}))
    asked = replace(again, last_seq=runs.last_seq(run_id))
    assert runs.park(asked, new_id(), tool_call_id="ask")

    lines = [line[6:] for line in followed.text.splitlines() if line.startswith("data: {")]
    types = [json.loads(line)["type"] for line in lines]
    assert "tool-output-available" in types
    assert "finish" == types[-1]
    assert not [kind for kind in types if "approval" in kind]
    assert [204, 204] == [one.get(stream).status_code for one in (alice, ann)]
    output = {"toolCallId": f"{run_id.hex}.ask", "output": "Rome"}
    for reader, number in [(ann, 1), (alice, 2)]:
        assert f"{run_id}.{number}" == run_of(post(reader, answer_to(run_id, output), chat=chat))
