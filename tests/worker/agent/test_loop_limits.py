"""The ends of a run whose model would continue, and what a model is not shown."""

import json
from dataclasses import replace
from typing import Any

import pytest

from arkloop.shared.events.types import ContextTruncated, ToolCallRequested
from arkloop.worker import providers
from arkloop.worker.agent import loop, request_builder
from arkloop.worker.agent.model_call import DEFAULT_OUTPUT_TOKENS
from arkloop.worker.agent.questions import MAX_CALLS_PER_TURN
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.contract.messages import AssistantMessage, UserMessage
from arkloop.worker.contract.outcomes import LimitExceeded
from arkloop.worker.providers import openai_provider
from tests.worker.agent.looping_models import CALCULATE, Model, SteeredRun, agent_for, results, run
from tests.worker.providers.fake_vendor import anthropic_stream, raw, route_to, vendor
from tests.worker.recorded_run import ROUTE, RecordedRun, history_of


def test_a_model_that_repeats_itself_is_stopped() -> None:
    """A model that repeats itself is stopped before its steps are used up."""
    context = RecordedRun()

    with pytest.raises(LimitExceeded) as ended:
        run(agent_for(*[CALCULATE] * 20, on_limit="fail"), context)

    assert ("run.tool_loop", 6) == (ended.value.code, len(results(context)))


def test_turns_that_somebody_has_asked_for_again_are_no_loop() -> None:
    """Each message that steers the run begins the count of equal turns anew."""
    again = json.dumps({"script": [CALCULATE] * 20})
    context = SteeredRun({4: again, 9: again})

    with pytest.raises(LimitExceeded) as ended:
        run(agent_for(*[CALCULATE] * 20, on_limit="fail"), context)

    assert ("run.tool_loop", 9 + 6) == (ended.value.code, len(results(context)))


def test_a_turn_of_a_thousand_calls_makes_some_of_them() -> None:
    """The others are refused, each with a result of its own; the run continues."""
    calls = [{"tool": "calculator", "args": {"expression": str(i)}} for i in range(1000)]
    context = RecordedRun()

    answer = run(agent_for({"tools": calls}, {"say": "ok"}), context)

    assert "ok" == answer.content
    assert 1000 == sum(isinstance(event, ToolCallRequested) for event in context.events)
    refused = [call_id for call_id, _, is_error in results(context) if is_error]
    assert 1000 - MAX_CALLS_PER_TURN == len(refused)


def _of_small_context(agent: Any, tokens: int) -> Any:
    model = Model()
    route = replace(ROUTE, context_tokens=tokens, max_output_tokens=10)
    return replace(agent, chain=RouteChain([route], lambda _: model))


def test_what_does_not_fit_is_left_out_and_said() -> None:
    """An omission is reported once per number of messages, and keeps the question itself."""
    agent = agent_for(CALCULATE, {"say": "ok"}, tools=())
    long_ago = [UserMessage("x" * 3000), AssistantMessage("y" * 3000)]
    agent = _of_small_context(
        replace(agent, history=history_of(*long_ago, *agent.history.messages)), 500
    )
    context = RecordedRun()

    run(agent, context)

    told = [event for event in context.events if isinstance(event, ContextTruncated)]
    assert [ContextTruncated(2)] == told
    assert [UserMessage, AssistantMessage] == [
        type(m) for m in agent.chain.provider.saw() if not hasattr(m, "tool_call_id")
    ]


@pytest.mark.parametrize("limit", [None, 1000, 4096, 9000])
def test_a_small_context_is_not_all_for_the_answer(limit: int | None) -> None:
    """However long it may be: half of the context is the conversation's."""
    agent = agent_for({"say": "ok"}, tools=(), max_output_tokens=limit)
    long_ago = [UserMessage("x" * 3000), AssistantMessage("y" * 1000)]
    model = Model()
    chain = RouteChain([replace(ROUTE, context_tokens=4096)], lambda _: model)
    context = RecordedRun()

    run(
        replace(agent, chain=chain, history=history_of(*long_ago, *agent.history.messages)), context
    )

    assert 3 == len(model.saw())
    sent = model.requests[0].max_output_tokens
    assert sent == limit if limit in (None, 1000) else 2048 <= sent <= 4096 - 4000 // 3
    assert not any(isinstance(event, ContextTruncated) for event in context.events)


@pytest.mark.parametrize("model", ["claude-sonnet-4-20250514", "claude-opus-4-1-20250805"])
def test_a_long_thread_leaves_the_room_that_the_vendor_is_told(model: str) -> None:
    """Anthropic's older models refuse input and `max_tokens` that are more than the context."""
    begun = {"type": "message_start", "message": {"usage": {"input_tokens": 1}}}
    ended = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {}}
    history = [UserMessage("x" * 6_000), AssistantMessage("y" * 6_000)] * 60
    agent = replace(agent_for(), history=history_of(*history, UserMessage("And now?")))
    with vendor(raw(anthropic_stream(begun, ended))) as fake:
        route = route_to("anthropic", fake.url, model=model, context_tokens=200_000)
        chain = RouteChain([route], lambda route: providers.load(route, faults=False))
        context = RecordedRun()
        run(replace(agent, chain=chain), context)
        chain.close()

    body = fake.bodies[0]
    tokens = sum(len(part["text"]) for m in body["messages"] for part in m["content"]) / 3
    told = [event for event in context.events if isinstance(event, ContextTruncated)]
    assert 1 == len(told)
    assert 60_000 < tokens < 70_000
    assert request_builder.ANSWER_TOKENS <= body["max_tokens"] <= 200_000 - tokens


def test_messages_that_were_not_even_read_are_counted() -> None:
    """A thread of many megabytes is cut where it is read."""
    agent = agent_for({"say": "ok"})
    history = history_of(*[UserMessage("old")] * 5, *agent.history.messages)
    context = RecordedRun()

    run(replace(agent, history=replace(history, unread=7, is_cut=True)), context)

    # Half of what was read goes as well: the next run reads the same.
    [truncated, compacted] = context.events
    assert (ContextTruncated(7 + 3), 4) == (truncated, compacted.upto_position)
    assert 3 == len(agent.chain.provider.saw())


def test_a_call_in_which_a_worker_was_lost_is_not_free() -> None:
    """Estimated by what it had streamed."""
    usage = loop.estimate_lost(agent_for({"say": "ok"}), RecordedRun(), [], "one two three")

    assert (3, "estimated") == (usage.output_tokens, usage.source)
    assert usage.input_tokens > 0


@pytest.mark.parametrize(("refused", "speed"), [("seed", "priority"), ("extra_body", "")])
def test_a_lost_call_has_the_speed_that_was_sent(refused: str, speed: str) -> None:
    """A setting that the route's server has refused in this run is no longer sent."""
    route = replace(ROUTE, provider="openai", base_url="http://127.0.0.1:9/v1", is_of_org=True)
    openai = openai_provider.build(route, faults=False, egress=None)
    chain = RouteChain([route], lambda _: openai, {route.id: [refused]})
    agent = agent_for(model_settings={"extra_body": {"service_tier": "priority"}})

    usage = loop.estimate_lost(replace(agent, chain=chain), RecordedRun(), [], "x")

    assert speed == usage.speed
    chain.close()


def test_a_lost_call_of_a_limited_run_costs_at_most_what_it_held() -> None:
    """A lost call without another limit is bounded by the default limit of its output."""
    context = RecordedRun()
    context.is_limited = True
    agent = agent_for()
    route = replace(ROUTE, provider="openai", base_url="http://127.0.0.1:9/v1")
    openai = openai_provider.build(route, faults=False, egress=None)
    agent = replace(agent, chain=RouteChain([route], lambda _: openai))

    usage = loop.estimate_lost(agent, context, [], "x" * 100_000)

    assert DEFAULT_OUTPUT_TOKENS == usage.output_tokens
    agent.chain.close()
