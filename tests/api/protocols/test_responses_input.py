"""Requests for responses that have all items of a conversation, sent again each time."""

import re
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from werkzeug.test import TestResponse

from arkloop.api.protocols.responses_steering import REPLY_FIRST
from arkloop.shared.claim import Claim
from arkloop.shared.events.types import MessageDelta, RunError, ToolCallRequested
from arkloop.shared.ids import new_id
from arkloop.shared.runs import claims
from arkloop.shared.runs.states import ResultSource, RunState
from tests.api.protocols.said import earlier_of
from tests.clients import User
from tests.stored_runs import StoredRuns

#: Of every request.
MODEL = {"model": "scripted", "background": True}
FAILED = RunError("worker.crashed", "The worker was lost.", retryable=True)
TOOL = {"type": "function", "name": "t", "parameters": {"type": "object"}}


def calling(
    stored: StoredRuns, alice: User, *call_ids: str, model: str = "scripted"
) -> tuple[UUID, list[dict[str, Any]]]:
    """Create a run that waits for outputs of these calls; returns it and the items of the calls."""
    body = {**MODEL, "model": model, "input": "Hello", "tools": [TOOL]}
    made = alice.post("/v1/responses", body).json or {}
    run_id = UUID(made["id"].removeprefix("resp_"))
    ask(stored, run_id, *call_ids)
    return run_id, calls_of(alice, made["id"])


def ask(stored: StoredRuns, run_id: UUID, *call_ids: str, claim: Claim | None = None) -> None:
    """Let a queued run, or one with this claim, call the client's tool and wait for the outputs."""
    claim = claim or stored.held(run_id)
    calls = [{"tool_call_id": id_, "name": "t", "arguments": {}} for id_ in call_ids]
    for call in calls:
        with stored.connections.transaction() as tx:
            claims.begin_tool_call(tx, claim, str(call["tool_call_id"]), ResultSource.CLIENT)
        stored.write(claim, ToolCallRequested(**call))
    at_end = replace(claim, last_seq=stored.last_seq(run_id))
    stored.park(at_end, new_id(), kind="tool_results", calls=calls)


def calls_of(alice: User, response_id: str) -> list[dict[str, Any]]:
    return [item for item in output_of(alice, response_id) if "call_id" in item]


def output_of(alice: User, response_id: str) -> list[dict[str, Any]]:
    output: list[dict[str, Any]] = (alice.get(f"/v1/responses/{response_id}").json or {})["output"]
    return output


def output(call_id: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": f"{call_id}!"}


def test_a_message_after_results_whose_response_failed_is_the_next_run(
    stored: StoredRuns, alice: User
) -> None:
    """The client keeps the outputs, and sends them in front of each further message."""
    run_id, calls = calling(stored, alice, "c")
    said = [*calls, output("c")]
    message = {"role": "user", "content": "And now?"}

    def send(*items: Any) -> TestResponse:
        return alice.post("/v1/responses", {**MODEL, "input": list(items)})

    assert 200 == send(*said).status_code
    in_progress = send(*said, message)
    stored.finish(stored.held(run_id), error=FAILED, state=RunState.FAILED)
    named = {**MODEL, "previous_response_id": f"resp_{run_id.hex}_1"}
    by_id = alice.post("/v1/responses", {**named, "input": [output("c"), message]})
    assert [409, 400] == [one.status_code for one in (in_progress, by_id)]
    assert {run_id} == runs_of(alice)

    for number in (1, 2):
        made = send(*said, *[message] * number)
        assert 200 == made.status_code, made.text
        again = UUID((made.json or {})["id"].removeprefix("resp_"))
        stored.finish(stored.held(again), error=FAILED, state=RunState.FAILED)

    assert 3 == len(runs_of(alice))


def test_a_message_after_results_with_a_whole_response_is_refused(
    stored: StoredRuns, alice: User
) -> None:
    """The client has not shown the response, which the message may be about."""
    run_id, calls = calling(stored, alice, "c")
    said = [*calls, output("c")]
    alice.post("/v1/responses", {**MODEL, "input": said})
    claim = stored.held(run_id)
    stored.write(claim, MessageDelta("It is done."))
    stored.finish(claim)
    message = {"role": "user", "content": "And now?"}

    refused = alice.post("/v1/responses", {**MODEL, "input": [*said, message]})
    shown = output_of(alice, f"resp_{run_id.hex}_1")
    made = alice.post("/v1/responses", {**MODEL, "input": [*said, *shown, message]})

    assert [409, 200] == [refused.status_code, made.status_code], made.text
    error = (refused.json or {})["error"]
    assert "responses.not_newest" == error["code"]
    assert f" resp_{run_id.hex}_1, " in error["message"]


def test_a_message_after_an_approval_whose_response_failed_is_the_next_run(
    stored: StoredRuns, alice: User
) -> None:
    """The approval has been given, and is not given again."""
    run_id = stored.create(UUID(alice.thread()))
    claim = stored.held(run_id)
    call = {"tool_call_id": "c", "name": "calculator", "arguments": {}}
    stored.write(claim, ToolCallRequested(**call))
    at_end = replace(claim, last_seq=stored.last_seq(run_id))
    asked = {"kind": "tool_confirmation", "tool_call_id": "c"}
    stored.park(at_end, new_id(), **asked)
    request = output_of(alice, f"resp_{run_id.hex}")[-1]
    approval = {"type": "mcp_approval_response", "approval_request_id": request["id"]}
    said = [request, {**approval, "approve": True}]
    message = {"role": "user", "content": "And now?"}

    early = alice.post("/v1/responses", {**MODEL, "input": [*said, message]})
    given = alice.post("/v1/responses", {**MODEL, "input": said})
    stored.finish(stored.held(run_id), state=RunState.CANCELLED)
    made = alice.post("/v1/responses", {**MODEL, "input": [*said, message]})

    assert [200, 200] == [given.status_code, made.status_code], made.text
    assert (400, True) == (early.status_code, REPLY_FIRST in early.text)
    assert 2 == len(runs_of(alice))


def test_each_output_may_follow_its_call(stored: StoredRuns, alice: User) -> None:
    """Outputs of a response before it, which look alike, count no more."""
    run_id, calls = calling(stored, alice, "a", "b")

    def send(*items: dict[str, Any]) -> TestResponse:
        pairs = [one for call in items for one in (call, output(call["call_id"]))]
        return alice.post("/v1/responses", {**MODEL, "input": pairs})

    incomplete = send(calls[1])
    assert "waiting" == stored.state(run_id)
    whole = send(*calls)
    assert "queued" == stored.state(run_id), whole.text
    ask(stored, run_id, "c")
    second = send(*calls, *calls_of(alice, f"resp_{run_id.hex}_1"))

    why = f"No tool output found for function call {calls[0]['call_id']}, which the run has as a."
    assert why in incomplete.text
    assert f"resp_{run_id.hex}_2" == (second.json or {}).get("id"), second.text


@pytest.mark.parametrize("is_old", [True, False])
def test_calls_without_ids_are_those_of_the_response_that_is_named(
    stored: StoredRuns, alice: User, is_old: bool
) -> None:
    """Clients that leave out ids send the call in front of its output."""
    run_id, [call] = calling(stored, alice, "c")
    del call["id"]
    if is_old:  # from an earlier release
        call["call_id"] = "c"
    said = [call, output(call["call_id"])]

    def send(*items: dict[str, Any]) -> TestResponse:
        named = {**MODEL, "previous_response_id": f"resp_{run_id.hex}"}
        return alice.post("/v1/responses", {**named, "input": list(items)})

    incomplete = send(call)
    made = send(*said)

    assert 400 == incomplete.status_code
    assert f"resp_{run_id.hex}_1" == (made.json or {}).get("id"), made.text
    assert "queued" == stored.state(run_id)


def without_ids(*items: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the items as the provider of the AI SDK sends them again."""
    return [
        {name: value for name, value in item.items() if name not in ("id", "status")}
        if item["type"] == "function_call"
        else {"type": "item_reference", "id": item["id"]}
        for item in items
    ]


def test_calls_name_their_run_without_ids_of_items(stored: StoredRuns, alice: User) -> None:
    """They are alone, or behind a reference to the text before them, and of several steps."""
    made = alice.post("/v1/responses", {**MODEL, "input": "Hello", "tools": [TOOL]}).json or {}
    run_id = UUID(made["id"].removeprefix("resp_"))
    stored.write(first := stored.held(run_id), MessageDelta("Let me see."))
    ask(stored, run_id, "a", "b", claim=first)
    items: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]

    for number, message in enumerate([1, 0]):
        shown = without_ids(*output_of(alice, f"resp_{run_id.hex}{'_1' * number}"))
        calls = shown[message:]
        items += [*shown, *(output(call["call_id"]) for call in calls)]
        sent = alice.post("/v1/responses", {**MODEL, "input": items})
        assert (200, f"resp_{run_id.hex}_{number + 1}") == (
            sent.status_code,
            (sent.json or {}).get("id"),
        ), sent.text
        assert "queued" == stored.state(run_id)
        if number == 0:
            ask(stored, run_id, "c")
    assert {run_id} == runs_of(alice)


def test_calls_of_different_runs_have_different_ids(stored: StoredRuns, alice: User) -> None:
    """Vendors may number the calls of each run anew; sessions keep one call of each `call_id`."""
    run_id, [first] = calling(stored, alice, "functions.t:0")
    items = [{"role": "user", "content": "Hello"}, first, output(first["call_id"])]
    alice.post("/v1/responses", {**MODEL, "input": items})
    stored.write(claim := stored.held(run_id), MessageDelta("It is done."))
    stored.finish(claim)
    items += [*output_of(alice, f"resp_{run_id.hex}_1"), {"role": "user", "content": "And now?"}]
    made = alice.post("/v1/responses", {**MODEL, "input": items, "tools": [TOOL]}).json or {}
    ask(stored, UUID(made["id"].removeprefix("resp_")), "functions.t:0")
    [second] = calls_of(alice, made["id"])

    given = alice.post(
        "/v1/responses", {**MODEL, "input": [*items, second, output(second["call_id"])]}
    )

    assert first["call_id"] != second["call_id"]
    assert (200, f"{made['id']}_1") == (given.status_code, (given.json or {}).get("id")), given.text


@pytest.mark.parametrize("names_run", [False, True])
def test_items_of_a_later_response_than_the_named_one_count(
    stored: StoredRuns, alice: User, names_run: bool
) -> None:
    """A loop of the AI SDK names the same response in each step, and its own steps are items."""
    before = stored.create(UUID(alice.thread()))
    stored.finish(stored.held(before))
    named = {**MODEL, "previous_response_id": f"resp_{before.hex}", "tools": [TOOL]}
    question = {"role": "user", "content": "And now?"}
    made = alice.post("/v1/responses", {**named, "input": [question]}).json or {}
    run_id = UUID(made["id"].removeprefix("resp_"))
    items: list[dict[str, Any]] = [question]
    if names_run:
        named["previous_response_id"] = made["id"]

    for number, call_id in enumerate("cd"):
        ask(stored, run_id, call_id)
        [call] = without_ids(*calls_of(alice, f"resp_{run_id.hex}{'_1' * number}"))
        items += [call, output(call["call_id"])]
        sent = alice.post("/v1/responses", {**named, "input": items})
        assert (200, f"resp_{run_id.hex}_{number + 1}") == (
            sent.status_code,
            (sent.json or {}).get("id"),
        ), sent.text

    assert {before, run_id} == runs_of(alice)


def test_items_of_another_conversation_than_that_of_the_named_response_do_not_count(
    stored: StoredRuns, alice: User
) -> None:
    """Outputs never reach a run that the named response has nothing to do with."""
    before = stored.create(UUID(alice.thread()))
    stored.finish(stored.held(before))
    run_id, [call] = calling(stored, alice, "c")
    items = [call, output(call["call_id"])]

    sent = alice.post(
        "/v1/responses", {**MODEL, "previous_response_id": f"resp_{before.hex}", "input": items}
    )

    assert (400, "waiting") == (sent.status_code, stored.state(run_id))


def test_outputs_by_the_ids_of_the_run_are_taken(stored: StoredRuns, alice: User) -> None:
    """Items that an earlier release has sent have them, and some of the items may be newer."""
    run_id, [a, b] = calling(stored, alice, "a", "b")
    pairs = [{**a, "call_id": "a"}, output("a"), b, output(b["call_id"])]

    sent = alice.post("/v1/responses", {**MODEL, "input": pairs})
    ask(stored, run_id, "c")
    newest = f"resp_{run_id.hex}_1"
    named = {**MODEL, "previous_response_id": newest, "input": [output("c")]}
    by_id = alice.post("/v1/responses", named)

    assert [(200, newest), (200, f"resp_{run_id.hex}_2")] == [
        (one.status_code, (one.json or {}).get("id")) for one in (sent, by_id)
    ], (sent.text, by_id.text)


def test_ids_of_calls_are_short(stored: StoredRuns, alice: User) -> None:
    """OpenAI and other vendors, who may get the conversation, limit their length and characters."""
    _, [call] = calling(stored, alice, f"functions.t:{'0' * 200}")

    assert re.fullmatch("[a-zA-Z0-9_-]{1,64}", call["call_id"])


def elsewhere(*items: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a conversation of another service: its question, these items, and a new message."""
    asked = {"role": "user", "content": "Weather?"}
    return [asked, *items, {"role": "user", "content": "Hello"}]


CALL = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": '{"in": "Rome"}'}


def test_calls_of_a_conversation_elsewhere_are_lines_of_its_transcript(alice: User) -> None:
    """Each output is behind its call, with ids of items or without; reasoning is left out."""
    items = elsewhere(
        {"type": "reasoning", "id": "rs_68af", "summary": [], "encrypted_content": "x"},
        {**CALL, "id": "fc_68af", "status": "completed"},
        {**CALL, "call_id": "d"},
        output("c"),
        {"type": "mcp_call", "id": "mcp_1", "name": "news", "arguments": "{}", "output": "None."},
        {**output("d"), "output": [{"type": "input_text", "text": "Rain."}]},
        {"role": "assistant", "content": "Sunny."},
    )
    made = alice.post("/v1/responses", {**MODEL, "input": items})

    called = 'Called weather({"in": "Rome"}): '
    expected = [f"{called}c!", f"{called}Rain.", "Called news({}): None.", "Assistant: Sunny."]
    assert ["User: Weather?", *expected] == earlier_of(alice, made)


def test_calls_of_mcp_elsewhere_are_lines_of_the_transcript(alice: User) -> None:
    """Lists of tools and approvals are left out; an error is there in place of the output."""
    news = {"type": "mcp_call", "server_label": "d", "name": "news", "arguments": "{}"}
    asked = {**news, "type": "mcp_approval_request", "id": "mcpr_1"}
    approved = {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True}
    items = elsewhere(
        {"type": "mcp_list_tools", "id": "mcpl_1", "server_label": "d", "tools": []},
        *(asked, approved),
        {**news, "id": "mcp_1", "output": "Rain.", "error": None},
        {**news, "id": "mcp_2", "output": None, "error": "HTTP 500"},
        {**news, "id": "mcp_3", "output": None, "error": {"code": 500}},
    )
    made = alice.post("/v1/responses", {**MODEL, "input": items})
    open_one = alice.post("/v1/responses", {**MODEL, "input": [items[0], asked, approved]})

    ends = ("Rain.", "error: HTTP 500", 'error: {"code": 500}')
    lines = [f"Called news({{}}): {end}" for end in ends]
    assert ["User: Weather?", *lines] == earlier_of(alice, made)
    assert (400, "input[1].id") == (
        open_one.status_code,
        (open_one.json or {})["error"]["param"],
    )


def test_files_of_a_conversation_elsewhere_are_mentioned(alice: User) -> None:
    """Their outputs are not read: they have a note in place of each file."""
    parts = [
        {"type": "input_text", "text": "A map:"},
        {"type": "input_image", "image_url": "https://example.com/x.png"},
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,A"},
    ]
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    items = elsewhere(CALL, {**output("c"), "output": parts}, refusal)
    made = alice.post("/v1/responses", {**MODEL, "input": items})

    notes = "[image: https://example.com/x.png]\n[image: without a name]\n[file: a.pdf]"
    [_, called, refused] = earlier_of(alice, made)
    assert called.endswith(f": A map:\n{notes}")
    assert "Assistant: No." == refused


def test_what_no_conversation_elsewhere_can_have_is_refused(alice: User) -> None:
    """The error names an output that nothing waits for, a reference, or a call without name."""
    reference = {"type": "item_reference", "id": "msg_68af"}
    cases: dict[str, list[dict[str, Any]]] = {
        "input[1].id": elsewhere(CALL, output("c"))[:-1],
        "input[2].id": elsewhere(CALL, reference),
        "input[1]": elsewhere({**CALL, "name": None}),
        "input": elsewhere({"role": "assistant", "content": 270_000 * "x"}),
    }
    for place, items in cases.items():
        refused = alice.post("/v1/responses", {**MODEL, "input": items})
        assert (400, place) == (refused.status_code, (refused.json or {})["error"]["param"])

    instructions = {**MODEL, "input": cases["input"][-1:], "instructions": 70_000 * "x"}
    assert (
        "instructions" == (alice.post("/v1/responses", instructions).json or {})["error"]["param"]
    )


def runs_of(user: User) -> set[UUID]:
    return {UUID(run["run_id"]) for run in user.get("/v1/runs").json or []}
