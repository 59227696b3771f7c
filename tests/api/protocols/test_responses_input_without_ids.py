"""Requests for responses whose calls name a run, and whose texts name none."""

from base64 import b64encode
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from werkzeug.test import TestResponse

from arkloop.shared.events.types import MessageDelta, ToolCallRequested
from arkloop.shared.ids import new_id
from arkloop.shared.runs.states import RunState
from tests.api.protocols.said import earlier_of, message_of
from tests.api.protocols.test_responses_input import (
    FAILED,
    MODEL,
    ask,
    calling,
    calls_of,
    output,
    output_of,
    runs_of,
    without_ids,
)
from tests.clients import Register, User
from tests.contents import png
from tests.end_users import end_user
from tests.stored_runs import StoredRuns

QUESTION = {"role": "user", "content": "Hello"}
TEXT = {"role": "assistant", "content": "It is done."}
MESSAGE = {"role": "user", "content": "And now?"}


def looped(stored: StoredRuns, alice: User, call_id: str = "c") -> tuple[UUID, list[Any]]:
    """Create a run that has called a function and ended; returns it and the items of a client."""
    run_id, calls = calling(stored, alice, call_id)
    [call] = without_ids(*calls)
    items = [QUESTION, call, output(call["call_id"])]
    given = alice.post("/v1/responses", {**MODEL, "input": items})
    assert f"resp_{run_id.hex}_1" == (given.json or {}).get("id"), given.text
    stored.write(claim := stored.held(run_id), MessageDelta("It is done."))
    stored.finish(claim)
    return run_id, [*items, TEXT]


@pytest.mark.parametrize("is_named", [False, True])
def test_texts_without_ids_behind_calls_make_a_transcript(
    stored: StoredRuns, alice: User, is_named: bool
) -> None:
    """The AI SDK sends them so for models named like those of OpenAI that reason."""
    run_id, items = looped(stored, alice)
    named = {"previous_response_id": f"resp_{run_id.hex}_1"} if is_named else {}
    made = alice.post("/v1/responses", {**MODEL, **named, "input": [*items, MESSAGE]})
    call_id = items[1]["call_id"]
    lines = ["User: Hello", f"Called t({{}}): {call_id}!", "Assistant: It is done."]
    assert lines == earlier_of(alice, made)

    further = [*items, MESSAGE, TEXT, {"role": "user", "content": "Why?"}]
    again = alice.post("/v1/responses", {**MODEL, "input": further})
    assert 200 == again.status_code, again.text


@pytest.mark.parametrize(
    ("kinds", "lines"),
    [
        (["rs"], []),
        (["fc"], ["Called t({}): c!"]),
        (["rs", "fc"], ["Called t({}): c!"]),
        (["mcp"], ["Called u({}): 42"]),
    ],
)
def test_texts_without_ids_behind_other_items_with_ids_make_a_transcript(
    stored: StoredRuns, alice: User, kinds: list[str], lines: list[str]
) -> None:
    """Many clients keep the ids of reasoning and calls, and none of texts."""
    run_id = stored.create(UUID(alice.thread()))
    stored.write(claim := stored.held(run_id), MessageDelta("It is done."))
    stored.finish(claim)
    call = {"call_id": "c", "name": "t", "arguments": "{}"}
    own = {"server_label": "arkloop", "name": "u", "arguments": "{}", "output": "42"}
    shown: dict[str, list[dict[str, Any]]] = {
        "rs": [{"type": "reasoning", "id": f"rs_{run_id.hex}_2", "summary": []}],
        "fc": [{"type": "function_call", "id": f"fc_{run_id.hex}_3", **call}, output("c")],
        "mcp": [{"type": "mcp_call", "id": f"mcp_{run_id.hex}_4", **own}],
    }
    items = [QUESTION, *(item for kind in kinds for item in shown[kind]), TEXT, MESSAGE]

    made = alice.post("/v1/responses", {**MODEL, "input": items})

    assert ["User: Hello", *lines, "Assistant: It is done."] == earlier_of(alice, made)


@pytest.mark.parametrize("has_ids", [True, False])
def test_a_text_behind_the_calls_of_its_turn_belongs_to_it(
    stored: StoredRuns, alice: User, has_ids: bool
) -> None:
    """Haystack sends the text of a turn last; the outputs are those of the calls before it."""
    run_id, calls = calling(stored, alice, "a", "b")
    shown = calls if has_ids else without_ids(*calls)
    unanswered = [QUESTION, *shown, TEXT]
    items = [*unanswered, *(output(call["call_id"]) for call in calls)]

    given = alice.post("/v1/responses", {**MODEL, "input": items})
    assert f"resp_{run_id.hex}_1" == (given.json or {}).get("id"), given.text
    stored.finish(stored.held(run_id))
    made = alice.post("/v1/responses", {**MODEL, "input": [*items, TEXT, MESSAGE]})
    moved_on = alice.post("/v1/responses", {**MODEL, "input": [*unanswered, MESSAGE]})

    said = "Assistant: It is done."
    ids = [call["call_id"] for call in calls]
    called = [f"Called t({{}}): {id_}!" for id_ in ids]
    assert ["User: Hello", *called, said, said] == earlier_of(alice, made)
    assert ["User: Hello", *2 * ["Called t({})"], said] == earlier_of(alice, moved_on)


def test_a_text_behind_a_request_for_approval_belongs_to_it(
    stored: StoredRuns, alice: User
) -> None:
    """The approval is for the request before the text."""
    run_id = stored.create(UUID(alice.thread()))
    claim = stored.held(run_id)
    stored.write(claim, ToolCallRequested("c", "calculator", {}))
    at_end = replace(claim, last_seq=stored.last_seq(run_id))
    stored.park(at_end, new_id(), kind="tool_confirmation", tool_call_id="c")
    [*_, request] = output_of(alice, f"resp_{run_id.hex}")
    reply = {"type": "mcp_approval_response", "approval_request_id": request["id"]}
    items = [QUESTION, request, TEXT, {**reply, "approve": True}]

    given = alice.post("/v1/responses", {**MODEL, "input": items})

    assert f"resp_{run_id.hex}_1" == (given.json or {}).get("id"), given.text


@pytest.mark.parametrize("is_reference", [False, True])
def test_a_text_without_an_id_behind_one_with_an_id_is_refused(
    stored: StoredRuns, alice: User, is_reference: bool
) -> None:
    """A client that sends the ids of texts has this one from elsewhere."""
    run_id = stored.create(UUID(alice.thread()))
    stored.write(claim := stored.held(run_id), MessageDelta("It is done."))
    stored.finish(claim)
    text: dict[str, Any] = {"type": "item_reference"} if is_reference else TEXT
    text = {**text, "id": f"msg_{run_id.hex}_2"}

    refused = alice.post("/v1/responses", {**MODEL, "input": [QUESTION, text, TEXT, MESSAGE]})

    assert (400, "input[2].id") == (refused.status_code, (refused.json or {})["error"]["param"])


def test_a_loop_behind_texts_without_ids_continues_its_run(stored: StoredRuns, alice: User) -> None:
    """Its calls are the last items that name a run."""
    _, items = looped(stored, alice)
    tools = [{"type": "function", "name": "t", "parameters": {"type": "object"}}]
    body = {**MODEL, "tools": tools, "input": [*items, MESSAGE]}
    made = alice.post("/v1/responses", body).json or {}
    ask(stored, UUID(made["id"].removeprefix("resp_")), "c")
    [call] = without_ids(*calls_of(alice, made["id"]))

    looping = [*items, MESSAGE, call, output(call["call_id"])]
    given = alice.post("/v1/responses", {**MODEL, "input": looping})

    assert f"{made['id']}_1" == (given.json or {}).get("id"), given.text


def test_calls_of_a_run_that_does_not_exist_make_a_transcript(
    stored: StoredRuns, alice: User
) -> None:
    """The run may be one of another installation, or of a thread that was deleted."""
    call_id = f"call_{new_id().hex}_5"
    call = {"type": "function_call", "call_id": call_id, "name": "t", "arguments": "{}"}
    items = [picture(), call, output(call_id)]
    before = stored.create(UUID(alice.thread()))
    stored.finish(stored.held(before))

    for named in ({}, {"previous_response_id": f"resp_{before.hex}"}):
        made = alice.post("/v1/responses", {**MODEL, **named, "input": [*items, MESSAGE]})
        assert ["User: [image]", f"Called t({{}}): {call_id}!"] == earlier_of(alice, made)
    waits_for = alice.post("/v1/responses", {**MODEL, "input": items})

    error = (waits_for.json or {})["error"]
    assert (400, "input[1].id") == (waits_for.status_code, error["param"])


@pytest.mark.parametrize("is_foreign", [False, True])
def test_items_of_a_run_that_the_caller_lacks_make_a_transcript(
    stored: StoredRuns, alice: User, register: Register, is_foreign: bool
) -> None:
    """The retention deletes runs whose conversations go on; those of others look the same."""
    run = new_id()
    if is_foreign:
        made = register().post("/v1/responses", {**MODEL, "input": "Hello"})
        run = UUID((made.json or {})["id"].removeprefix("resp_"))
    call = {"type": "function_call", "call_id": f"call_{run.hex}_5", "name": "t", "arguments": "{}"}
    items = [
        *(QUESTION, {"type": "reasoning", "id": f"rs_{run.hex}_3", "summary": []}),
        *({**call, "id": f"fc_{run.hex}_5"}, output("c"), {**TEXT, "id": f"msg_{run.hex}_9"}),
    ]
    items[3]["call_id"] = call["call_id"]

    def send(*sent: Any) -> TestResponse:
        return alice.post("/v1/responses", {**MODEL, "input": list(sent)})

    begun = send(*items, MESSAGE)
    lines = ["User: Hello", "Called t({}): c!", "Assistant: It is done."]
    assert lines == earlier_of(alice, begun)
    begun_id = (begun.json or {})["id"]
    claim = stored.held(UUID(begun_id.removeprefix("resp_")))
    stored.write(claim, MessageDelta("Well."))
    stored.finish(claim)
    further = send(*items, MESSAGE, *output_of(alice, begun_id), MESSAGE)
    assert begun_id == (further.json or {}).get("previous_response_id"), further.text

    reference = {"type": "item_reference", "id": f"msg_{run.hex}_9"}
    for place, sent in ((2, items[:4]), (1, [QUESTION, reference, MESSAGE])):
        refused = send(*sent)
        error = (refused.json or {})["error"]
        assert (400, f"input[{place}].id") == (refused.status_code, error["param"])


def picture() -> dict[str, Any]:
    url = f"data:image/png;base64,{b64encode(png()).decode()}"
    return {"role": "user", "content": [{"type": "input_image", "image_url": url}]}


def test_files_before_texts_without_ids_are_mentioned(stored: StoredRuns, alice: User) -> None:
    """They are a part of the transcript, like the texts."""
    _, [_, *items] = looped(stored, alice)
    made = alice.post("/v1/responses", {**MODEL, "input": [picture(), *items, MESSAGE]})

    assert "User: [image]" == earlier_of(alice, made)[0]


@pytest.mark.parametrize("is_old", [True, False])
@pytest.mark.parametrize(
    "ending", [{"error": FAILED, "state": RunState.FAILED}, {"state": RunState.CANCELLED}, {}]
)
def test_a_message_behind_answered_calls_is_the_next_run(
    stored: StoredRuns, alice: User, ending: dict[str, Any], is_old: bool
) -> None:
    """The client names the response that asked, as it has no later one that did not fail."""
    run_id, calls = calling(stored, alice, "c")
    [call] = without_ids(*calls)
    if is_old:  # from an earlier release
        call["call_id"] = "c"
    said = [call, output(call["call_id"])]

    def send(*items: Any) -> int:
        named = {**MODEL, "previous_response_id": f"resp_{run_id.hex}"}
        return alice.post("/v1/responses", {**named, "input": list(items)}).status_code

    assert 200 == send(*said)
    in_progress = send(*said, MESSAGE)
    stored.finish(stored.held(run_id), **ending)

    assert [409, 200] == [in_progress, send(*said, MESSAGE)]
    assert 2 == len(runs_of(alice))


def test_items_of_an_earlier_response_than_the_named_one_do_not_count(
    stored: StoredRuns, alice: User
) -> None:
    """The outputs that the named response asks for are missing, so the request is refused."""
    run_id, calls = calling(stored, alice, "a")
    said = [*calls, output(calls[0]["call_id"])]
    alice.post("/v1/responses", {**MODEL, "input": said})
    ask(stored, run_id, "b")
    [asked] = calls_of(alice, f"resp_{run_id.hex}_1")

    named = {**MODEL, "previous_response_id": f"resp_{run_id.hex}_1"}
    refused = alice.post("/v1/responses", {**named, "input": said})
    given = alice.post(
        "/v1/responses", {**named, "input": [*said, asked, output(asked["call_id"])]}
    )

    why = f"No tool output found for function call {asked['call_id']}, which"
    assert (400, True) == (refused.status_code, why in refused.text), refused.text
    assert f"resp_{run_id.hex}_2" == (given.json or {}).get("id"), given.text


@pytest.mark.parametrize("is_end_user", [False, True])
def test_a_transcript_is_no_override(alice: User, is_end_user: bool) -> None:
    """It is a part of the user's message, which every key and client token may write."""
    alice.post("/v1/personas", json={"key": "fixed", "overrides": []})
    caller = end_user(alice, persona_id="fixed") if is_end_user else alice
    body = {**MODEL, "model": "fixed", "input": [QUESTION, TEXT, MESSAGE]}
    made = caller.post("/v1/responses", body)

    assert ["User: Hello", "Assistant: It is done."] == earlier_of(alice, made)
    assert (made.json or {})["instructions"] is None
    assert message_of(alice, made).endswith("</earlier_conversation>\n\nAnd now?")


def test_messages_that_the_thread_has_are_not_repeated(stored: StoredRuns, alice: User) -> None:
    """Messages of runs that failed are in the history of the model; those refused are not."""
    first = stored.create(UUID(alice.thread()))
    stored.write(claim := stored.held(first), MessageDelta("Hello."))
    stored.finish(claim)
    items: list[Any] = [{"role": "assistant", "id": f"msg_{first.hex}_2", "content": "Hello."}]
    texts = []
    for said in (["one"], ["two"], ["never sent", "three"], ["never sent", "two"]):
        items += [{"role": "user", "content": one} for one in said]
        made = alice.post("/v1/responses", {**MODEL, "input": items})
        texts.append(message_of(alice, made))
        again = stored.held(UUID((made.json or {})["id"].removeprefix("resp_")))
        stored.finish(again, error=FAILED, state=RunState.FAILED)

    earlier = "<earlier_conversation>\nUser: never sent\n</earlier_conversation>\n\n"
    assert ["one", "two", f"{earlier}three"] == texts[:3]
    assert 2 == texts[3].count("never sent")
