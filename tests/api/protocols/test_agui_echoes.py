"""Pages of AG-UI that repeat replies to approvals as results, as CopilotKit does."""

import json
import re
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from werkzeug.test import TestResponse

from arkloop.shared.claim import Claim
from arkloop.shared.events.types import ToolCallRequested, ToolResult
from arkloop.shared.ids import new_id
from arkloop.shared.runs import claims
from arkloop.shared.runs.states import ResultSource
from tests.api.protocols.test_agui_runs import (
    LATER,
    SAID,
    events_of,
    newest,
    result,
    send,
    turn,
    types_of,
)
from tests.api.protocols.test_agui_runs import asking as calling
from tests.api.protocols.test_agui_runs_resumed import early_results
from tests.clients import User
from tests.query_plans import noted
from tests.stored_runs import StoredRuns

YES = {"approved": True}
EDITED = {**YES, "editedArgs": {"exact": True}}
NO = {"approved": False, "reason": "No."}
CANCELLED = {"status": "cancelled"}


def asking(alice: User, stored: StoredRuns, payload: Any) -> tuple[UUID, list[dict[str, Any]]]:
    """Create a run that has asked to approve the call `c` of the page; returns it and a reply."""
    send(alice, SAID).close()
    run_id, request_id = newest(stored), new_id()
    claim = stored.held(run_id)
    stored.write(claim, ToolCallRequested("c", "locate", {}))
    asked = replace(claim, last_seq=stored.last_seq(run_id))
    stored.park(asked, request_id, kind="tool_confirmation", tool_call_id="c")
    answer = CANCELLED if payload == CANCELLED else {"status": "resolved", "payload": payload}
    return run_id, [{"interruptId": str(request_id), **answer}]


def executing(stored: StoredRuns, run_id: UUID) -> Claim:
    """Let a worker have the run again, which begins its call."""
    claim = replace(stored.held(run_id), last_seq=stored.last_seq(run_id))
    with stored.connections.transaction() as tx:
        claims.begin_tool_call(tx, claim, "c", ResultSource.CLIENT)
    return claim


def items(run_id: UUID, *results: Any) -> list[dict[str, Any]]:
    """Return the messages of a page that has these results of the call."""
    sent = [
        one if isinstance(one, str) else json.dumps(one, separators=(",", ":")) for one in results
    ]
    return [SAID, turn(run_id, "c"), *(result(run_id, "c", one) for one in sent)]


@pytest.mark.parametrize("payload", [YES, EDITED, {**YES, "by": "Ann"}, CANCELLED])
@pytest.mark.parametrize(
    ("before", "behind", "kept"),
    [
        (["Rome"], [], "Rome"),
        ([], ["Rome"], "Rome"),
        (["Rome"], ["Bern"], "Rome"),
        ([{"approved": False}], [], '{"approved":false}'),
        ([], [], None),
    ],
)
def test_the_reply_is_no_early_result(
    alice: User,
    stored: StoredRuns,
    payload: Any,
    before: list[Any],
    behind: list[Any],
    kept: str | None,
) -> None:
    """The first one of the other messages is the result of the call, if there is any."""
    run_id, resume = asking(alice, stored, payload)

    send(alice, *items(run_id, *before, payload, *behind), resume=resume).close()

    assert ({} if kept is None else {"c": (kept, False)}) == early_results(stored, run_id)


@pytest.mark.parametrize(
    ("asked", "payload"),
    [({}, "Oslo"), ({"kind": "tool_confirmation", "tool_call_id": "s"}, NO)],
)
@pytest.mark.parametrize("earlier", [YES, EDITED])
def test_the_reply_is_no_result_beside_the_next_one(
    alice: User, stored: StoredRuns, asked: dict[str, Any], payload: Any, earlier: Any
) -> None:
    """The run asks twice before it makes the calls of one turn."""
    run_id, resume = asking(alice, stored, earlier)
    send(alice, *items(run_id, earlier), resume=resume).close()
    claim = replace(stored.held(run_id), last_seq=stored.last_seq(run_id))
    stored.park(claim, request_id := new_id(), **asked)

    resume = [{"interruptId": str(request_id), "status": "resolved", "payload": payload}]
    for _ in range(2):
        send(alice, *items(run_id, earlier, "Rome"), resume=resume).close()
        assert {"c": ("Rome", False)} == early_results(stored, run_id)


def test_the_replies_to_a_run_are_looked_up_once(alice: User, stored: StoredRuns) -> None:
    """A request has those of all calls that were approved before, and is not read twice for it."""
    run_id, resume = asking(alice, stored, YES)
    found = [SAID, turn(run_id, *(ids := [f"c{number}" for number in range(4)]))]
    for id_ in ids:
        send(alice, *found, resume=resume).close()
        claim = replace(stored.held(run_id), last_seq=stored.last_seq(run_id))
        stored.park(claim, request_id := new_id(), kind="tool_confirmation", tool_call_id=id_)
        resume = [{"interruptId": str(request_id), "status": "resolved", "payload": YES}]
        found.append(result(run_id, id_, json.dumps(YES)))

    with noted(stored.connections) as statements:
        send(alice, *found, resume=resume).close()

    looked_up = [sql for sql, _ in statements if "inputs.content" in sql]
    assert 2 == len(looked_up)  # one looks for a reply to the open interrupt


@pytest.mark.parametrize("payload", [YES, {**YES, "editedArgs": None}, EDITED])
def test_the_reply_is_no_later_result(alice: User, stored: StoredRuns, payload: Any) -> None:
    """The page has it in all its later requests, among the results or alone."""
    run_id, resume = asking(alice, stored, payload)
    send(alice, *items(run_id, payload), resume=resume).close()
    calls = [{"tool_call_id": "c", "name": "locate", "arguments": {}}]
    stored.park(executing(stored, run_id), new_id(), kind="tool_results", calls=calls)

    send(alice, *items(run_id, payload)).close()
    assert "waiting" == stored.state(run_id)
    ended = events_of(send(alice, *items(run_id, payload)))[-1]
    assert [f"{run_id.hex}.c"] == ended["outcome"]["pendingToolCallIds"]

    send(alice, *items(run_id, "Bern", "Rome", payload)).close()
    assert "queued" == stored.state(run_id)
    send(alice, *items(run_id, payload, "Rome")).close()  # the same result
    refused = events_of(send(alice, *items(run_id, payload, "Bern")))[-1]
    assert ("RUN_ERROR", "tool_results.conflict") == (refused["type"], refused["code"])


def test_another_decision_is_a_result(alice: User, stored: StoredRuns) -> None:
    """A tool of the page may return what looks like a reply."""
    run_id, resume = asking(alice, stored, YES)
    send(alice, *items(run_id), resume=resume).close()
    calls = [{"tool_call_id": "c", "name": "locate", "arguments": {}}]
    stored.park(executing(stored, run_id), new_id(), kind="tool_results", calls=calls)

    send(alice, *items(run_id, NO)).close()

    assert "queued" == stored.state(run_id)


@pytest.mark.parametrize("payload", [YES, NO, CANCELLED])
def test_a_page_that_has_repeated_its_reply_is_shown_the_result(
    alice: User, stored: StoredRuns, payload: Any
) -> None:
    """It is not shown the one that it has sent itself, which another one replaces."""
    run_id, resume = asking(alice, stored, payload)
    send(alice, *items(run_id, "Rome", payload), resume=resume).close()
    claim = executing(stored, run_id)
    output = "Rome" if payload == YES else "The call was denied."
    stored.write(claim, ToolResult("c", "locate", output, payload != YES, 1))
    stored.finish(replace(claim, last_seq=stored.last_seq(run_id)))

    found = [
        [
            one
            for e in events_of(send(alice, *sent, resume=resume))
            for one in e.get("messages", [e])
        ]
        for sent in (items(run_id, "Rome", payload), items(run_id, payload))
    ]
    id_ = f"{run_id.hex}.c.result"
    shown = [
        [one["content"] for one in each if id_ in (one.get("messageId"), one.get("id"))]
        for each in found
    ]

    assert [[] if payload == YES else [output], [output]] == shown


@pytest.mark.parametrize("payload", [YES, EDITED, NO, CANCELLED])
@pytest.mark.parametrize("before", [["Rome"], []])
def test_the_reply_is_taken_back_from_a_page_that_has_repeated_it(
    alice: User, stored: StoredRuns, payload: Any, before: list[str]
) -> None:
    """CopilotKit shows the first message under a call as its result."""
    run_id, resume = asking(alice, stored, payload)
    [*others, repeated] = items(run_id, *before, payload)
    streams = [send(alice, *others, repeated, resume=resume, run_id="first")]
    stored.finish(executing(stored, run_id))
    streams += [
        send(alice, *others, repeated, resume=resume, run_id="first"),
        send(alice, *others, resume=resume),
    ]

    *corrected, plain = map(events_of, streams)
    for started, snapshot, *rest in corrected:
        assert ["RUN_STARTED", "MESSAGES_SNAPSHOT"] == [started["type"], snapshot["type"]]
        assert [one["content"] for one in others if "content" in one] == [
            one["content"] for one in snapshot["messages"] if "content" in one
        ]
        assert types_of(plain[1:]) == types_of(rest)
    # Cursors count the same events in all streams.
    ids = [re.findall("^id: .*", one.text, re.M) for one in streams]
    assert ids[0] == ids[1] == ids[2]


def test_a_cancelled_reply_is_taken_back_beside_a_new_message(
    alice: User, stored: StoredRuns
) -> None:
    """The response is the run of the message, also when the request is sent again."""
    run_id, resume = asking(alice, stored, CANCELLED)
    sent = (*items(run_id, CANCELLED), LATER)
    streams = [send(alice, *sent, resume=resume, run_id="first") for _ in range(2)]
    stored.finish(stored.held(newest(stored)))

    for started, snapshot, *_ in map(events_of, streams):
        assert ["RUN_STARTED", "MESSAGES_SNAPSHOT"] == [started["type"], snapshot["type"]]
        assert ["m1", "m2", "m9"] == [one["id"] for one in snapshot["messages"]]


@pytest.mark.parametrize("payload", [CANCELLED, None])
def test_a_result_that_does_not_count_is_taken_back_beside_a_new_message(
    alice: User, stored: StoredRuns, payload: Any
) -> None:
    """The run is over before it makes the call; results of calls that it has made stay.

    The response is the same when the request is sent again, with the same or with another `runId`.
    """
    send(alice, SAID).close()
    claim = stored.held(run_id := newest(stored))
    for call_id in ("c", "d"):
        stored.write(claim, ToolCallRequested(call_id, "locate", {}))
    stored.write(claim, ToolResult("d", "locate", "Oslo", False, 1))
    asked = replace(claim, last_seq=stored.last_seq(run_id))
    stored.park(asked, request_id := new_id(), kind="tool_confirmation", tool_call_id="c")
    resume = [{"interruptId": str(request_id), **CANCELLED}]
    echo = [] if payload is None else [result(run_id, "c", json.dumps(payload))]
    results = result(run_id, "d", "Oslo"), result(run_id, "c", "Rome"), *echo
    sent = (SAID, turn(run_id, "c", "d"), *results, LATER)

    streams = [
        send(alice, *sent, resume=resume, run_id=name) for name in ("first", "first", "again")
    ]
    stored.finish(stored.held(newest(stored)))

    for started, snapshot, *_ in map(events_of, streams):
        assert ["RUN_STARTED", "MESSAGES_SNAPSHOT"] == [started["type"], snapshot["type"]]
        assert ["m1", "m2", "t-d", "m9"] == [one["id"] for one in snapshot["messages"]]


def page_with_results(run_id: UUID, *said: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the messages of a page that has the result of the first of two calls."""
    return [SAID, turn(run_id, "c", "d"), result(run_id, "c", "Rome"), *said]


def shown_results(response: TestResponse) -> list[list[str]]:
    """Return the ids of the results in each snapshot of a stream."""
    shown = [event["messages"] for event in events_of(response) if "messages" in event]
    return [[one["id"] for one in each if one["role"] == "tool"] for each in shown]


@pytest.mark.parametrize("is_given", [False, True])
def test_a_result_is_taken_back_if_a_message_cancels_the_wait_for_others(
    alice: User, stored: StoredRuns, is_given: bool
) -> None:
    """The run ends before it has the result, also if the page has sent it alone before."""
    run_id = calling(alice, stored, "c", "d")
    if is_given:
        send(alice, *page_with_results(run_id)).close()

    streams = [send(alice, *page_with_results(run_id, LATER), run_id=id_) for id_ in "aab"]
    stored.finish(stored.held(newest(stored)))

    assert "cancelled" == stored.state(run_id)
    assert [[[]]] * 3 == [shown_results(one) for one in streams]


def test_a_result_that_a_run_keeps_is_not_taken_back(alice: User, stored: StoredRuns) -> None:
    """The message waits for the run, which has the result but has not made its next step."""
    run_id = calling(alice, stored, "c")
    send(alice, *items(run_id, "Rome")).close()
    stream = send(alice, *items(run_id, "Rome"), LATER)
    stored.finish(stored.held(run_id), with_followers=True)
    stored.finish(stored.held(newest(stored)))

    assert [] == shown_results(stream)


@pytest.mark.parametrize(("after", "shown"), [(1, [[]]), (2, [])])
def test_a_cut_stream_takes_a_result_back_that_does_not_count(
    alice: User, stored: StoredRuns, after: int, shown: list[list[str]]
) -> None:
    """The stream of the message that has cancelled the run was cut, perhaps behind the snapshot."""
    run_id, resume = asking(alice, stored, CANCELLED)
    sent = [*items(run_id, "Rome"), LATER]
    send(alice, *sent, resume=resume).close()
    stored.finish(stored.held(new := newest(stored)))

    body = {"threadId": "chat-1", "runId": "c", "messages": sent, "protocolVersion": "1.0"}
    header = {"Last-Event-ID": f"{new}.0.{after}"}
    assert shown == shown_results(alice.post("/v1/agui/connect", json=body, headers=header))


@pytest.mark.parametrize("has_ended", [True, False])
def test_a_result_beside_a_cancel_that_is_too_late_is_taken_back(
    alice: User, stored: StoredRuns, has_ended: bool
) -> None:
    """The run was cancelled before, and another page had one; or it had another reply."""
    run_id, resume = asking(alice, stored, CANCELLED)
    if has_ended:
        stored.cancel(run_id)
        send(alice, {**SAID, "id": "other", "content": "Of another page"}).close()
        stored.finish(stored.held(newest(stored)))
    else:
        stored.answer(run_id, "yes")
    stream = send(alice, *items(run_id, "Rome", CANCELLED), LATER, resume=resume)
    if not has_ended:
        stored.finish(stored.held(run_id), with_followers=True)
    stored.finish(stored.held(newest(stored)))

    assert [[]] == shown_results(stream)


def test_a_reply_is_taken_back_after_a_lost_response(alice: User, stored: StoredRuns) -> None:
    """Beside the next message, where results are missing, and behind the start of a cut stream."""
    run_id, resume = asking(alice, stored, YES)
    send(alice, *(sent := items(run_id, YES)), resume=resume).close()
    calls = [{"tool_call_id": "c", "name": "locate", "arguments": {}}]
    stored.park(executing(stored, run_id), new_id(), kind="tool_results", calls=calls)
    responses = [send(alice, *sent)]
    send(alice, *sent, result(run_id, "c")).close()
    stored.finish(replace(stored.held(run_id), last_seq=stored.last_seq(run_id)))
    body = {"threadId": "chat-1", "runId": "c", "messages": sent, "protocolVersion": "1.0"}
    for after in (1, 2):
        header = {"Last-Event-ID": f"{run_id}.1.{after}"}
        responses.append(alice.post("/v1/agui/connect", json=body, headers=header))
    responses.append(send(alice, *sent, LATER))
    stored.finish(stored.held(newest(stored)))

    assert [
        ["RUN_STARTED", "MESSAGES_SNAPSHOT", "RUN_FINISHED"],
        ["MESSAGES_SNAPSHOT", "RUN_FINISHED"],
        [],
        ["RUN_STARTED", "MESSAGES_SNAPSHOT", "RUN_FINISHED"],
    ] == [types_of(events_of(one)) for one in responses]
    snapshots = [e["messages"] for one in responses for e in events_of(one) if "messages" in e]
    assert [[], [], []] == [[m for m in one if m["role"] == "tool"] for one in snapshots]


def test_a_cut_stream_takes_a_denied_result_back_alone(alice: User, stored: StoredRuns) -> None:
    """The page keeps its other early results, which it is not sent again."""
    run_id, resume = asking(alice, stored, NO)
    results = result(run_id, "c"), result(run_id, "d", "Oslo")
    sent = [SAID, turn(run_id, "c", "d"), *results]
    send(alice, *sent, resume=resume).close()
    claim = replace(stored.held(run_id), last_seq=stored.last_seq(run_id))
    for call_id, output, is_error in (("c", "Denied.", True), ("d", "Oslo", False)):
        stored.write(claim, ToolResult(call_id, "locate", output, is_error, 1))
    stored.finish(replace(claim, last_seq=stored.last_seq(run_id)))

    body = {"threadId": "chat-1", "runId": "c", "messages": sent, "protocolVersion": "1.0"}
    header = {"Last-Event-ID": f"{run_id}.1.1"}
    snapshot, _ = events_of(alice.post("/v1/agui/connect", json=body, headers=header))

    found = [m["content"] for m in snapshot["messages"] if m["role"] == "tool"]
    assert ["Denied.", "Oslo"] == sorted(found)
