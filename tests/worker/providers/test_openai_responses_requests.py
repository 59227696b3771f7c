"""Requests of the Responses API: settings, turns that go back, and attachments."""

import json
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.config import Settings
from arkloop.shared.errors import LeaseLost
from arkloop.shared.events.event_log import data_of
from arkloop.shared.events.types import ProviderState
from arkloop.shared.runs.states import RunState
from arkloop.worker import providers
from arkloop.worker.attempt import execution
from arkloop.worker.contract.attachments import Attachment, TextPart
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Chunk,
    Message,
    ModelRequest,
    TextDelta,
    ToolCall,
    ToolMessage,
    TurnEnd,
    UserMessage,
)
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.providers.responses_request import body
from tests.stored_runs import StoredRuns
from tests.waiting import eventually
from tests.worker.providers.fake_vendor import (
    REQUEST,
    Answer,
    ask,
    raw,
    route_to,
    status,
    vendor,
)
from tests.worker.providers.openai_responses_calls import (
    CALLS,
    asked,
    at,
    call,
    end,
    incomplete,
)
from tests.worker.providers.openai_vendor import (
    STEPS,
    Items,
    OpenAIVendor,
    counting,
    function_call,
    message,
    reasoning,
)
from tests.worker.providers.test_provider_state import started, worker


def test_a_request_asks_for_a_stream_and_stores_nothing() -> None:
    """It requests encrypted reasoning with a summary, and its tools are not strict."""
    with OpenAIVendor(lambda _: [message("1", "2")]) as fake:
        call(at(fake), asked(max_output_tokens=5))

    [body] = fake.bodies
    assert {
        "model": "gpt-6-sol",
        "instructions": "Be brief.",
        "input": [{"type": "message", "role": "user", "content": "1+1?"}],
        "tools": [
            {
                "type": "function",
                "name": "calculator",
                "description": "Counts.",
                "parameters": {"type": "object", "properties": {}},
                "strict": False,
            }
        ],
        "include": ["reasoning.encrypted_content"],
        "reasoning": {"summary": "auto"},
        "max_output_tokens": 16,
        "store": False,
        "stream": True,
    } == body


@pytest.mark.parametrize(
    ("url", "first", "instructions"),
    [
        (None, "developer", None),
        ("https://eu.api.openai.com/v1", "developer", None),
        ("https://llm.example.com/v1", "user", "Be brief."),
    ],
)
def test_openai_gets_the_system_prompt_in_front_of_the_input(
    url: str | None, first: str, instructions: str | None
) -> None:
    """OpenAI does not cache `instructions` any more; other servers know these alone."""
    sent = body(REQUEST, is_vendor=route_to("openai", url).is_at_openai)

    assert (first, instructions) == (sent["input"][0]["role"], sent.get("instructions"))


def test_the_minimum_output_limit_is_reserved() -> None:
    """The vendor refuses a limit below 16, so 16 is sent and counted."""
    provider = providers.load(Route(id="r", provider="openai", model="gpt-6-sol"), faults=False)
    provider.close()

    assert 16 == provider.worst_case(asked(max_output_tokens=5)).output_tokens
    assert 99 == provider.worst_case(asked(max_output_tokens=99)).output_tokens


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-4.1", "gpt-5-chat-latest", "ft:gpt-4o:x"])
def test_a_model_that_does_not_reason_is_not_asked_for_reasoning(model: str) -> None:
    """The vendor refuses both options for such a model."""
    with OpenAIVendor(lambda _: [message("1", "2")], reasons=False) as fake:
        call(at(fake, model), asked())

    assert [] == fake.refused
    assert not fake.bodies[0].keys() & {"include", "reasoning"}


def test_what_else_a_response_includes_is_sent_beside_what_is_needed() -> None:
    """Without the encrypted reasoning the next step would lack that of this one."""
    extra = {"include": ["message.output_text.logprobs"]}
    with OpenAIVendor(lambda _: [message("1", "2")]) as fake:
        call(at(fake), replace(asked(), settings={"extra_body": extra}))

    assert ["reasoning.encrypted_content", *extra["include"]] == fake.bodies[0]["include"]


@pytest.mark.parametrize("summary", ["detailed", None])
def test_an_option_that_is_set_is_sent_as_it_was_set(summary: str | None) -> None:
    """`extra_body` decides about summaries, and what it does not name stays."""
    settings = {"reasoning_effort": "low", "extra_body": {"reasoning": {"summary": summary}}}
    with OpenAIVendor(lambda _: [message("1", "2")]) as fake:
        call(at(fake), replace(asked(), settings=settings))

    assert {"effort": "low", "summary": summary} == fake.bodies[0]["reasoning"]
    assert ["reasoning.encrypted_content"] == fake.bodies[0]["include"]


@pytest.mark.parametrize(
    ("settings", "left"),
    [({"reasons": False}, set()), ({"is_verified": False}, {"include"})],
)
def test_an_option_that_is_refused_is_dropped(settings: dict[str, bool], left: set[str]) -> None:
    """Each refusal costs one request, and the rest of the run omits the option."""
    with OpenAIVendor(lambda _: [message("1", "2")], **settings) as fake:
        call(at(fake, "other"), asked(), asked())

    assert left == fake.bodies[-1].keys() & {"include", "reasoning"}
    assert 2 - len(left) == len(fake.refused)


def test_a_refusal_of_the_request_itself_is_raised() -> None:
    """The request is not repeated without the options."""
    refused = status("400 Bad Request", message="Nothing of the kind.")
    with vendor(refused, refused) as fake:
        with pytest.raises(ProviderError, match="Nothing of the kind"):
            call(route_to("openai", fake.url, api="responses"), REQUEST)

        assert 1 == len(fake.bodies)


def turn_of(last: Chunk, route: Route, content: str, *left_out: str) -> list[Message]:
    """Return the turn as a later step sends it, with results, without the calls `left_out`."""
    assert isinstance(last, TurnEnd)
    places = [i for i, made in enumerate(last.tool_calls) if made.id not in left_out]
    # As it was stored.
    turn, calls = json.loads(json.dumps([last.state, last.call_states]))
    state = ProviderState("openai", route.model, turn, tuple(calls[i] for i in places))
    made = tuple(last.tool_calls[i] for i in places)
    return [
        AssistantMessage(content, made, state),
        *(ToolMessage(one.id, one.name, "2") for one in made),
    ]


def test_a_turn_goes_back_item_by_item() -> None:
    """The vendor accepts only the original order, with ids, phase and encrypted reasoning."""
    answers: list[Items] = [CALLS, [message("9", "Done.")]]
    with OpenAIVendor(lambda _: answers.pop(0)) as fake:
        route = at(fake)
        [[*_, first]] = call(route, asked())
        call(route, asked(*turn_of(first, route, "I count.")))

    assert [] == fake.refused
    _, *items = fake.bodies[1]["input"]
    first_thought, said, one, second_thought, two, *outputs = items
    assert {
        "type": "reasoning",
        "id": "rs_1",
        "summary": CALLS[0]["summary"],
        "encrypted_content": "gAAAA-1",
    } == first_thought
    assert ("msg_1", "commentary", "completed") == (said["id"], said["phase"], said["status"])
    assert [{"type": "output_text", "text": "I count.", "annotations": []}] == said["content"]
    assert {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "call_1",
        "name": "calculator",
        "arguments": '{"expression": "1+1"}',
    } == one
    assert ("rs_2", "fc_2") == (second_thought["id"], two["id"])
    assert [("call_1", "2"), ("call_2", "2")] == [(o["call_id"], o["output"]) for o in outputs]


def test_messages_go_back_without_what_separates_their_texts() -> None:
    """The vendor gets each text as its model wrote it, also one after the last call."""
    said = ["One.", "Two.", "Three."]
    first, second, third = (message(text, text, phase="commentary") for text in said)
    items = [reasoning("1"), first, second, function_call("1", "f", {}), third]
    answers: list[Items] = [items, [message("9", "Done.")]]
    with OpenAIVendor(lambda _: answers.pop(0)) as fake:
        route = at(fake)
        [[*pieces, last]] = call(route, asked())
        content = "".join(piece.text for piece in pieces if isinstance(piece, TextDelta))
        call(route, asked(*turn_of(last, route, content)))

    assert [] == fake.refused
    assert "One.\n\nTwo.\n\nThree." == content
    sent = [item["content"] for item in fake.bodies[1]["input"] if item["type"] == "message"]
    assert said == [part["text"] for _, [part] in zip(said, sent[-3:], strict=True)]


@pytest.mark.parametrize(
    "items",
    [
        [reasoning("1"), function_call("1", "f", {}), function_call("2", "f", {})],
        [reasoning("1"), function_call("2", "f", {}), reasoning("2"), function_call("1", "f", {})],
    ],
)
def test_reasoning_for_a_call_that_was_lost_is_not_sent_back(items: Items) -> None:
    """The vendor refuses reasoning that nothing follows."""
    lost = str(items[-1]["call_id"])
    answers: list[Items] = [items, [message("9", "Done.")]]
    with OpenAIVendor(lambda _: answers.pop(0)) as fake:
        route = at(fake)
        [[*_, first]] = call(route, asked())
        call(route, asked(*turn_of(first, route, "", lost)))

    assert [] == fake.refused
    assert "rs_1" == fake.bodies[1]["input"][1]["id"]


def test_a_turn_without_reasoning_has_no_state() -> None:
    """The ids of its items alone are not needed later."""
    last = end(message("1", "Hi"), function_call("1", "f", {}))

    assert (None, ()) == (last.state, last.call_states)


def test_reasoning_that_cannot_go_back_is_not_kept() -> None:
    """An item without content refers to a stored one, and nothing is stored."""
    bare = {**reasoning("1"), "encrypted_content": None}
    open_ = {**bare, "content": [{"type": "reasoning_text", "text": "Hm."}]}
    large = {**reasoning("1"), "encrypted_content": "x" * 1_100_000}
    called = function_call("1", "f", {})

    assert (None, ()) == ((last := end(bare, called)).state, last.call_states)
    assert (None, ()) == ((last := end(large, called)).state, last.call_states)
    [(_, kept)] = end(open_, called).state
    assert open_["content"] == kept["content"]


def test_a_turn_of_another_server_goes_without_ids() -> None:
    """Text, calls and results are sent, and arguments that are no object are wrapped in one."""
    calls = (ToolCall("functions.f:0" * 9, "f.g", "x"), ToolCall("call_b", "f", {}))
    results = [ToolMessage(made.id, made.name, "no") for made in calls]
    with OpenAIVendor(lambda _: [message("1", "2")]) as fake:
        call(at(fake), asked(AssistantMessage("Hm", calls), *results, AssistantMessage("", ())))

    assert [] == fake.refused
    said, one, two, *outputs = fake.bodies[0]["input"][1:]
    assert {"type", "role", "content"} == said.keys()
    assert ("f_g", '{"not_an_object": "x"}') == (one["name"], one["arguments"])
    assert "id" not in two
    assert [one["call_id"], "call_b"] == [output["call_id"] for output in outputs]


def test_a_thread_without_messages_has_an_input() -> None:
    """The vendor refuses a request with instructions alone."""
    with OpenAIVendor(lambda _: [message("1", "Hello")]) as fake:
        call(at(fake), ModelRequest(model="m", system_prompt="Be brief.", messages=[]))

    assert [] == fake.refused
    assert ["(nothing)"] == [item["content"] for item in fake.bodies[0]["input"]]


def test_many_steps_survive_the_worker_and_the_run(stored: StoredRuns, settings: Settings) -> None:
    """The worker is lost halfway and a later run repeats the history, without a single refusal."""
    reached, go_on = threading.Event(), threading.Event()

    def turn(body: Mapping[str, Any]) -> Items:
        if sum(item["type"] == "reasoning" for item in body["input"]) == STEPS // 2:
            reached.set()
            go_on.wait(60)
        return counting(body)

    with OpenAIVendor(turn) as fake:
        route = Route(id="o", provider="openai", model="gpt-6-sol", base_url=fake.url, api_key="k",
                      api="responses")  # fmt: skip
        thread_id = stored.thread()
        run_id = started(stored, route, thread_id)
        with worker(settings, route) as process:
            attempt = threading.Thread(target=execution.execute, args=(process, run_id))
            attempt.start()
            assert reached.wait(60)
            process.active_runs()[run_id].set(LeaseLost())
            go_on.set()
            attempt.join(60)
        stored.set(run_id, state=RunState.QUEUED, resume_reason="worker_lost")
        with worker(settings, route) as process:
            execution.execute(process, run_id)
            later = started(stored, route, thread_id)
            execution.execute(process, later)
        eventually(lambda: stored.state(later) == RunState.COMPLETED)

    assert [] == fake.refused
    for each in (run_id, later):
        types = stored.types(each)
        assert "run.completed" == types[-1]
        assert STEPS + 1 == types.count("message.completed")
    of_first = [data_of(e.payload) for e in stored.events(run_id) if e.type == "message.completed"]
    assert [[0, "rs_1_0"]] == [[n, i["id"]] for n, i in of_first[0]["provider_state"]["turn"]]
    assert "provider_state" not in of_first[-1]
    assert 2 * STEPS == sum(item["type"] == "reasoning" for item in fake.bodies[-1]["input"])


def test_a_run_whose_output_went_for_reasoning_fails(
    stored: StoredRuns, settings: Settings
) -> None:
    """It is billed, and the thread has no empty answer."""
    with OpenAIVendor(
        lambda _: [reasoning("1", "Hm.")], end=incomplete("max_output_tokens")
    ) as fake:
        route = replace(at(fake), id="o")
        run_id = started(stored, route)
        with worker(settings, route) as process:
            execution.execute(process, run_id)

    row = stored.row(run_id)
    assert (RunState.FAILED, "provider.output_limit") == (stored.state(run_id), row["error_code"])
    assert (100, 50, 30) == tuple(row[f"{n}_tokens"] for n in ("input", "output", "reasoning"))
    assert [] == [m for m in stored.messages(run_id) if m]
    assert 1 == len(fake.bodies)


def test_a_compatible_server_gets_chat_completions() -> None:
    """That is the default for every address but OpenAI's own."""
    done: Answer = raw(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n')
    with vendor(done) as fake:
        assert TurnEnd("stop") == ask("openai", fake.url)[-1]
        assert fake.heads[0].startswith("POST /v1/chat/completions ")


PNG = Attachment(kind="image", file_id="1", name="a.png", media_type="image/png", data="AAAA")


PDF = Attachment(kind="file", file_id="2", name="a.pdf", media_type="application/pdf", data="BBBB")


PNG_INPUT = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"}


def test_attachments_are_sent_as_the_api_takes_them() -> None:
    """Stored ones as data, others by their URL; images of a result stand in the result."""
    call = ToolCall("call_1", "camera", {})
    messages = [
        UserMessage("described", (TextPart("Look"), PNG, PDF, replace(PNG, url="https://e.com/i"))),
        AssistantMessage("", (call,)),
        ToolMessage("call_1", "camera", "ok", (PNG,)),
        UserMessage("described", (replace(PDF, url="https://e.com/f"),)),
    ]

    said, _, result, last = body(replace(REQUEST, messages=messages), is_vendor=False)["input"]

    assert [
        {"type": "input_text", "text": "Look"},
        PNG_INPUT,
        {
            "type": "input_file",
            "filename": "a.pdf",
            "file_data": "data:application/pdf;base64,BBBB",
        },
        {**PNG_INPUT, "image_url": "https://e.com/i"},
    ] == said["content"]
    assert [{"type": "input_text", "text": "ok"}, PNG_INPUT] == result["output"]
    assert [{"type": "input_file", "file_url": "https://e.com/f"}] == last["content"]
