"""The agent loop: steps, tools, questions, limits; and where a run resumes."""

from decimal import Decimal

import pytest

from arkloop.shared import times
from arkloop.shared.events.stored_events import encode
from arkloop.shared.events.types import (
    MessageCompleted,
    RouteCost,
    RunCost,
    ToolCallRequested,
    ToolResult,
)
from arkloop.shared.events.usage import Usage
from arkloop.worker.agent.conversation import Turn
from arkloop.worker.agent.loop import Answer
from arkloop.worker.contract.messages import (
    AssistantMessage,
    TextDelta,
    ThinkingDelta,
    ToolMessage,
    TurnEnd,
)
from arkloop.worker.contract.outcomes import LimitExceeded, RunFailure
from tests.worker.agent.looping_models import CALCULATE, agent_for, results, run
from tests.worker.recorded_run import ROUTE, RecordedRun


def test_a_model_that_calls_no_tool_has_the_last_word() -> None:
    """Its events are part of the answer, so that they are written together with the end."""
    context = RecordedRun()

    answer = run(agent_for({"say": "a b"}), context)

    assert ("a b", "stop", []) == (answer.content, answer.stop_reason, context.events)
    completed, cost = answer.closing
    assert isinstance(completed, MessageCompleted)
    assert (answer.message_id, "a b") == (completed.message_id, completed.content)
    used = RouteCost("scripted", "scripted-1", completed.usage, ROUTE.cost(completed.usage))
    assert RunCost(used.usage, used.cost_usd, (used,)) == cost


@pytest.mark.parametrize("said", ["", " \n"])
def test_a_model_that_reaches_its_limit_without_an_answer_fails_the_run(said: str) -> None:
    """Its output was billed, and the message says what it went for."""
    usage = Usage(input_tokens=3, output_tokens=4096, reasoning_tokens=4000)
    context = RecordedRun()
    agent = agent_for()
    agent.chain.provider.stream = lambda *_: iter(  # type: ignore[method-assign]  # a script
        [ThinkingDelta("Hm"), TextDelta(said), TurnEnd("length", (), usage)]
    )

    with pytest.raises(RunFailure, match="4096 tokens, 4000 of them for reasoning") as caught:
        run(agent, context)

    assert ("provider.output_limit", False) == (caught.value.code, caught.value.retryable)
    assert usage == context.usage
    assert [] == [event for event in context.events if isinstance(event, MessageCompleted)]


@pytest.mark.parametrize(("said", "reason"), [("Hi", "length"), ("", "stop"), ("", "refusal")])
def test_an_answer_keeps_the_reason_why_the_model_stopped(said: str, reason: str) -> None:
    """An answer keeps the model's stop reason, also if it was cut off or is empty."""
    agent = agent_for()
    agent.chain.provider.stream = lambda *_: iter(  # type: ignore[method-assign]  # a script
        [TextDelta(said), TurnEnd(reason)]
    )

    answer = run(agent, RecordedRun())

    assert (said, reason) == (answer.content, answer.stop_reason)


def test_a_step_is_a_model_call_and_its_tools() -> None:
    """The turn, all its calls, what it cost; then the results; then the next step sees them."""
    agent = agent_for(
        {"say": "so"}, {"tools": [CALCULATE, {"tool": "current_time"}]}, {"say": "42"}
    )
    context = RecordedRun()

    answer = run(agent, context)

    kinds = [
        MessageCompleted,
        ToolCallRequested,
        ToolCallRequested,
        RunCost,
        ToolResult,
        ToolResult,
    ]
    assert kinds == [type(event) for event in context.events]
    assert "42" == answer.content
    user, assistant, first, second = agent.chain.provider.saw()
    assert agent.history.messages[0] == user
    assert isinstance(assistant, AssistantMessage)
    assert ("so", 2) == (assistant.content, len(assistant.tool_calls))
    assert ToolMessage("call_1_1", "calculator", "42") == first
    assert "call_1_2" == second.tool_call_id


def test_a_step_is_stored_before_the_next_one_begins() -> None:
    """A step is stored before its tools run and again after, so that a crash repeats neither turn
    nor calls.
    """
    context = RecordedRun()

    run(agent_for(CALCULATE, CALCULATE, {"say": "x"}), context)

    assert 4 == context.checkpoints


def test_the_costs_are_the_sums_so_far() -> None:
    """Each cost event has the sum so far, by the route's prices."""
    usage = {"usage": {"input_tokens": 100, "output_tokens": 10}}
    context = RecordedRun()

    answer = run(agent_for(usage, CALCULATE, usage), context)

    [first] = [event for event in context.events if isinstance(event, RunCost)]
    assert (100, Decimal("0.00012")) == (first.usage.input_tokens, first.cost_usd)
    last = answer.closing[1]
    assert isinstance(last, RunCost)
    assert (200, 20, Decimal("0.00024")) == (
        last.usage.input_tokens,
        last.usage.output_tokens,
        last.cost_usd,
    )


def test_the_model_is_told_what_it_may_use() -> None:
    """The persona's prompt, tools and limits, the turn and the attempt."""
    agent = agent_for({"say": "x"}, max_output_tokens=99)
    run(agent, RecordedRun(attempt=3))

    [asked] = agent.chain.provider.requests
    assert agent.persona.system_prompt == asked.system_prompt
    assert ["ask_user", "current_time", "calculator"] == [spec.name for spec in asked.tools]
    assert (99, 0, 3, 1) == (
        asked.max_output_tokens,
        asked.turn,
        asked.attempt,
        asked.try_number,
    )


def test_steps_are_limited() -> None:
    """A persona can fail with `run.max_steps` after as many model calls as it allows."""
    context = RecordedRun()

    with pytest.raises(LimitExceeded) as raised:
        run(agent_for(*[CALCULATE] * 5, max_steps=3, on_limit="fail"), context)

    assert ("run.max_steps", 3) == (raised.value.code, len(results(context)))
    assert "3" == run(agent_for(CALCULATE, CALCULATE, {"say": "3"}, max_steps=3), context).content


def test_a_last_word_before_a_crash_is_not_asked_for_again() -> None:
    """The finished turn is the answer."""
    agent = agent_for({"say": "x"})

    answer = run(agent, RecordedRun(attempt=2), [Turn("m", "the end")])

    assert Answer(message_id="m", content="the end", stop_reason="stop") == answer
    assert [] == agent.chain.provider.requests


def test_events_of_a_turn_can_be_encoded() -> None:
    """Events of a turn can be encoded, whatever the model calls a tool with."""
    context = RecordedRun()
    run(agent_for({"tool": "none\x00", "args": {"a\ud800": ["\x00", 1.5, None]}}), context)

    [call] = [event for event in context.events if isinstance(event, ToolCallRequested)]
    assert "tool.call" == encode(1, call, times.now()).type
