"""Requests that `/v1/agui` refuses, and those that it answers without a worker."""

import json
import re
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select
from werkzeug.test import TestResponse

from arkloop.api.protocols import agui_parts
from arkloop.shared.claim import Claim
from arkloop.shared.events.types import ToolCallRequested, ToolResult
from arkloop.shared.ids import new_id
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.files import files
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.times import now, rfc3339
from tests.clients import Register, User, details_of, error_of
from tests.stored_runs import StoredRuns

SAID = {"id": "m1", "role": "user", "content": "Hello"}
ASK: dict[str, Any] = {"threadId": "chat-1", "runId": "run-1", "messages": [SAID]}


def events_of(response: TestResponse) -> list[dict[str, Any]]:
    assert 200 == response.status_code, response.text
    return [json.loads(line[6:]) for line in response.text.splitlines() if line[:6] == "data: "]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"threadId": ""}, "threadId"),
        ({"runId": "x" * 129}, "runId"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"id": "m1", "role": "user"}]}, "messages.0.user.content"),
        ({"messages": [{**SAID, "content": ""}]}, "messages.0.content"),
        ({"messages": [SAID, {"id": "m2", "role": "assistant", "content": "Hi"}]}, "messages"),
        ({"messages": [{**SAID, "content": [{"type": "text"}]}]}, "messages.0"),
        ({"tools": [{"name": "two words", "description": "x"}]}, "tools"),
        ({"tools": [{"name": "calculator", "description": "x"}]}, "tools"),
        ({"tools": [{"name": "x", "description": "x", "parameters": "x"}]}, "tools.0.parameters"),
        ({"tools": [{"name": "x", "description": "x", "parameters": [1]}]}, "tools.0.parameters"),
        ({"resume": [{"interruptId": "i", "status": "perhaps"}]}, "resume.0.status"),
    ],
)
def test_an_input_that_is_none_is_refused(alice: User, fields: Any, name: str) -> None:
    """422 names what is wrong with a `RunAgentInput`."""
    found = details_of(alice.post("/v1/agui", json={**ASK, **fields}))
    assert any(field.startswith(name) for field in found), found


def test_an_unknown_agent_is_refused(alice: User) -> None:
    """Personas and routes that do not exist are 422, as elsewhere."""
    for query in ("persona_id=nobody", "route_id=nowhere", "persona_id=two words", "x=1"):
        response = alice.post(f"/v1/agui?{query}", json=ASK)
        assert 422 == response.status_code, query


def document(data: str) -> dict[str, Any]:
    source = {"type": "data", "value": data, "mimeType": "text/plain"}
    return {**SAID, "content": [{"type": "document", "source": source}]}


def test_data_within_a_message_is_stored(alice: User) -> None:
    """A file in base64 becomes a file of the org, and the message refers to it."""
    made = alice.post("/v1/agui", json={**ASK, "messages": [document("aGVsbG8=")]})
    [thread] = alice.get("/v1/threads").json or []
    [said] = alice.get(f"/v1/threads/{thread['id']}/messages").json or []
    [part] = said["content"]

    assert 200 == made.status_code
    assert b"hello" == alice.get(f"/v1/files/{part['file_id']}/content").data


@pytest.mark.parametrize(
    ("metadata", "name"),
    [(7, "file"), ("x", "file"), (["x"], "file"), ({"filename": "a.txt"}, "a.txt")],
)
def test_any_metadata_may_stand_beside_data(alice: User, metadata: Any, name: str) -> None:
    """The protocol lets a part's metadata be any value: only an object's `filename` counts."""
    message = document("aGVsbG8=")
    message["content"][0]["metadata"] = metadata
    made = alice.post("/v1/agui", json={**ASK, "messages": [message]})
    [thread] = alice.get("/v1/threads").json or []
    [said] = alice.get(f"/v1/threads/{thread['id']}/messages").json or []

    assert 200 == made.status_code
    assert name == alice.get(f"/v1/files/{said['content'][0]['file_id']}").json["name"]


@pytest.mark.parametrize("data", ["&", "data:text/plain,hello", "", "AA=="])
def test_data_that_is_no_file_is_refused(alice: User, data: str) -> None:
    """What is no base64, or of no accepted type, is named by its place."""
    found = details_of(alice.post("/v1/agui", json={**ASK, "messages": [document(data)]}))
    assert ["messages.0.content.0"] == list(found)


def names_of_files(connections: Connections) -> list[str]:
    """Return the files that are there for their users, by name."""
    with connections.reading() as sql:
        is_alive = files.c.stored_at.is_not(None) & files.c.expires_at.is_(None)
        return sorted(sql.scalars(select(files.c.name).where(is_alive)))


def test_data_of_a_request_that_is_sent_again_is_stored_once(
    alice: User, connections: Connections
) -> None:
    """Data of a request that is refused is not stored at all."""
    before = names_of_files(connections)
    body = {**ASK, "messages": [document("aGVsbG8=")]}
    for _ in range(3):
        alice.post("/v1/agui", json=body).close()
    other = {**body, "messages": [document("aGVsbG8h")]}
    assert "idempotency.conflict" == events_of(alice.post("/v1/agui", json=other))[-1]["code"]
    unknown = alice.post("/v1/agui?persona_id=nobody", json={**body, "runId": "run-2"})
    assert 422 == unknown.status_code

    assert sorted([*before, "file"]) == names_of_files(connections)


def test_an_answer_is_bounded_as_elsewhere(alice: User, stored: StoredRuns) -> None:
    """A payload may be as large as a body, and an answer has at most 32,768 bytes."""
    run_id, request_id = stored.create(UUID(alice.thread(external_id="chat-1"))), new_id()
    claim = stored.held(run_id)
    stored.park(claim, request_id)

    def answer(payload: str) -> TestResponse:
        resume = [{"interruptId": str(request_id), "status": "resolved", "payload": payload}]
        body = {**ASK, "runId": str(new_id()), "resume": resume}
        return alice.post("/v1/agui", json=body)

    refused = events_of(answer("x" * 32_769))
    assert ["RUN_STARTED", "RUN_ERROR"] == [event["type"] for event in refused]
    assert "validation.error" == refused[-1]["code"]
    answer("x" * 32_768).close()
    assert RunState.QUEUED == stored.state(run_id)


def runs_of(stored: StoredRuns) -> list[UUID]:
    """Return the runs of the org, the oldest first."""
    with stored.connections.reading() as sql:
        is_own = runs.c.org_id == stored.actor.org_id
        return list(sql.scalars(select(runs.c.id).where(is_own).order_by(runs.c.id)))


@pytest.mark.parametrize(
    ("missing", "states"),
    [
        ([{}], ["cancelled", "queued"]),
        ([{"result_from": "http"}, {}], ["cancelled", "queued"]),
        ([{"result_from": "http"}], ["waiting", "pending"]),
    ],
)
def test_a_message_interrupts_a_run_that_waits_for_the_page(
    alice: User, stored: StoredRuns, missing: list[dict[str, Any]], states: list[str]
) -> None:
    """The page has moved on from its own tools; results of the org's may come still."""
    run_id = stored.create(UUID(alice.thread(external_id="chat-1")))
    claim = stored.held(run_id)
    stored.park(claim, new_id())
    asked = {"request_id": str(new_id()), "prompt": "?", "expires_at": rfc3339(now())}
    call = {"name": "t", "idempotent": False, "idempotency_key": "k", "traceparent": "00-t-s-01"}
    calls = [{"tool_call_id": f"c{n}", **call, **of} for n, of in enumerate(missing)]
    stored.set(run_id, pending_input={**asked, "kind": "tool_results", "calls": calls})

    alice.post("/v1/agui", json=ASK).close()

    made = [run["run_id"] for run in alice.get("/v1/runs").json or []]
    assert states == [stored.state(UUID(one)) for one in reversed(made)]


def parked(stored: StoredRuns, alice: User) -> tuple[Claim, UUID]:
    """Return a run of the thread `chat-1` that has asked a question, and the question's id."""
    claim = stored.held(stored.create(UUID(alice.thread(external_id="chat-1"))))
    stored.park(claim, request_id := new_id())
    return claim, request_id


def cancelled(request_id: UUID, said: Any = SAID) -> dict[str, Any]:
    """Return the request of a page whose user says something instead of answering."""
    resume = [{"interruptId": str(request_id), "status": "cancelled"}]
    return {**ASK, "runId": str(new_id()), "messages": [said], "resume": resume}


@pytest.mark.parametrize("since", ["answered", "ended", "followed"])
def test_a_message_may_cancel_an_interrupt_that_is_over(
    alice: User, stored: StoredRuns, since: str
) -> None:
    """The page cannot know that somebody else has answered, and cancels what it was asked."""
    claim, request_id = parked(stored, alice)
    stored.answer(claim.run_id, "Rome", request_id)
    if since != "answered":
        again = stored.held(claim.run_id)
        stored.finish(again)
    if since == "followed":
        alice.post("/v1/agui", json={**ASK, "messages": [{**SAID, "id": "m0"}]}).close()
    before = runs_of(stored)

    alice.post("/v1/agui", json=cancelled(request_id)).close()

    [newest] = set(runs_of(stored)) - set(before)
    assert (RunState.QUEUED if since == "ended" else "pending") == stored.state(newest)
    repeated = cursor_of(alice.post("/v1/agui", json=cancelled(request_id)))
    assert f"{newest}.0.1" == repeated  # the thread has the message


LATER = {"id": "m2", "role": "user", "content": "Rome, and Paris."}


@pytest.mark.parametrize(
    ("reply", "waits", "states"),
    [
        ({"status": "cancelled"}, 0, ["cancelled", "queued"]),
        ({"status": "resolved", "payload": "Rome"}, 1, ["queued", "pending"]),
    ],
)
def test_a_message_beside_a_reply_is_the_next_run(
    alice: User, stored: StoredRuns, reply: dict[str, str], waits: int, states: list[str]
) -> None:
    """The response is that run, now, if the interrupt is cancelled, else what follows the reply."""
    claim, request_id = parked(stored, alice)
    body = cancelled(request_id, LATER)
    body["resume"][0].update(reply)

    shown = [cursor_of(alice.post("/v1/agui", json={**body, "runId": id_})) for id_ in "ab"]

    [asked, newest] = runs_of(stored)
    assert [claim.run_id, *states] == [asked, *(stored.state(one) for one in (asked, newest))]
    # The thread has the message already when it is sent again.
    assert [f"{asked if waits else newest}.{waits}.1"] * 2 == shown


@pytest.mark.parametrize(
    ("asked", "said", "reply"),
    [
        (SAID, SAID, {"status": "cancelled"}),
        (document("aGVsbG8="), document("aGVsbG8="), {"status": "cancelled"}),
        (SAID, {**LATER, "content": "Rome"}, {"status": "resolved", "payload": "Rome"}),
    ],
)
def test_a_reply_needs_no_message(
    alice: User,
    stored: StoredRuns,
    connections: Connections,
    asked: Any,
    said: Any,
    reply: dict[str, str],
) -> None:
    """The message may be the one before a question without a call, or show the reply itself."""
    alice.post("/v1/agui", json={**ASK, "messages": [asked]}).close()
    files_before = names_of_files(connections)
    [run_id] = runs_of(stored)
    claim, request_id = stored.claim(run_id), new_id()
    assert claim is not None
    stored.park(claim, request_id)
    body = cancelled(request_id, said)
    body["resume"][0].update(reply)

    assert f"{run_id}.1.1" == cursor_of(alice.post("/v1/agui", json=body))

    assert [run_id] == runs_of(stored)
    assert files_before == names_of_files(connections)


def cursor_of(response: TestResponse) -> str:
    """Return the cursor of the first event of a stream."""
    sent = b""
    for piece in response.iter_encoded():
        sent += piece
        if (found := re.search(rb"\nid: (.+)\n", sent)) is not None:
            break
    response.close()
    assert found is not None
    return found[1].decode()


def test_another_interrupt_stays_open(alice: User, stored: StoredRuns) -> None:
    """A message that cancels the one before is refused while the run asks something else."""
    claim, request_id = parked(stored, alice)
    stored.answer(claim.run_id, "Rome", request_id)
    again = stored.held(claim.run_id)
    stored.park(again, new_id())

    refused = events_of(alice.post("/v1/agui", json=cancelled(request_id)))[-1]

    assert ("RUN_ERROR", "runs.thread_busy") == (refused["type"], refused["code"])
    assert [claim.run_id] == runs_of(stored)


@pytest.mark.parametrize("id_name", ["toolCallId", "tool_call_id"])
def test_replies_to_nothing_are_run_errors(alice: User, id_name: str) -> None:
    """Results and resumes that a thread does not wait for end the run with an error."""
    resume = [{"interruptId": "nothing", "status": "resolved", "payload": True}]
    call_id = "01a20e814d93779bb068b0852a03871d.call_1"
    result = {"id": "t1", "role": "tool", id_name: call_id, "content": "x"}
    for fields in ({"resume": resume}, {"messages": [SAID, result]}):
        events = events_of(alice.post("/v1/agui", json={**ASK, **fields}))
        assert ["RUN_STARTED", "RUN_ERROR"] == [event["type"] for event in events]
        assert "runs.not_waiting" == events[1]["code"]


def test_a_request_that_is_sent_again_has_the_same_run(alice: User) -> None:
    """The client's `runId` names the run: with another message it is an error."""
    alice.post("/v1/agui", json=ASK).close()
    alice.post("/v1/agui", json=ASK).close()
    assert 1 == len(alice.get("/v1/runs").json or [])
    [run] = alice.get("/v1/runs").json or []
    assert {"agui.run_id": "run-1"} == run["metadata"]
    [thread] = alice.get("/v1/threads?external_id=chat-1").json or []
    assert run["thread_id"] == thread["id"]
    other = {**ASK, "messages": [{**SAID, "content": "Good-bye"}]}
    events = events_of(alice.post("/v1/agui", json=other))
    assert "idempotency.conflict" == events[-1]["code"]
    assert "runId" in events[-1]["message"]  # and not the header, which clients cannot send


def test_a_connect_is_limited_to_what_its_caller_sees(alice: User, register: Register) -> None:
    """Cursors of other threads and orgs lead nowhere; a thread that does not exist is empty."""
    alice.post("/v1/agui", json=ASK).close()
    [run] = alice.get("/v1/runs").json or []
    cursor = {"Last-Event-ID": f"{run['run_id']}.0.1"}
    stranger = register()
    for user, thread in ((stranger, "chat-1"), (alice, "chat-2")):
        response = user.post("/v1/agui/connect", json={**ASK, "threadId": thread}, headers=cursor)
        assert (404, "runs.not_found") == error_of(response)
    for wrong in ("1", f"{run['run_id']}.0", "x.0.1"):
        headers = {"Last-Event-ID": wrong}
        assert "Last-Event-ID" in details_of(alice.post("/v1/agui/connect", ASK, headers=headers))
    types = [e["type"] for e in events_of(stranger.post("/v1/agui/connect", json=ASK))]
    assert ["RUN_STARTED", "MESSAGES_SNAPSHOT", "RUN_FINISHED"] == types


@pytest.mark.parametrize("has_result", [False, True])
def test_a_page_that_connects_again_gets_the_results_that_it_lacks(
    alice: User, stored: StoredRuns, has_result: bool
) -> None:
    """A page whose stream broke before the result of another page has its call without one."""
    tool = {"name": "locate", "description": "x"}
    alice.post("/v1/agui", json={**ASK, "tools": [tool]}).close()
    [run_id] = runs_of(stored)
    claim = stored.held(run_id)
    call = {"tool_call_id": "c", "name": "locate", "arguments": {}}
    stored.write(claim, ToolCallRequested(**call))
    asking = replace(claim, last_seq=stored.last_seq(run_id))
    stored.park(asking, new_id(), kind="tool_results", calls=[call])
    stored.set(run_id, state=RunState.QUEUED, pending_input=None, input_expires_at=None)
    again = stored.held(run_id)
    stored.write(again, ToolResult("c", "locate", "Rome", False, 1))
    stored.finish(replace(again, last_seq=stored.last_seq(run_id)))

    id_ = f"{run_id.hex}.c"
    function = {"name": "locate", "arguments": "{}"}
    calls = [{"id": id_, "type": "function", "function": function}]
    messages = [SAID, {"id": "m2", "role": "assistant", "toolCalls": calls}]
    if has_result:
        messages.append({"id": "m3", "role": "tool", "toolCallId": id_, "content": "Rome"})
    body, cursor = {**ASK, "messages": messages}, {"Last-Event-ID": f"{run_id}.1.1"}
    resumed = alice.post("/v1/agui/connect", json=body, headers=cursor)

    results = [] if has_result else ["TOOL_CALL_RESULT"]
    assert [*results, "RUN_FINISHED"] == [event["type"] for event in events_of(resumed)]


def test_a_page_that_connects_as_its_run_asks_is_asked(
    alice: User, stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request that came between the page's looks at the run and at its events is shown."""
    run_id = stored.create(UUID(alice.thread(external_id="chat-1")))
    claim = stored.held(run_id)
    last_part = agui_parts.last_part

    def after_the_request(*how: Any) -> Any:
        stored.park(claim, new_id())
        return last_part(*how)

    monkeypatch.setattr(agui_parts, "last_part", after_the_request)
    ended = events_of(alice.post("/v1/agui/connect", json=ASK))[-1]
    assert ("RUN_FINISHED", "interrupt") == (ended["type"], ended["outcome"]["type"])
