"""Runs that reach a limit: the last call, and the answer that is left whatever comes of it."""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest

from arkloop.shared.catalog.personas import Persona
from arkloop.shared.events.types import MessageCompleted, RunLimitReached, RunSteered
from arkloop.shared.events.usage import Usage
from arkloop.worker.agent import landing, loop
from arkloop.worker.agent.agent import Agent
from arkloop.worker.agent.conversation import Turn
from arkloop.worker.agent.loop import Answer
from arkloop.worker.agent.structured_output import OutputSchema
from arkloop.worker.contract.attachments import Attachment
from arkloop.worker.contract.messages import (
    CallDelta,
    Chunk,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    ToolMessage,
    TurnEnd,
    UserMessage,
)
from arkloop.worker.contract.outcomes import (
    LimitExceeded,
    ProviderError,
    RunFailure,
)
from arkloop.worker.providers.output_modes import FINAL_TOOL
from tests.worker.agent.landing_models import LastWords
from tests.worker.agent.looping_models import (
    CALCULATE,
    Model,
    SteeredRun,
    after,
    agent_for,
    results,
)
from tests.worker.agent.looping_models import run as run_loop
from tests.worker.recorded_run import RecordedRun, chain_of

SAID = Usage(input_tokens=9, output_tokens=3)


@pytest.mark.parametrize(
    ("failure", "lands"),
    [
        (LimitExceeded("run.max_steps", "3 steps"), "max_steps"),
        (LimitExceeded("run.tool_loop", "6 times"), "tool_loop"),
        (LimitExceeded("budget.exhausted", "1 USD"), "budget"),
        (LimitExceeded("run.timeout", "9 s"), "timeout"),
        (LimitExceeded("run.output_limit", "64 MiB"), None),
        (RunFailure("provider.output_limit", "all of it"), None),
        (ProviderError("overloaded", "HTTP 529"), None),
    ],
)
def test_a_run_lands_at_these_limits(failure: RunFailure, lands: str | None) -> None:
    """A run lands at its limits of steps, loops, cost and time, unless its persona says `fail`."""
    persona = Persona(key="p", version="1")

    assert lands == landing.stop_reason_of(failure, persona)
    assert landing.stop_reason_of(failure, replace(persona, on_limit="fail")) is None


CITY = OutputSchema(
    {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
)


def with_schema(*steps: Any) -> Agent:
    agent = agent_for(*steps, max_steps=1, output_schema=CITY.schema)
    return replace(agent, output=CITY)


@pytest.mark.parametrize("calls", [1, 3])
def test_the_last_call_of_a_run_with_a_schema_asks_for_its_output(calls: int) -> None:
    """The schema is sent as before, and is in the instruction too: no tool can be called."""
    agent = with_schema(*[CALCULATE] * calls, {"output": None})

    answer = run_loop(agent, RecordedRun())

    assert ("max_steps", {"name"}) == (answer.stop_reason, set(answer.output or ()))
    model = agent.chain.provider
    assert isinstance(model, Model)
    last = model.requests[-1]
    assert CITY.schema == last.settings["output_schema"]
    assert json.dumps(CITY.schema) in last.messages[-1].content


@pytest.mark.parametrize("last", [{"output": None, "invalid": 9}, {"error": "invalid_request"}])
def test_a_run_with_a_schema_fails_where_the_last_call_gives_no_output(last: Any) -> None:
    """It is never completed with something else, and the limit is named."""
    agent = with_schema(CALCULATE, last)

    with pytest.raises(RunFailure, match="reached its limit of steps") as caught:
        run_loop(agent, RecordedRun())

    assert "output.invalid" == caught.value.code


def landed(agent: Agent, context: RecordedRun, *chunks: Chunk | ProviderError) -> Answer:
    """Run an agent whose model gives these last words."""
    return run_loop(replace(agent, chain=chain_of(LastWords(*chunks))), context)


def test_the_last_call_may_use_no_tools() -> None:
    """After its last step the model gets all the results, and an instruction to answer."""
    context = RecordedRun()
    agent = agent_for(CALCULATE, CALCULATE, {"say": "It is 42."}, max_steps=2)

    answer = run_loop(agent, context)

    assert ("It is 42.", "max_steps") == (answer.content, answer.stop_reason)
    *_, result, instruction = agent.chain.provider.saw()
    last = agent.chain.provider.requests[-1]
    assert isinstance(result, ToolMessage)
    assert isinstance(instruction, UserMessage)
    assert "limit of steps" in instruction.content
    assert last.tools == agent.chain.provider.requests[0].tools
    assert "none" == last.settings["tool_choice"]
    assert [False, False, True] == [one.answer_only for one in agent.chain.provider.requests]
    reached = [event for event in context.events if isinstance(event, RunLimitReached)]
    message = "The run reached its persona's limit of 2 steps."
    assert [RunLimitReached("max_steps", message)] == reached


@pytest.mark.parametrize(("max_steps", "steps"), [(1, 1), (20, 6)])
def test_the_last_call_reads_messages_that_came_with_the_last_results(
    max_steps: int, steps: int
) -> None:
    """Clients may send both together; the instruction to answer is still behind the message."""
    context = SteeredRun({steps: "In French, please."})
    agent = agent_for(*[CALCULATE] * 20, max_steps=max_steps)

    answer = run_loop(agent, context)

    assert ("max_steps" if steps == max_steps else "tool_loop") == answer.stop_reason
    *_, result, message, instruction = agent.chain.provider.saw()
    assert isinstance(result, ToolMessage)
    assert "In French, please." == message.content
    assert "no more tools can be called" in instruction.content
    assert ["message-0"] == [one.message_id for one in agent.steered]


@pytest.mark.parametrize(
    ("last_words", "is_taken"),
    [
        ([ProviderError("invalid_request", "HTTP 400")], False),
        ([TurnEnd("stop", (), SAID)], False),
        ([TextDelta("En fran"), ProviderError("invalid_request", "HTTP 400")], True),
        ([ThinkingDelta("Hm"), ProviderError("invalid_request", "HTTP 400")], False),
        ([ThinkingDelta("Hm"), TurnEnd("length", (), SAID)], False),
        ([ThinkingDelta("Hm"), TextDelta("En"), TurnEnd("stop", (), SAID)], True),
        ([TextDelta(" \n"), TurnEnd("stop", (), SAID)], False),
        ([CallDelta("{", 0, "c", "f"), TurnEnd("tool_calls", (ToolCall("c", "f", {}),))], False),
    ],
)
def test_a_last_call_without_an_answer_takes_no_message(
    last_words: list[Any], is_taken: bool
) -> None:
    """The message becomes a run of its own, as at limits of time and money."""
    context = SteeredRun({1: "In French, please."})
    agent = agent_for(CALCULATE, max_steps=1)

    answer = landed(agent, context, *last_words)

    assert "max_steps" == answer.stop_reason
    assert is_taken == any(isinstance(event, RunSteered) for event in context.events)


def test_a_model_that_repeats_itself_lands() -> None:
    """A tool loop ends with an answer."""
    context = RecordedRun()

    answer = run_loop(agent_for(*[CALCULATE] * 20), context)

    assert ("done", "tool_loop", 6) == (answer.content, answer.stop_reason, len(results(context)))


def test_calls_in_the_last_words_are_not_made() -> None:
    """A server that ignores `tool_choice` gets no tool called, and its text is the answer."""
    context = RecordedRun()
    calls = (ToolCall("c", "calculator", {"expression": "1"}),)

    answer = landed(
        agent_for(CALCULATE, max_steps=1), context, TextDelta("So"), TurnEnd("tool_calls", calls)
    )

    assert ("So", 1) == (answer.content, len(results(context)))


def test_output_in_the_last_words_may_be_a_call() -> None:
    """A server that ignores `tool_choice` may have the output given by the tool as before."""
    context = SteeredRun({1: "In French, please."})
    calls = (ToolCall("c", FINAL_TOOL, {"name": "Rome"}), ToolCall("d", "calculator", {}))

    answer = landed(
        with_schema(CALCULATE), context, TextDelta("Here:"), TurnEnd("tool_calls", calls)
    )

    assert ({"name": "Rome"}, "max_steps") == (answer.output, answer.stop_reason)
    assert '{"name": "Rome"}' == answer.content == context.streamed[-1]
    assert any(isinstance(event, RunSteered) for event in context.events)


@pytest.mark.parametrize(
    "last_words",
    [
        [TurnEnd("stop", (), SAID)],
        [TextDelta(" \n"), TurnEnd("length", (), SAID)],
        [ProviderError("invalid_request", "HTTP 400")],
        [ProviderError("overloaded", "HTTP 529")],
    ],
)
def test_a_run_that_cannot_land_says_so(last_words: list[Any]) -> None:
    """The message is streamed and completed like an answer of the model."""
    context = RecordedRun()

    answer = landed(agent_for(CALCULATE, max_steps=1), context, *last_words)

    said = "No answer: this run reached its limit of steps before the model had one."
    assert (said, "max_steps") == (answer.content, answer.stop_reason)
    assert said == context.streamed[-1]
    completed = answer.closing[0]
    assert isinstance(completed, MessageCompleted)
    assert (said, answer.message_id) == (completed.content, completed.message_id)


class WithoutFiles(RecordedRun):
    """A run whose files cannot be loaded from its second call on."""

    def __init__(self, failure: RunFailure) -> None:
        super().__init__()
        self.failure = failure

    def loaded(
        self, attachments: Sequence[Attachment]
    ) -> AbstractContextManager[Mapping[str, bytes]]:
        if results(self):
            raise self.failure
        return super().loaded(attachments)


def about_an_image(*steps: Any) -> Agent:
    image = Attachment(kind="image", file_id="1", name="a.png", media_type="image/png", size=3)
    return after(agent_for(*steps, max_steps=1), UserMessage("Look.", (image,)))


def test_a_run_lands_although_its_files_are_not_available() -> None:
    """A limit leaves an answer, also where the last call cannot be sent."""
    away = RunFailure("files.storage_unavailable", "The storage is away.", retryable=True)

    answer = run_loop(about_an_image(CALCULATE, {"say": "42"}), WithoutFiles(away))

    said = "No answer: this run reached its limit of steps before the model had one."
    assert (said, "max_steps") == (answer.content, answer.stop_reason)


def test_a_run_whose_events_cannot_be_stored_does_not_land() -> None:
    """It fails: steps of it are missing, and its answer would be without them."""
    lost = RunFailure("worker.crashed", "The run's events could not be stored.")

    with pytest.raises(RunFailure) as failed:
        run_loop(about_an_image(CALCULATE, {"say": "42"}), WithoutFiles(lost))

    assert lost is failed.value


def test_the_text_of_a_last_call_that_broke_off_is_kept() -> None:
    """What it has cost is in the turn and in the sum."""
    context = RecordedRun()
    broken = ProviderError("invalid_request", "It broke off.")

    answer = landed(agent_for(CALCULATE, max_steps=1), context, TextDelta("Half of"), broken)

    assert "Half of" == answer.content
    completed, cost = answer.closing
    assert isinstance(completed, MessageCompleted)
    assert (2, "estimated") == (completed.usage.output_tokens, completed.usage.source)
    assert context.cost() == cost


def test_a_landing_is_continued_after_a_crash() -> None:
    """The next attempt makes the last call, and says nothing anew of the limit."""
    context = RecordedRun(attempt=2)
    call = ToolCall("call_1_1", "calculator", CALCULATE["args"])
    turns = [Turn("m", "", [call], {call.id: ToolMessage(call.id, call.name, "42")})]
    agent = agent_for(CALCULATE, {"say": "42"})

    answer = loop.run(agent, context, context.stop, turns, "tool_loop")

    assert ("42", "tool_loop", []) == (answer.content, answer.stop_reason, context.events)
    assert [True] == [one.answer_only for one in agent.chain.provider.requests]
