"""`/v1/responses` by the unmodified `openai` SDK: streams, resuming, tools, approvals, cancel."""

import contextlib
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import httpx2
import openai
import pytest
from openai import OpenAI

from tests.acceptance.streamed_runs import LONG
from tests.caller import Caller, script
from tests.cutting_proxy import cutting_proxy
from tests.system import System
from tests.waiting import eventually

LOCATE: Any = {
    "type": "function",
    "name": "locate",
    "parameters": {"type": "object", "properties": {"exact": {"type": "boolean"}}},
    "strict": True,
}


@pytest.fixture(scope="module")
def sdk(user: Caller) -> Iterator[OpenAI]:
    """The SDK with a key of the service, and an address of it."""
    _, key = user.api_key()
    with OpenAI(api_key=key, base_url=f"{user.url}/v1", max_retries=0) as client:
        yield client


def test_a_response_is_created_and_retrieved(sdk: OpenAI) -> None:
    """A request without a stream waits for the whole answer, which can be read again."""
    made = sdk.responses.create(model="scripted", input="Hello", metadata={"team": "red"})

    assert ("completed", "You said: Hello") == (made.status, made.output_text)
    assert {"team": "red"} == made.metadata
    assert made.usage and made.usage.total_tokens > 0
    assert made == sdk.responses.retrieve(made.id)


def test_a_stream_ends_with_the_response(sdk: OpenAI) -> None:
    """The events are numbered from 0, and the last one has the response as it is read later."""
    events = list(sdk.responses.create(model="scripted", input="Hello there", stream=True))

    assert list(range(len(events))) == [event.sequence_number for event in events]
    assert "response.completed" == events[-1].type
    assert sdk.responses.retrieve(events[-1].response.id) == events[-1].response
    with sdk.responses.stream(model="scripted", input="Hello there") as stream:
        final = stream.get_final_response()
    assert "You said: Hello there" == final.output_text


def test_a_cut_stream_is_resumed_after_its_last_event(sdk: OpenAI, user: Caller) -> None:
    """`starting_after` has the rest of a stream, whatever the response does meanwhile."""
    port = int(user.url.rpartition(":")[2])
    with cutting_proxy(port, cuts=6, longest=4000, seed=5) as proxy:
        cut = sdk.with_options(base_url=f"{proxy.url}/v1")
        made = sdk.responses.create(model="scripted", input=script(LONG), background=True)
        assert made.status in ("queued", "in_progress")
        events: list[Any] = []
        while not events or events[-1].type != "response.completed":
            after = {"starting_after": events[-1].sequence_number} if events else {}
            with contextlib.suppress(httpx2.HTTPError, openai.APIConnectionError):
                for event in cut.responses.retrieve(made.id, stream=True, **after):
                    events.append(event)
        assert 0 == proxy.cuts_left

    assert list(range(len(events))) == [event.sequence_number for event in events]
    assert list(sdk.responses.retrieve(made.id, stream=True)) == events
    assert sdk.responses.retrieve(made.id) == events[-1].response


def test_a_stream_of_a_run_that_fails_raises_its_error(sdk: OpenAI) -> None:
    """Many clients do not read `response.failed`, and would show what came before as the answer."""
    call = {"tool": "calculator", "args": {"expression": "6*7"}}
    said = script(call, {"error": "invalid_request"})
    events: list[Any] = []
    with pytest.raises(openai.APIError, match="The script says: invalid_request") as raised:
        for event in sdk.responses.create(model="scripted", input=said, stream=True):
            events.append(event)

    made = sdk.responses.retrieve(events[0].response.id)
    assert made.error and ("failed", "invalid_prompt") == (made.status, made.error.code)
    assert made.error.code == raised.value.code
    last = events[-1].sequence_number
    with pytest.raises(openai.APIError, match="The script says: invalid_request"):
        list(sdk.responses.retrieve(made.id, stream=True, starting_after=last))
    [end] = sdk.responses.retrieve(made.id, stream=True, starting_after=last + 1)
    assert ("response.failed", made) == (end.type, getattr(end, "response", None))


def test_a_cancelled_response_keeps_its_text(sdk: OpenAI) -> None:
    """A cancel responds with the cancelled response, and its stream ends with the same."""
    stream = sdk.responses.create(
        model="scripted", input=script({"count": 1000, "delay_ms": 20}), stream=True
    )
    events = []
    for event in stream:
        events.append(event)
        if event.type == "response.output_text.delta" and len(events) == 6:
            cancelled = sdk.responses.cancel(
                event.item_id.replace("msg", "resp").rpartition("_")[0]
            )

    assert "cancelled" == cancelled.status
    assert ("response.incomplete", cancelled) == (events[-1].type, events[-1].response)
    assert cancelled.output_text.startswith("0:")
    assert cancelled == sdk.responses.cancel(cancelled.id)


def test_client_tools_go_around(sdk: OpenAI) -> None:
    """A call ends a response; the next one begins with its output, by id or by the items."""
    steps = [{"tool": "locate", "args": {"exact": True}}, {"say": "You are there."}]
    ask: Any = {"model": "scripted", "tools": [LOCATE], "input": script(*steps)}
    first = sdk.responses.create(**ask)
    call = first.output[0]

    assert ("completed", 1, "function_call") == (first.status, len(first.output), call.type)
    assert ("locate", '{"exact":true}') == (call.name, call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Rome"}
    second = sdk.responses.create(
        model="scripted", previous_response_id=first.id, input=[result], tools=[LOCATE]
    )
    assert ("completed", "You are there.") == (second.status, second.output_text)
    assert first.id == second.previous_response_id
    assert second.usage and first.usage
    assert second == sdk.responses.retrieve(second.id)
    assert first == sdk.responses.retrieve(first.id)

    items = [{"role": "user", "content": ask["input"]}]
    again = sdk.responses.create(**{**ask, "input": items})
    items += [item.model_dump() for item in again.output]
    items += [{**result, "call_id": again.output[0].call_id}]
    events = list(sdk.responses.create(**{**ask, "input": items}, stream=True))
    assert "You are there." == events[-1].response.output_text
    assert again.id == events[-1].response.previous_response_id


def test_outputs_and_a_message_are_read_together(sdk: OpenAI) -> None:
    """The run resumes with both, and its next call of the model answers the message."""
    ask: Any = {"model": "scripted", "tools": [LOCATE]}
    step = {"tool": "locate", "args": {"exact": True}}
    first = sdk.responses.create(**ask, input=script(step, {"say": "Not this."}))
    [call] = first.output
    assert "function_call" == call.type
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "It is Rome."}
    message = {"role": "user", "content": script({"find": "It is"})}
    ask |= {"previous_response_id": first.id, "input": [result, message]}

    made = [sdk.responses.create(**ask) for _ in range(2)]

    assert ["It is Rome."] * 2 == [one.output_text for one in made]
    assert made[0].id == made[1].id == f"{first.id}_1"


def test_a_conversation_goes_on_after_its_newest_response(sdk: OpenAI) -> None:
    """`previous_response_id` continues a thread; an older response cannot be continued."""
    first = sdk.responses.create(model="scripted", input="I am Ann")
    find = script({"find": "I am Ann"})
    second = sdk.responses.create(model="scripted", input=find, previous_response_id=first.id)

    assert "I am Ann" in second.output_text
    assert first.id == second.previous_response_id
    with pytest.raises(openai.ConflictError) as refused:
        sdk.responses.create(model="scripted", input="Hello", previous_response_id=first.id)
    assert "responses.not_newest" == refused.value.code


def test_a_response_waits_for_the_one_before_it(sdk: OpenAI) -> None:
    """A response that continues one in progress is queued, and answered after it."""
    long = script({"count": 20, "delay_ms": 20})
    first = sdk.responses.create(model="scripted", input=long, background=True)
    second = sdk.responses.create(model="scripted", input="Then", previous_response_id=first.id)

    assert ("completed", "You said: Then") == (second.status, second.output_text)
    assert "completed" == sdk.responses.retrieve(first.id).status


def test_a_conversation_from_elsewhere_is_a_transcript(sdk: OpenAI, user: Caller) -> None:
    """Messages that this service has not seen are read by the model before the new one."""
    items: Any = [
        {"role": "user", "content": "I am Ann"},
        {"role": "assistant", "content": "Hello Ann!"},
        {"role": "user", "content": "Who am I?"},
    ]
    made = sdk.responses.create(model="scripted", input=items)
    assert "You said: Who am I?" == made.output_text
    items[-1]["content"] = script({"find": "Hello"})
    assert "Hello Ann!" == sdk.responses.create(model="scripted", input=items).output_text
    run = user.get_run(str(UUID(made.id.removeprefix("resp_"))))
    [(_, said, _), _] = user.messages(run["thread_id"])
    assert "User: I am Ann\nAssistant: Hello Ann!" in said
    assert made.instructions is None


def test_an_approval_is_requested_and_given(sdk: OpenAI) -> None:
    """A tool that requires approval ends the response with a request; the reply continues it."""
    call = {"tool": "calculator", "args": {"expression": "6*7"}}
    asked = sdk.responses.create(model="careful", input=script(call, {"say": "Done."}))
    request = asked.output[-1]

    assert ("mcp_approval_request", "calculator") == (request.type, request.name)
    reply: Any = {"type": "mcp_approval_response", "approval_request_id": request.id}
    done = sdk.responses.create(
        model="careful", previous_response_id=asked.id, input=[{**reply, "approve": True}]
    )
    tool, message = done.output
    assert ("mcp_call", "completed", "42") == (tool.type, tool.status, tool.output)
    assert "Done." == done.output_text and "message" == message.type


def test_a_question_is_answered_by_the_next_message(sdk: OpenAI) -> None:
    """What the agent asks is the text of the response; the next message of the user answers it."""
    question = {"tool": "ask_user", "args": {"question": "Which city?", "options": ["Rome"]}}
    asked = sdk.responses.create(model="scripted", input=script(question, {"say": "Fine."}))

    assert ("completed", "Which city?\n- Rome") == (asked.status, asked.output_text)
    said = {"model": "scripted", "input": "Rome", "previous_response_id": asked.id}
    answered = sdk.responses.create(**said)
    tool, message = answered.output
    assert ("ask_user", "Rome", "message") == (tool.name, tool.output, message.type)
    assert answered.id == sdk.responses.create(**said).id  # sent again, it changes nothing


@pytest.mark.processes
def test_a_server_that_stops_has_requests_repeated_that_count_once(
    system: System, user: Caller, sdk: OpenAI
) -> None:
    """With a key, and to an answer: 503, and then the response. A run without a key is shown."""
    long = {"count": 60, "delay_ms": 300}
    question = {"tool": "ask_user", "args": {"question": "Which city?"}}
    asked = sdk.responses.create(model="scripted", input=script(question, long))
    key = {"extra_headers": {"Idempotency-Key": "stopped"}}
    ask: Any = {"model": "scripted", "input": script(long), "metadata": {"from": "stopped"}}
    answer: Any = {"model": "scripted", "input": "Rome", "previous_response_id": asked.id}
    with ThreadPoolExecutor(3) as pool:
        with system.one_more_web_server() as server:
            there = sdk.with_options(base_url=f"{server.url}/v1")
            keyed, unkeyed, answered = (
                pool.submit(lambda how=how: there.responses.create(**how))
                for how in ({**ask, **key}, ask, answer)
            )
            eventually(lambda: 3 == len(user.get("/v1/runs", limit=3, status="running")))
            os.kill(server.pid, signal.SIGTERM)
            for refused in (keyed, answered):
                error = refused.exception(60)
                assert isinstance(error, openai.InternalServerError)
                assert (503, "1") == (error.status_code, error.response.headers["Retry-After"])
            assert "in_progress" == unkeyed.result(60).status
    again = [sdk.responses.create(**how) for how in ({**ask, **key}, answer)]

    assert ["completed", "completed"] == [response.status for response in again]
    runs = user.get("/v1/runs", limit=3)
    of_ask = [run["run_id"] for run in runs if run["metadata"] == ask["metadata"]]
    assert 2 == len(of_ask)
    assert again[0].id.removeprefix("resp_") in [run_id.replace("-", "") for run_id in of_ask]
    assert f"{asked.id}_1" == again[1].id
