"""The state that vendors require back with a turn that calls tools: reasoning, its signatures."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from arkloop.shared.catalog import model_routes
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.config import Settings
from arkloop.shared.errors import LeaseLost
from arkloop.shared.events.event_log import data_of
from arkloop.shared.events.types import ProviderState
from arkloop.shared.runs.states import RunState
from arkloop.shared.threads import threads
from arkloop.worker import providers
from arkloop.worker.agent import context_window
from arkloop.worker.agent.conversation import Turn
from arkloop.worker.agent.model_call import call_model
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.attempt import execution
from arkloop.worker.contract.messages import (
    MAX_STATE_BYTES,
    AssistantMessage,
    Message,
    ModelRequest,
    ToolCall,
    ToolMessage,
    TurnEnd,
    UserMessage,
    strip_provider_state,
)
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.process.process import WorkerProcess
from arkloop.worker.providers import token_counts
from arkloop.worker.providers.scripted_provider import ScriptedProvider
from tests.stored_runs import StoredRuns
from tests.waiting import eventually
from tests.worker.providers.fake_vendor import (
    Answer,
    FakeVendor,
    anthropic_stream,
    ask,
    delta,
    openai_stream,
    raw,
    status,
    vendor,
)
from tests.worker.recorded_run import RecordedRun, chain_of

CALLS = (ToolCall("a", "calculator", {"expression": "1+1"}), ToolCall("b", "current_time", {}))


def asked(*messages: Message) -> ModelRequest:
    return ModelRequest(model="m", system_prompt="", messages=[UserMessage("Hi"), *messages])


def given_back(provider: str, answer: bytes, last: bytes) -> tuple[TurnEnd, dict[str, Any]]:
    """Return the end of the turn that `answer` is, and the assistant's message as it is sent
    back.
    """
    with vendor(raw(answer), raw(last)) as fake:
        end = ask(provider, fake.url)[-1]
        assert isinstance(end, TurnEnd)
        state = ProviderState(provider, "m", end.state, end.call_states)
        turn = AssistantMessage("so: now", end.tool_calls, state)
        results = [ToolMessage(call.id, call.name, "2") for call in end.tool_calls]
        ask(provider, fake.url, asked(turn, *results))
        message: dict[str, Any] = fake.bodies[1]["messages"][1]
        return end, message


# ---- servers that speak OpenAI's chat completions ------------------------------------

DONE = openai_stream(delta(content="2", finish="stop"))


def tool(index: int, call: ToolCall, **fields: Any) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments)}
    return {"index": index, "id": call.id, "type": "function", "function": function, **fields}


def chat(*deltas: dict[str, Any], calls: list[dict[str, Any]] | None = None) -> bytes:
    """Build a turn that calls a tool, after these pieces."""
    called = calls if calls is not None else [tool(0, CALLS[0])]
    return openai_stream(*deltas, delta(tool_calls=called), delta(finish="tool_calls"))


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("pieces", [["let me ", "see"], ["", "see"], [""]])
def test_reasoning_goes_back_under_the_name_that_it_came_under(
    name: str, pieces: list[str]
) -> None:
    """Reasoning returns under the name it came with, even if empty: DeepSeek refuses turns with
    calls without the field.
    """
    end, message = given_back(
        "openai",
        chat(*(delta(**{name: piece}) for piece in pieces), delta(content="so: now")),
        DONE,
    )

    assert {name: "".join(pieces)} == end.state
    assert ("".join(pieces), "so: now") == (message[name], message["content"])
    assert {"role", "content", "tool_calls", name} == set(message)


def test_a_signature_goes_back_with_its_call() -> None:
    """Google's models sign the first of parallel calls, and refuse it without."""
    signed = {"google": {"thought_signature": "c2ln"}}
    calls = [tool(0, CALLS[0], extra_content=signed), tool(1, CALLS[1])]

    end, message = given_back("openai", chat(calls=calls), DONE)

    assert (None, (signed, None)) == (end.state, end.call_states)
    first, second = message["tool_calls"]
    assert signed == first["extra_content"]
    assert "extra_content" not in second


def test_blocks_of_reasoning_go_back_whole() -> None:
    """OpenRouter streams them in pieces, with their signatures."""
    of_block = {"type": "reasoning.text", "index": 0, "format": "f"}
    secret = {"type": "reasoning.encrypted", "index": 1, "data": "xyz"}
    pieces: list[dict[str, Any]] = [
        {**of_block, "text": "ha "},
        {**of_block, "text": "ha "},
        {**of_block, "signature": "sig"},
        secret,
        secret,
    ]

    _, message = given_back("openai", chat(*(delta(reasoning_details=[p]) for p in pieces)), DONE)

    whole = {**of_block, "text": "ha ha ", "signature": "sig"}
    assert [whole, secret, secret] == message["reasoning_details"]


@pytest.mark.parametrize("odd", [5, "x", {"a": 1}, [5], None])
def test_reasoning_of_another_form_is_no_reason_to_fail(odd: Any) -> None:
    """Reasoning in an unknown form is omitted."""
    pieces = [delta(reasoning_details=odd), delta(reasoning=None if odd == "x" else odd)]

    end, message = given_back("openai", chat(*pieces), DONE)

    assert end.state is None
    assert {"role", "content", "tool_calls"} == set(message)


def test_a_last_word_wants_nothing_back() -> None:
    """After a final answer no state is sent back; its reasoning is only shown."""
    with vendor(raw(openai_stream(delta(reasoning="hm"), delta(content="2", finish="stop")))) as v:
        assert TurnEnd("stop") == ask("openai", v.url)[-1]


# ---- Anthropic -----------------------------------------------------------------------

ENDED = anthropic_stream(
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "2"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {}},
)


def blocks(*whole: tuple[dict[str, Any], list[dict[str, Any]]]) -> bytes:
    events: list[dict[str, Any]] = []
    for index, (block, deltas) in enumerate(whole):
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        for piece in deltas:
            events.append({"type": "content_block_delta", "index": index, "delta": piece})
        events.append({"type": "content_block_stop", "index": index})
    end = {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {}}
    return anthropic_stream(*events, end)


def thinking(text: str, signature: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    pieces = [{"type": "thinking_delta", "thinking": part} for part in text]
    pieces.append({"type": "signature_delta", "signature": signature})
    return {"type": "thinking", "thinking": "", "signature": ""}, pieces


def said(text: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return {"type": "text", "text": ""}, [{"type": "text_delta", "text": text}]


def used(call: ToolCall) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    block = {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments}
    return block, []


def test_thinking_goes_back_as_it_came_and_where_it_stood() -> None:
    """Signed or redacted, before text and calls, and between them."""
    redacted = {"type": "redacted_thinking", "data": "xyz"}
    first, unseen, second, third = "hm", "", "well", "oh"

    _, message = given_back(
        "anthropic",
        blocks(
            thinking(first, "s1"),
            (redacted, []),
            said("so: "),
            thinking(unseen, "s2"),
            thinking(second, "s3"),
            said("now"),
            used(CALLS[0]),
            thinking(third, "s4"),
            used(CALLS[1]),
        ),
        ENDED,
    )

    assert [
        {"type": "thinking", "thinking": first, "signature": "s1"},
        redacted,
        {"type": "text", "text": "so: "},
        {"type": "thinking", "thinking": unseen, "signature": "s2"},
        {"type": "thinking", "thinking": second, "signature": "s3"},
        {"type": "text", "text": "now"},
        used(CALLS[0])[0],
        {"type": "thinking", "thinking": third, "signature": "s4"},
        used(CALLS[1])[0],
    ] == message["content"]


def test_a_server_without_signatures_gets_its_thinking_back_without() -> None:
    """A server without signatures gets its thinking back without one, and refuses turns with calls
    otherwise.
    """
    block = {"type": "thinking", "thinking": "h"}

    _, message = given_back(
        "anthropic",
        blocks((block, [{"type": "thinking_delta", "thinking": "m"}]), used(CALLS[0])),
        ENDED,
    )

    assert {"type": "thinking", "thinking": "hm"} == message["content"][0]


def test_a_turn_without_thinking_is_kept_without_state() -> None:
    """Where the text stood is of no interest then."""
    end, _ = given_back("anthropic", blocks(said("so: now"), *map(used, CALLS)), ENDED)

    assert (None, ()) == (end.state, end.call_states)


# ---- what is kept --------------------------------------------------------------------


class Ends(ScriptedProvider):
    """A model whose turn ends like this."""

    def __init__(self, end: TurnEnd) -> None:
        super().__init__()
        self._end = end

    def stream(self, *_: Any) -> Iterator[TurnEnd]:
        yield self._end


def kept(state: Any, *call_states: Any) -> ProviderState | None:
    run = RecordedRun()
    provider = Ends(TurnEnd("tool_calls", CALLS, None, state, call_states))
    return call_model(chain_of(provider), lambda _: asked(), run, run.stop).message.state


def test_what_cannot_be_stored_is_cleaned() -> None:
    """A vendor may send anything; the turn is worth more than its state."""
    found = kept({"reasoning": "a\ud800\x00"}, {"s": float("nan")}, None)

    assert found is not None
    assert ("scripted", "scripted-1") == (found.provider, found.model)
    assert ({"reasoning": "a\ufffd\ufffd"}, ({"s": "nan"}, None)) == (found.turn, found.calls)


def test_what_is_too_long_or_too_deep_is_not_kept() -> None:
    """All of it: half of it would be refused."""
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]

    assert kept("x" * (MAX_STATE_BYTES - 100)) is not None
    assert kept("x" * MAX_STATE_BYTES) is None
    assert kept("é" * (MAX_STATE_BYTES // 2)) is None
    assert kept("x", "x" * MAX_STATE_BYTES) is None
    assert kept(deep) is None


@pytest.mark.parametrize(
    ("provider", "answer"),
    [
        ("openai", chat(*[delta(reasoning="x" * 280_000)] * 4)),
        ("openai", chat(delta(reasoning_details=[{"data": "x" * 280_000}] * 4))),
        ("openai", chat(calls=[tool(0, CALLS[0], extra_content="x" * 1_100_000)])),
        ("anthropic", blocks(*[thinking("x", "s" * 280_000)] * 4, used(CALLS[0]))),
        ("anthropic", blocks(*[({"type": "redacted_thinking", "data": "x" * 1_100_000}, [])],
                             used(CALLS[0]))),
    ],
)  # fmt: skip
def test_a_vendor_that_wants_too_much_back_gets_none_of_it(provider: str, answer: bytes) -> None:
    """The call is as good as ever."""
    end, _ = given_back(provider, answer, DONE if provider == "openai" else ENDED)

    assert (None, ()) == (end.state, end.call_states)
    assert CALLS[:1] == end.tool_calls


def test_only_who_gave_it_gets_it_back() -> None:
    """The same server and model; others would refuse a foreign signature, or the very field."""
    route = Route(id="a", provider="openai", model="m", base_url="http://here/v1")
    state = ProviderState("openai", "m", {"reasoning": "so"}, (), route.server)
    said: list[Message] = [UserMessage("Hi"), AssistantMessage("", CALLS, state)]

    assert said == strip_provider_state(said, keep_for=replace(route, id="b"))
    for other in ({"model": "n"}, {"provider": "anthropic"}, {"base_url": "http://there/v1"}):
        bare = strip_provider_state(said, keep_for=replace(route, **other))
        assert [UserMessage("Hi"), AssistantMessage("", CALLS)] == bare


def test_a_server_that_refuses_what_it_has_sent_is_asked_without_it() -> None:
    """Once; what it refuses then is the request itself."""
    refused = status("400 Bad Request", message="property 'reasoning' is unsupported")
    run = RecordedRun()
    with vendor(refused, raw(DONE), refused, refused) as fake:
        route = route_to(fake, "openai")
        state = ProviderState("openai", "m", {"reasoning": "so"}, (), route.server)
        turn, result = AssistantMessage("", CALLS[:1], state), ToolMessage(CALLS[0].id, "f", "2")
        chain = RouteChain([route], lambda r: providers.load(r, faults=False, egress=None))

        reply = call_model(chain, lambda _: asked(turn, result), run, run.stop)
        with pytest.raises(ProviderError, match="is unsupported"):
            call_model(chain, lambda _: asked(turn, result), run, run.stop)

        chain.close()
        sent = ["so" in json.dumps(body) for body in fake.bodies]
    assert "2" == reply.message.content
    assert [True, False] * 2 == sent
    assert [] == run.paused


def test_a_turn_of_which_calls_were_lost_keeps_the_state_of_the_others() -> None:
    """Each call has its own."""
    results = {"b": ToolMessage("b", "current_time", "now")}
    turn = Turn("m", "", list(CALLS), results, state=ProviderState("openai", "m", None, (1, 2)))

    assert [
        AssistantMessage("", CALLS[1:], ProviderState("openai", "m", None, (2,))),
        results["b"],
    ] == turn.messages()
    assert [] == Turn("m", "", list(CALLS), state=turn.state).messages()


def test_it_counts_as_what_is_sent() -> None:
    """The state counts for the estimate, the worst case and what fits into the context."""
    bare = AssistantMessage("", CALLS)
    state = ProviderState("openai", "m", {"reasoning": "é" * 3000})
    with_state = AssistantMessage("", CALLS, state)
    plain, full = (replace(asked(message), max_output_tokens=1) for message in (bare, with_state))

    for count, least in (
        (lambda request: token_counts.estimate(request, "").input_tokens, 3000 // 4),
        (lambda request: token_counts.worst_case(request).input_tokens, 6000),
        (lambda request: context_window.tokens_of(request.messages[1]), 2000),
    ):
        assert count(full) - count(plain) >= least
    for name in ("openai", "anthropic"):
        provider = providers.load(Route(id="r", provider=name, model="m"), faults=False)
        assert provider.worst_case(full).input_tokens > 6000
        provider.close()


# ---- whole runs ----------------------------------------------------------------------


@contextmanager
def worker(settings: Settings, *routes: Route) -> Iterator[WorkerProcess]:
    """Start a process that does nothing unasked, with these routes alone; each is the next's
    fallback.
    """
    patient = replace(settings, sweep_seconds=3600, heartbeat_seconds=0.2)
    ranked = {route.id: replace(route, priority=i) for i, route in enumerate(routes)}
    made = WorkerProcess(patient, {**model_routes.load(patient), **ranked})
    try:
        assert made.lease.wait_until_valid(10)
        yield made
    finally:
        made.close()


def started(stored: StoredRuns, route: Route, thread_id: UUID | None = None) -> UUID:
    thread_id = thread_id or stored.thread()
    with stored.connections.transaction() as tx:
        threads.add_message(tx, stored.actor, thread_id, content="1+1?")
    return stored.create(thread_id, route_id=route.id, model=route.model)


def fall_silent(client: socket.socket) -> None:
    client.recv(1)


#: With what cannot be stored.
STEP = chat(delta(reasoning_content="two \U0001f600 ODD?")).replace(b"ODD", rb"\ud800\u0000")
ANTHROPIC_STEP = blocks(thinking("two?", "s1"), used(CALLS[0]))


def route_to(fake: FakeVendor, provider: str, model: str = "m") -> Route:
    return Route(id=provider, provider=provider, model=model, base_url=fake.url, api_key="k")


@pytest.mark.parametrize(
    ("provider", "step", "last"), [("openai", STEP, DONE), ("anthropic", ANTHROPIC_STEP, ENDED)]
)
def test_it_outlives_the_worker_and_the_run(
    stored: StoredRuns, settings: Settings, provider: str, step: bytes, last: bytes
) -> None:
    """Lost between two steps, the run resumes elsewhere, as do later runs of its thread."""
    answers: list[Answer] = [raw(step), fall_silent, raw(last), raw(last)]
    with vendor(*answers) as fake:
        route = route_to(fake, provider)
        thread_id = stored.thread()
        run_id = started(stored, route, thread_id)
        with worker(settings, route) as process:
            attempt = threading.Thread(target=execution.execute, args=(process, run_id))
            attempt.start()
            eventually(lambda: len(fake.bodies) == 2)
            process.active_runs()[run_id].set(LeaseLost())
            attempt.join(10)
        stored.set(run_id, state=RunState.QUEUED, resume_reason="worker_lost")
        with worker(settings, route) as process:
            execution.execute(process, run_id)
            later = started(stored, route, thread_id)
            execution.execute(process, later)
        before_the_loss, after_it, in_a_later_run = (
            body["messages"][-2 if i < 2 else -4] for i, body in enumerate(fake.bodies[1:])
        )

    assert [RunState.COMPLETED] * 2 == [stored.state(run_id), stored.state(later)]
    if provider == "openai":
        assert "two \U0001f600 \ufffd\ufffd?" == before_the_loss["reasoning_content"]
    else:
        block = {"type": "thinking", "thinking": "two?", "signature": "s1"}
        assert block == before_the_loss["content"][0]
    assert before_the_loss == after_it == in_a_later_run
    step_event, last_event = (
        data_of(e.payload) for e in stored.events(run_id) if e.type == "message.completed"
    )
    assert (provider, "m") == tuple(step_event["provider_state"][n] for n in ("provider", "model"))
    assert "provider_state" not in last_event


def test_another_vendor_that_takes_over_gets_nothing_of_it(
    stored: StoredRuns, settings: Settings
) -> None:
    """It gets the turn; when the first one is back, that gets its own again."""
    refused = status("401 Unauthorized")
    with (
        vendor(raw(STEP), refused, raw(DONE)) as first,
        vendor(raw(ENDED)) as second,
    ):
        route, other = route_to(first, "openai"), route_to(second, "anthropic")
        thread_id = stored.thread()
        run_id = started(stored, route, thread_id)
        with worker(settings, route, other) as process:
            execution.execute(process, run_id)
            execution.execute(process, started(stored, route, thread_id))

    assert ["run.fallback"] == [t for t in stored.types(run_id) if t == "run.fallback"]
    [body] = second.bodies
    assert ["tool_use"] == [block["type"] for block in body["messages"][1]["content"]]
    assert "two" not in json.dumps(body["messages"])
    assert "reasoning_content" in first.bodies[2]["messages"][2]
