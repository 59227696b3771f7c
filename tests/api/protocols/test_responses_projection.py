"""Recorded runs as streams of OpenAI's Responses API."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from arkloop.api.protocols.responses_object import RunFacts
from arkloop.api.protocols.responses_projection import ResponseProjection
from tests.api.protocols.recorded_runs import NAMES, RUN_ID, check_golden, events_of, project_all

FACTS = RunFacts(
    run_id=RUN_ID,
    created_at=1795000000,
    model="scripted-1",
    client_tools=frozenset({"locate"}),
    metadata={"team": "red"},
)
_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def responses_of(name: str) -> Iterator[tuple[ResponseProjection, list[bytes]]]:
    """Yield each response of a recorded run, with its frames."""
    projection = ResponseProjection(FACTS)
    while True:
        frames = projection.opening() + project_all(events_of(name), projection)
        yield projection, frames
        if projection.asked is None:
            return
        projection = ResponseProjection(FACTS, projection.waits)


def data_of(frames: list[bytes]) -> list[dict[str, Any]]:
    assert b"data: [DONE]\n\n" == frames[-1]
    return [json.loads(frame.partition(b"\ndata: ")[2]) for frame in frames[:-1]]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_has_the_frames_of_its_golden(name: str) -> None:
    """The frames of this version of the protocol stay as they are."""
    check_golden("responses", name, b"".join(b"".join(frames) for _, frames in responses_of(name)))


@pytest.mark.parametrize("name", NAMES)
def test_every_frame_is_an_event_of_the_sdk(name: str) -> None:
    """The SDK's types accept each event, numbered from 0, and its own fold gets the response."""
    for projection, frames in responses_of(name):
        state: ResponseStreamState[Any] = ResponseStreamState(input_tools=[], text_format=omit)
        for number, event in enumerate(data_of(frames)):
            assert number == event["sequence_number"]
            state.handle_event(_EVENT.validate_python(event))
        final = Response.model_validate(projection.response())
        assert event["response"] == projection.response()
        if final.status == "completed":
            assert state._completed_response is not None
            assert final.output_text == state._completed_response.output_text


@pytest.mark.parametrize("name", NAMES)
def test_the_output_has_what_the_run_has_said(name: str) -> None:
    """No text that was taken back is left in the output."""
    turns = [
        event["data"]["content"]
        for event in events_of(name)
        if event["type"] == "message.completed" and not event["data"].get("output_errors")
    ]
    said = "".join(turns)
    shown = "".join(
        Response.model_validate(projection.response()).output_text
        for projection, _ in responses_of(name)
    )
    # Partial text, and questions of the agent.
    if name in ("cancelled", "failed", "question", "agent_question"):
        assert shown.startswith(said) or shown.endswith(said)
    elif name == "keyed_questions":  # between the turns
        assert shown.startswith(turns[0]) and shown.endswith(turns[-1])
    else:
        assert said == shown


def test_a_response_shows_its_own_part_of_the_usage() -> None:
    """The usage of all responses of a run is that of the run."""
    parts = [projection.response()["usage"] for projection, _ in responses_of("client_tools")]

    assert 2 == len(parts)
    assert 131 == sum(part["input_tokens"] for part in parts)
    assert 7 == sum(part["output_tokens"] for part in parts)


def test_void_text_ends_as_an_empty_item() -> None:
    """What was taken back is closed as incomplete, without content, before the new text begins."""
    [(_, frames)] = responses_of("reset")
    done = [e["item"] for e in data_of(frames) if e["type"] == "response.output_item.done"]

    states = [(item["type"], item["status"]) for item in done]
    kept = [("reasoning", "completed"), ("message", "completed")]
    assert [("reasoning", "completed"), ("message", "incomplete"), *kept] == states
    assert [] == done[1]["content"]


def test_a_response_that_does_not_exist_yet_has_no_frames() -> None:
    """A response begins when its run has waited often enough."""
    projection = ResponseProjection(FACTS, 3)
    frames = project_all(events_of("client_tools"), projection)

    assert not projection.has_begun
    assert [b"data: [DONE]\n\n"] == frames


def test_a_question_is_a_message_of_its_own() -> None:
    """Text of a custom agent before it ends as an item, and so does its reasoning."""
    asking, _ = next(responses_of("agent_question"))
    output = Response.model_validate(asking.response()).output

    assert ["reasoning", "message", "message"] == [item.type for item in output]
    assert ["Let me see. ", "Which city?"] == [
        item.content[0].text for item in output if item.type == "message"
    ]
    assert {"completed"} == {item.status for item in output}


def test_text_before_an_approval_ends_as_an_item() -> None:
    """A custom agent can write after a call, and then ask for the approval of it."""
    events = events_of("approvals")
    wait = next(n for n, e in enumerate(events) if e["type"] == "run.waiting_for_input")
    text = {"seq": 0, "type": "message.delta", "data": {"content": "It is risky."}}
    projection = ResponseProjection(FACTS)
    project_all([*events[:wait], text, events[wait]], projection)

    items = projection.response()["output"][-2:]
    assert [("message", "completed"), ("mcp_approval_request", None)] == [
        (item["type"], item.get("status")) for item in items
    ]


def test_edited_arguments_are_those_of_the_call() -> None:
    """A call that a person has changed is shown as it was made."""
    events = events_of("approvals")
    edit = json.dumps({"decision": "edit", "arguments": {"expression": "6*9"}})
    for event in events:
        if event["type"] == "run.input_received" and event["data"]["content"] == "yes":
            event["data"]["content"] = edit
    projection = ResponseProjection(FACTS, 2)
    project_all(events, projection)

    made = projection.response()["output"][0]
    assert ("mcp_call", '{"expression":"6*9"}') == (made["type"], made["arguments"])


def test_a_second_request_is_about_the_proposed_arguments() -> None:
    """The run asks again where those that a person has given do not fit the tool."""
    events = events_of("approvals")
    waits = [n for n, event in enumerate(events) if event["type"] == "run.waiting_for_input"]
    asked, resumed, reply = events[waits[0] : waits[1]]
    edit = json.dumps({"decision": "edit", "arguments": {"expression": 5}})
    edited = {**reply, "data": {**reply["data"], "content": edit}}
    events[waits[0] : waits[1]] = [asked, resumed, edited, asked, resumed, reply]

    second, last = ResponseProjection(FACTS, 1), ResponseProjection(FACTS, 3)
    for projection in (second, last):
        project_all(events, projection)

    [request] = second.response()["output"]
    made = last.response()["output"][0]
    assert ["mcp_approval_request", "mcp_call"] == [request["type"], made["type"]]
    assert 2 * ['{"expression":"6*7"}'] == [request["arguments"], made["arguments"]]


def test_a_call_of_an_http_tool_is_in_the_response_after_the_wait() -> None:
    """It answered 202 and was waited for beside client tools, whose calls the client has made."""
    events = events_of("client_tools")
    for event in events:
        for data in (event["data"], *(event["data"].get("calls") or ())):
            if data.get("tool_call_id") == "call_1_4":
                data["name"] = "pay"
    projection = ResponseProjection(FACTS, 1)

    project_all(events, projection)

    called = [one for one in projection.response()["output"] if one["type"] == "mcp_call"]
    assert ["calculator", "pay"] == [one["name"] for one in called]


NO_ANSWER = "No answer: this run reached its limit of steps before the model had one."


@pytest.mark.parametrize(
    ("stop_reason", "said", "reason"),
    [
        ("stop", "It is 42.", None),
        ("timeout", "It is", "timeout"),
        ("budget", "It is 42.", "budget"),
        ("max_steps", "It is 42.", None),
        ("tool_loop", "It is 42.", None),
        ("max_steps", NO_ANSWER, "max_steps"),
        ("max_steps", "", "max_steps"),
        ("end_turn", "It is 42.", None),
    ],
)
def test_a_run_without_a_whole_answer_is_incomplete(
    stop_reason: str, said: str, reason: str | None
) -> None:
    """At a limit of time or cost the answer may be cut off; at others a last call gives it."""
    *events, ended = events_of("text")
    limit = {"stop_reason": stop_reason, "message": "The run reached a limit."}
    events.append({**ended, "type": "run.limit_reached", "data": limit})
    if said:
        events.append({**ended, "type": "message.delta", "data": {"content": said}})
    ended["data"]["stop_reason"] = stop_reason
    projection = ResponseProjection(FACTS)
    frames = project_all([*events, ended], projection)

    response = data_of(frames)[-1]["response"]
    details = None if reason is None else {"reason": reason}
    status = "completed" if reason is None else "incomplete"
    assert (status, details) == (response["status"], response["incomplete_details"])
    assert f"response.{status}" == data_of(frames)[-1]["type"]
