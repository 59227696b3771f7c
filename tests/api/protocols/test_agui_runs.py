"""Runs by AG-UI that call tools of the page, and what their pages send next."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select
from werkzeug.test import TestResponse

from arkloop.shared.events.types import RunError, ToolCallRequested, ToolResult
from arkloop.shared.ids import new_id
from arkloop.shared.runs import claims, overrides, run_spans, sweep
from arkloop.shared.runs.pending_calls import TOO_LATE
from arkloop.shared.runs.states import ResultSource, RunState
from arkloop.shared.storage.tables.runs import runs
from tests.api.protocols import late_calls
from tests.api.protocols.late_calls import LATE, OPEN
from tests.clients import User
from tests.stored_runs import StoredRuns

SAID = {"id": "m1", "role": "user", "content": "Hello"}
LATER = {"id": "m9", "role": "user", "content": "Never mind."}
TOOL = {"name": "locate", "description": "x"}
FAILED = RunError("worker.crashed", "The worker was lost.", retryable=True)
IMAGE = [{"type": "image", "source": {"type": "url", "value": "https://example.com/a.png"}}]


def send(
    alice: User, *messages: Any, run_id: str | None = None, query: str = "", **more: Any
) -> TestResponse:
    body = {"threadId": "chat-1", "runId": run_id or str(new_id()), "tools": [TOOL]}
    more |= {"messages": list(messages), "protocolVersion": "1.0"}
    return alice.post(f"/v1/agui{query}", json={**body, **more})


def asking(alice: User, stored: StoredRuns, *call_ids: str) -> UUID:
    """Create a run that waits for results of these calls of the page's tool."""
    send(alice, SAID).close()
    run_id = newest(stored)
    ask(stored, run_id, *call_ids)
    return run_id


def ask(stored: StoredRuns, run_id: UUID, *call_ids: str) -> None:
    """Let the run wait for results of these calls of the page's tool."""
    claim = stored.held(run_id)
    calls = [{"tool_call_id": id_, "name": "locate", "arguments": {}} for id_ in call_ids]
    for call in calls:
        with stored.connections.transaction() as tx:
            claims.begin_tool_call(tx, claim, str(call["tool_call_id"]), ResultSource.CLIENT)
        stored.write(claim, ToolCallRequested(**call))
    at_end = replace(claim, last_seq=stored.last_seq(run_id))
    stored.park(at_end, new_id(), kind="tool_results", calls=calls)


def all_runs(stored: StoredRuns) -> list[UUID]:
    """Return the runs of the org, the oldest first."""
    with stored.connections.reading() as sql:
        is_own = runs.c.org_id == stored.actor.org_id
        return list(sql.scalars(select(runs.c.id).where(is_own).order_by(runs.c.id)))


def newest(stored: StoredRuns) -> UUID:
    return all_runs(stored)[-1]


def turn(run_id: UUID, *call_ids: str) -> dict[str, Any]:
    """Return the agent's message with these calls."""
    call = {"type": "function", "function": {"name": "locate", "arguments": "{}"}}
    calls = [{"id": f"{run_id.hex}.{id_}", **call} for id_ in call_ids]
    return {"id": "m2", "role": "assistant", "toolCalls": calls}


def result(run_id: UUID, call_id: str, content: Any = "Rome") -> dict[str, Any]:
    return {
        "id": f"t-{call_id}",
        "role": "tool",
        "toolCallId": f"{run_id.hex}.{call_id}",
        "content": content,
    }


def events_of(response: TestResponse) -> list[dict[str, Any]]:
    return events_in(response.text)


def events_in(sent: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in sent.splitlines() if line[:6] == "data: "]


def types_of(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def first_cursor(response: TestResponse) -> str:
    """Return the cursor of the first event of a stream, and close it."""
    assert 200 == response.status_code, response.text
    found = re.search(rb"\nid: (.+)\n", until(response, rb"\nid: .+\n"))
    assert found is not None
    return found[1].decode()


def until(response: TestResponse, pattern: bytes) -> bytes:
    """Return what a stream has had when this was there, and close it."""
    pieces = iter(response.iter_encoded())
    sent = next(pieces)
    while re.search(pattern, sent) is None:
        sent += next(pieces)
    response.close()
    return sent


@pytest.mark.parametrize("is_pending", [False, True])
def test_a_message_that_is_sent_again_has_its_run(
    alice: User, stored: StoredRuns, is_pending: bool
) -> None:
    """A page whose response was lost sends it again with a `runId` of its own."""
    said = LATER if is_pending else SAID
    send(alice, SAID).close()
    send(alice, LATER).close()
    run_ids = all_runs(stored)

    shown = [first_cursor(send(alice, said, run_id=id_)) for id_ in ("again", "again", "other")]

    assert [f"{run_ids[is_pending]}.0.1"] * 3 == shown
    assert run_ids == all_runs(stored)


@pytest.mark.parametrize("thread", ["none", "idle", "busy"])
def test_a_message_that_is_sent_twice_at_once_has_one_run(
    alice: User, stored: StoredRuns, monkeypatch: pytest.MonkeyPatch, thread: str
) -> None:
    """Both requests have looked for it before either creates a run; only that has a span."""
    if thread == "idle":
        alice.thread(external_id="chat-1")
    elif thread == "busy":
        send(alice, LATER).close()
    spans: list[UUID] = []
    monkeypatch.setattr(run_spans, "created", lambda run_id, *_, **__: spans.append(run_id))
    together, check = Barrier(2, timeout=30), overrides.check

    def once_both_are_here(*how: Any) -> Any:
        together.wait()
        return check(*how)

    monkeypatch.setattr(overrides, "check", once_both_are_here)
    with ThreadPoolExecutor(2) as pool:
        sent = [pool.submit(lambda: first_cursor(send(alice, SAID))) for _ in range(2)]

    run_id = all_runs(stored)[-1]
    assert (2 if thread == "busy" else 1) == len(all_runs(stored))
    assert [f"{run_id}.0.1"] * 2 == [one.result() for one in sent]
    assert [run_id] == spans


def test_a_message_for_two_agents_has_a_run_of_each(alice: User, stored: StoredRuns) -> None:
    """A page sends it to both, and again to the one whose response was lost."""
    plain, scripted = "?persona_id=plain", "?persona_id=plain&route_id=scripted"
    queries = ("?persona_id=assistant", plain, plain, "?persona_id=assistant@1", scripted, "")

    shown = [first_cursor(send(alice, SAID, query=query)) for query in queries]

    [first, second] = all_runs(stored)
    assert [f"{run_id}.0.1" for run_id in (first, second, second, first, second, first)] == shown


@pytest.mark.parametrize("other", [{"persona_id": "plain@1"}, {"route_id": "other"}])
def test_a_message_without_an_agent_is_for_the_default_one(
    alice: User, stored: StoredRuns, other: dict[str, str]
) -> None:
    """The run of another agent, which has the same message, is not its answer."""
    send(alice, SAID, query="?route_id=scripted").close()
    stored.set(newest(stored), **other)

    shown = [first_cursor(send(alice, SAID)) for _ in range(2)]

    assert 2 == len(all_runs(stored))
    assert [f"{newest(stored)}.0.1"] * 2 == shown


@pytest.mark.parametrize("gone", [{"persona_id": "gone@1"}, {"route_id": "gone"}])
def test_a_message_is_sent_again_though_its_agent_is_gone(
    alice: User, stored: StoredRuns, gone: dict[str, str]
) -> None:
    """The run that the agent had then is still the answer."""
    send(alice, SAID).close()
    stored.set(run_id := newest(stored), **gone)
    query = "?" + "&".join(f"{name}={id_.partition('@')[0]}" for name, id_ in gone.items())

    assert f"{run_id}.0.1" == first_cursor(send(alice, SAID, query=query))


def test_a_message_that_is_sent_again_is_asked_again(alice: User, stored: StoredRuns) -> None:
    """The page has lost the calls of its tools, and does not mean to cancel them."""
    run_id = asking(alice, stored, "c")

    again = events_of(send(alice, SAID))

    assert ["TOOL_CALL_START", "TOOL_CALL_ARGS", "TOOL_CALL_END"] == types_of(again)[1:-1]
    assert [f"{run_id.hex}.c"] == again[-1]["outcome"]["pendingToolCallIds"]
    assert [run_id] == all_runs(stored)


def test_a_message_that_is_sent_again_has_all_of_its_run(alice: User, stored: StoredRuns) -> None:
    """What another page has replied to is shown as to one that connects, with its result."""
    run_id = asking(alice, stored, "c")
    send(alice, SAID, turn(run_id, "c"), result(run_id, "c")).close()
    claim = stored.held(run_id)
    stored.write(claim, ToolResult("c", "locate", "Rome", False, 1))

    found = events_in(until(send(alice, SAID), b"TOOL_CALL_RESULT").decode())

    assert ["RUN_STARTED", "MESSAGES_SNAPSHOT", "TOOL_CALL_RESULT"] == types_of(found)
    assert ["user", "assistant"] == [message["role"] for message in found[1]["messages"]]
    assert (f"{run_id.hex}.c", "Rome") == (found[2]["toolCallId"], found[2]["content"])


@pytest.mark.parametrize("path", ["", "/connect"])
def test_a_page_that_joins_is_asked_for_what_is_missing(
    alice: User, stored: StoredRuns, path: str
) -> None:
    """Another page has sent the first result. One that sends it too, differently, is in time for
    the second.
    """
    run_id = asking(alice, stored, "c", "d")
    said = [SAID, turn(run_id, "c", "d")]
    send(alice, *said, result(run_id, "c")).close()

    joined = events_of(send(alice, SAID, query=path))
    late = [result(run_id, "c", "Oslo"), result(run_id, "d", "Paris")]
    shown = first_cursor(send(alice, *said, *late))

    assert [f"{run_id.hex}.d"] == joined[-1]["outcome"]["pendingToolCallIds"]
    assert f"{run_id}.1.1" == shown
    assert {"c": "Rome", "d": "Paris"} == late_calls.outputs(stored, run_id)


@pytest.mark.parametrize("path", ["", "/connect"])
def test_a_page_that_joins_is_asked_for_nothing_where_the_org_is(
    alice: User, stored: StoredRuns, path: str
) -> None:
    """It follows what comes after the result of an HTTP tool, as the page that was asked does."""
    run_id = asking(alice, stored, "c")
    with stored.connections.reading() as sql:
        pending = sql.scalars(select(runs.c.pending_input).where(runs.c.id == run_id)).one()
    calls = [{"tool_call_id": "h", "name": "look_up", "arguments": {}, "result_from": "http"}]
    stored.set(run_id, pending_input={**pending, "calls": calls})

    assert f"{run_id}.1.1" == first_cursor(send(alice, SAID, query=path))


@pytest.mark.parametrize("why", ["ended", "cancelled", "other text", "cancels"])
def test_a_message_that_is_sent_anew_has_a_new_run(
    alice: User, stored: StoredRuns, why: str
) -> None:
    """An answer may be generated again, and a run that is cancelled answers nothing."""
    send(alice, SAID).close()
    [run_id] = all_runs(stored)
    claim = stored.held(run_id)
    if why == "ended":
        stored.finish(claim)
    if why == "cancelled":
        assert alice.post(f"/v1/runs/{run_id}:cancel").status_code < 300
    said = {**SAID, "content": "Good-bye"} if why == "other text" else SAID

    shown = first_cursor(
        send(alice, said, query="?on_disconnect=cancel" if why == "cancels" else "")
    )

    [_, newer] = all_runs(stored)
    assert f"{newer}.0.1" == shown


@pytest.mark.parametrize("ending", [{"error": FAILED, "state": RunState.FAILED}, {}])
def test_a_message_follows_a_run_that_ended_after_a_result(
    alice: User, stored: StoredRuns, ending: dict[str, Any]
) -> None:
    """The page keeps the result, and what it sends next ends with the message."""
    run_id = asking(alice, stored, "c")
    said = [SAID, turn(run_id, "c"), result(run_id, "c")]
    assert f"{run_id}.1.1" == first_cursor(send(alice, *said))
    stored.finish(stored.held(run_id), **ending)

    shown = first_cursor(send(alice, *said, LATER))

    assert run_id != newest(stored)
    assert (f"{newest(stored)}.0.1", "queued") == (shown, stored.state(newest(stored)))


@pytest.mark.parametrize(
    ("asked", "given", "content"),
    [
        (["c", "d"], "c", "Rome"),  # given before: the run waits for the other one
        (["c"], "c", "Rome"),  # which the run has not got
        (["c"], "c", IMAGE),
        (["c"], "s", "42"),  # of a tool of the service
    ],
)
def test_a_message_after_a_result_cancels_the_run_that_waits(
    alice: User, stored: StoredRuns, asked: list[str], given: str, content: Any
) -> None:
    """The user has moved on, whichever results of the turn the page has."""
    run_id = asking(alice, stored, *asked)
    said = [SAID, turn(run_id, *{*asked, given}), result(run_id, given, content)]
    if len(asked) > 1:
        pending = events_of(send(alice, *said))[-1]["outcome"]["pendingToolCallIds"]
        assert [f"{run_id.hex}.d"] == pending

    shown = first_cursor(send(alice, *said, LATER))

    assert f"{newest(stored)}.0.1" == shown
    assert ["cancelled", "queued"] == [stored.state(one) for one in (run_id, newest(stored))]


def test_a_page_gets_the_results_of_another_one(alice: User, stored: StoredRuns) -> None:
    """The page that sends the last result of a turn lacks those that others have sent."""
    run_id = asking(alice, stored, "c", "d")
    said = [SAID, turn(run_id, "c", "d")]
    send(alice, *said, result(run_id, "c")).close()
    last = [*said, result(run_id, "d", "Paris")]
    send(alice, *last, run_id="last").close()
    claim = stored.held(run_id)
    for call_id, output in (("c", "Rome"), ("d", "Paris")):
        stored.write(claim, ToolResult(call_id, "locate", output, False, 1))
    stored.finish(claim)

    again = send(alice, *last, run_id="last")

    results = [e for e in events_of(again) if e["type"] == "TOOL_CALL_RESULT"]
    found = {event["toolCallId"]: event["content"] for event in results}
    assert {f"{run_id.hex}.c": "Rome"} == found
    # Cursors count the same events in all streams.
    numbers = [line.rpartition(".")[2] for line in again.text.splitlines() if line[:4] == "id: "]
    assert ["1", "2"] == numbers


def test_results_that_are_sent_again_lead_to_what_followed_them(
    alice: User, stored: StoredRuns
) -> None:
    """The run asks for others meanwhile, which this page has not seen, nor a second one."""
    run_id = asking(alice, stored, "c")
    said = [SAID, turn(run_id, "c"), result(run_id, "c")]
    send(alice, *said).close()
    ask(stored, run_id, "d")

    again = events_of(send(alice, *said))

    names = ["RUN_STARTED", "TOOL_CALL_START", "TOOL_CALL_ARGS", "TOOL_CALL_END", "RUN_FINISHED"]
    assert names == types_of(again)
    assert [f"{run_id.hex}.d"] == again[-1]["outcome"]["pendingToolCallIds"]


def test_a_reply_that_is_sent_again_leads_to_the_run_that_has_asked(
    alice: User, stored: StoredRuns
) -> None:
    """The run of a message that was taken back before its turn is another one."""
    send(alice, SAID).close()
    run_id, request_id = newest(stored), new_id()
    stored.park(stored.held(run_id), request_id)
    resume = [{"interruptId": str(request_id), "status": "resolved", "payload": "Rome"}]
    stored.answer(run_id, "Rome", request_id)
    send(alice, LATER).close()
    stored.cancel(newest(stored))
    assert stored.finish(stored.held(run_id), with_followers=True)

    body = {"threadId": "chat-1", "runId": "again", "messages": [SAID], "resume": resume}
    assert f"{run_id}.1.1" == first_cursor(alice.post("/v1/agui", json=body))


@pytest.mark.parametrize("sent", [(LATE, OPEN), (OPEN,)])
@pytest.mark.parametrize("is_swept", [True, False])
def test_a_late_result_is_left_out(
    alice: User, stored: StoredRuns, sent: tuple[str, ...], is_swept: bool
) -> None:
    """The page sends it together with the others, which count, and is not asked for it again."""
    send(alice, SAID).close()
    run_id = newest(stored)
    late_calls.wait_for(stored, run_id)
    if is_swept:
        sweep.sweep(stored.connections)
    results = [result(run_id, id_) for id_ in sent]

    shown = first_cursor(send(alice, SAID, turn(run_id, LATE, OPEN), *results))

    assert f"{run_id}.1.1" == shown
    assert {LATE: TOO_LATE, OPEN: "Rome"} == late_calls.outputs(stored, run_id)
