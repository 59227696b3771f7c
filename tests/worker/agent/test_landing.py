"""Runs that reach a limit: the last call, and the answer that is left whatever comes of it."""

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.events.types import MessageCompleted, RunCost, RunLimitReached
from arkloop.shared.events.usage import Usage
from arkloop.worker import providers
from arkloop.worker.agent import landing, loop
from arkloop.worker.agent.agent import Agent
from arkloop.worker.agent.conversation import Turn
from arkloop.worker.agent.loop import Answer
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.agent.structured_output import OutputSchema
from arkloop.worker.contract.context import Plan, ToolContext
from arkloop.worker.contract.messages import (
    Chunk,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    ToolMessage,
    TurnEnd,
    UserMessage,
)
from arkloop.worker.contract.outcomes import (
    DeadlineExceeded,
    LimitExceeded,
    ProviderError,
    RunFailure,
    ShuttingDown,
    TimeToLand,
)
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers.output_modes import FINAL_TOOL
from arkloop.worker.tools import tool
from tests.waiting import eventually
from tests.worker.agent.test_loop import CALCULATE, Model, agent_for, results
from tests.worker.agent.test_loop import run as run_loop
from tests.worker.providers.fake_vendor import delta, openai_stream, raw, route_to, vendor
from tests.worker.recorded_run import ROUTE, RecordedRun, chain_of

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


class LastWords(Model):
    """The scripted model, which answers its last call with these chunks, or fails it."""

    def __init__(self, *chunks: Chunk | ProviderError) -> None:
        super().__init__()
        self._chunks = chunks

    def stream(self, request: ModelRequest, stop: StopSignal) -> Iterator[Chunk]:
        if not request.answer_only:
            yield from super().stream(request, stop)
            return
        self.requests.append(request)
        for chunk in self._chunks:
            if isinstance(chunk, ProviderError):
                raise chunk
            yield chunk


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
    context = RecordedRun()
    call = ToolCall("c", FINAL_TOOL, {"name": "Rome"})

    answer = landed(
        with_schema(CALCULATE), context, TextDelta("Here:"), TurnEnd("tool_calls", (call,))
    )

    assert ({"name": "Rome"}, "max_steps") == (answer.output, answer.stop_reason)
    assert '{"name": "Rome"}' == answer.content == context.streamed[-1]


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


def test_time_for_the_last_call_is_left_of_a_call_that_still_thinks() -> None:
    """What it has thought is void and paid for."""
    context = RecordedRun()
    stop = context.stop

    class Ponderous(LastWords):
        def stream(self, request: ModelRequest, stop: StopSignal) -> Iterator[Chunk]:
            if not request.answer_only:
                yield ThinkingDelta("Hm, well")
                stop.set(TimeToLand())
                stop.check()
            yield from super().stream(request, stop)

    agent = replace(agent_for(), chain=chain_of(Ponderous(TextDelta("So."), TurnEnd("stop"))))
    answer = run_loop(agent, context)

    assert ("So.", "timeout") == (answer.content, answer.stop_reason)
    [cost, reached] = context.events
    assert isinstance(cost, RunCost)
    assert (2, ["run.timeout"]) == (cost.usage.output_tokens, context.voided)
    assert RunLimitReached("timeout", "The run's 900 s are nearly over.") == reached
    assert not stop.can_land


def test_the_last_call_has_connections_of_its_own() -> None:
    """Those of a call that was interrupted are cut for good."""
    context = RecordedRun()

    def silent(client: socket.socket) -> None:
        context.stop.set(TimeToLand())
        client.recv(1)  # until it is cut

    with vendor(silent, raw(openai_stream(delta(content="So.", finish="stop")))) as fake:
        route = route_to("openai", fake.url)
        chain = RouteChain([route], lambda route: providers.load(route, faults=False))
        answer = run_loop(replace(agent_for(), chain=chain), context)
        chain.close()

    assert ("So.", "timeout", 2) == (answer.content, answer.stop_reason, len(fake.bodies))


def test_a_text_that_may_be_the_answer_is_not_interrupted() -> None:
    """It is completed as if there had been no limit."""
    context = RecordedRun()

    class Talkative(LastWords):
        def stream(self, request: ModelRequest, stop: StopSignal) -> Iterator[Chunk]:
            yield TextDelta("It ")
            stop.set(TimeToLand())
            stop.check()
            yield TextDelta("is 42.")
            yield TurnEnd("stop")

    answer = run_loop(replace(agent_for(), chain=chain_of(Talkative())), context)

    assert ("It is 42.", "stop") == (answer.content, answer.stop_reason)
    assert not context.stop.is_answering


def test_calls_without_time_get_results() -> None:
    """A call that has ended keeps its result; the others say whether they may have happened."""
    context = RecordedRun(attempt=2, begun=["begun"])
    call = ToolCall("done", "calculator", CALCULATE["args"])
    calls = [call, ToolCall("begun", "once", {}), ToolCall("open", "once", {})]
    turns = [Turn("m", "", calls, {"done": ToolMessage("done", "calculator", "42")})]
    context.stop.can_land = True
    context.stop.set(TimeToLand())

    def checkpoint() -> None:
        context.stop.check()

    context.checkpoint = checkpoint  # type: ignore[method-assign]  # to note calls
    agent = agent_for(CALCULATE, {"say": "ok"})
    answer = loop.run(agent, context, context.stop, turns)

    assert ("ok", "timeout") == (answer.content, answer.stop_reason)
    over = "The run's time was over during this call; it may or may not have taken effect."
    assert [("begun", over, True), ("open", "Not executed: the run's time is over.", True)] == (
        results(context)
    )
    assert ["done", "begun", "open"] == [
        m.tool_call_id for m in agent.chain.provider.saw() if isinstance(m, ToolMessage)
    ]


def test_a_tool_without_time_is_left() -> None:
    """Its result keeps its place among those of the turn's other calls."""
    recorded = RecordedRun()

    @tool(idempotent=False)
    def linger(context: ToolContext) -> str:
        """Wait for the other call, then until the run has to stop."""
        eventually(lambda: bool(recorded.done))
        recorded.stop.set(TimeToLand())
        context.check()
        return "late"

    agent = agent_for({"tools": [{"tool": "linger"}, CALCULATE]}, extra={"linger": linger})

    answer = run_loop(agent, recorded)

    assert ("done", "timeout") == (answer.content, answer.stop_reason)
    over = "The run's time was over during this call; it may or may not have taken effect."
    assert [("call_1_1", over, True), ("call_1_2", "42", False)] == results(recorded)


class Poor(RecordedRun):
    """A run whose budget pays for this much output of each step, or for `last` of its last call."""

    def __init__(self, output: int, last: int = 100) -> None:
        super().__init__()
        self.is_limited = True
        self._pays = {False: output, True: last}

    def reserve(self, route: Route, worst_case: Usage, plan: Plan | None = None) -> None:
        super().reserve(route, worst_case, plan)
        pays = self._pays[plan is None]
        if worst_case.output_tokens > pays:
            excess = (worst_case.output_tokens - pays) * Decimal(2) / 1_000_000
            cost = ROUTE.cost(worst_case) - excess
            raise LimitExceeded("budget.exhausted", "1 USD", affordable_usd=cost)


class Verbose(LastWords):
    """A model that uses all the output it is given, `length` after this text."""

    def __init__(self, said: str, *last_words: Chunk) -> None:
        super().__init__(*last_words)
        self._said = said

    def worst_case(self, request: ModelRequest) -> Usage:
        return Usage(output_tokens=request.max_output_tokens or 0)

    def stream(self, request: ModelRequest, stop: StopSignal) -> Iterator[Chunk]:
        if request.answer_only:
            yield from super().stream(request, stop)
            return
        self.requests.append(request)
        yield TextDelta(self._said)
        yield TurnEnd("length", (), Usage(output_tokens=request.max_output_tokens))


def test_an_answer_that_the_budget_cuts_off_says_so() -> None:
    """Its output was shortened to what the budget could pay."""
    model = Verbose("It is")
    agent = replace(agent_for(max_output_tokens=2000), chain=chain_of(model))

    answer = run_loop(agent, Poor(1000))

    assert ("It is", "budget") == (answer.content, answer.stop_reason)
    assert [999] == [one.max_output_tokens for one in model.requests]


def test_output_that_the_budget_cuts_off_before_any_text_leads_to_the_last_call() -> None:
    """The model's reasoning has used up what could be paid: the last call has what is left."""
    model = Verbose("", TextDelta("So."), TurnEnd("stop"))
    context = Poor(1000)

    answer = run_loop(replace(agent_for(max_output_tokens=2000), chain=chain_of(model)), context)

    assert ("So.", "budget") == (answer.content, answer.stop_reason)
    assert [999, 99] == [one.max_output_tokens for one in model.requests]
    assert ["budget.exhausted"] == context.voided


def test_a_step_that_cannot_be_paid_is_the_last_call() -> None:
    """Less output than a tool call needs is not worth a step."""
    model = Verbose("", TextDelta("So."), TurnEnd("stop"))

    answer = run_loop(
        replace(agent_for(max_output_tokens=2000), chain=chain_of(model)), Poor(500, last=1)
    )

    assert ("So.", "budget") == (answer.content, answer.stop_reason)
    assert [1] == [one.max_output_tokens for one in model.requests]


def test_the_last_call_ends_with_the_runs_time() -> None:
    """The text until then is the answer."""
    context = RecordedRun()

    class Endless(LastWords):
        def stream(self, request: ModelRequest, stop: StopSignal) -> Iterator[Chunk]:
            if request.answer_only:
                yield TextDelta("It is ")
                stop.set(DeadlineExceeded(1.0))
                stop.check()
            yield from super().stream(request, stop)

    agent = replace(agent_for(CALCULATE, max_steps=1), chain=chain_of(Endless()))
    answer = run_loop(agent, context)

    assert ("It is ", "max_steps") == (answer.content, answer.stop_reason)


def test_a_stopping_worker_does_not_begin_the_last_call() -> None:
    """The next worker makes it: the limit is in the events."""
    context = RecordedRun()
    agent = agent_for(CALCULATE, max_steps=1)
    turns: list[Turn] = []
    agent.draining.set()

    with pytest.raises(ShuttingDown):
        loop.run(agent, context, context.stop, turns, "max_steps")

    assert [] == agent.chain.provider.requests
