"""Landing where time or money runs out."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

import pytest

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.types import RunCost, RunLimitReached
from arkloop.shared.events.usage import Usage
from arkloop.worker import providers
from arkloop.worker.agent import loop
from arkloop.worker.agent.conversation import Turn
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.contract.context import Plan, ToolContext
from arkloop.worker.contract.messages import (
    Chunk,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    ToolMessage,
    TurnEnd,
)
from arkloop.worker.contract.outcomes import (
    DeadlineExceeded,
    LimitExceeded,
    RunFailure,
    ShuttingDown,
    TimeToLand,
)
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.tools import tool
from tests.waiting import eventually
from tests.worker.agent.landing_models import LastWords
from tests.worker.agent.looping_models import CALCULATE, SteeredRun, agent_for, results
from tests.worker.agent.looping_models import run as run_loop
from tests.worker.providers.fake_vendor import delta, openai_stream, raw, route_to, vendor
from tests.worker.recorded_run import ROUTE, RecordedRun, chain_of


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
    """Connections of a call that was interrupted are cut for good."""
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


def test_an_answer_that_comes_as_the_run_lands_is_read() -> None:
    """The person has answered in time: the last call has it."""
    context = RecordedRun(attempt=2)
    turns = [Turn("m", "", [ToolCall("asked", "ask_user", {})], answers={"asked": "Rome"})]
    context.stop.can_land = True
    context.stop.set(TimeToLand())
    context.checkpoint = context.stop.check  # type: ignore[method-assign]  # as the real one does
    agent = agent_for({"say": "ok"})

    loop.run(agent, context, context.stop, turns)

    assert [("asked", "Rome", False)] == results(context)


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


def test_messages_that_arrive_when_time_is_over_are_not_for_the_last_call() -> None:
    """A run of their own has the time to answer them."""
    recorded = SteeredRun({1: "In French, please."})

    @tool(idempotent=False)
    def linger(context: ToolContext) -> str:
        """Wait until the run has to stop."""
        recorded.stop.set(TimeToLand())
        context.check()
        return "late"

    agent = agent_for({"tool": "linger"}, extra={"linger": linger})

    answer = run_loop(agent, recorded)

    assert ("timeout", []) == (answer.stop_reason, agent.steered)
    assert "In French, please." not in [m.content for m in agent.chain.provider.saw()]


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

    is_context_full = False

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
        used = Usage(output_tokens=request.max_output_tokens)
        yield TurnEnd("length", (), used, is_context_full=self.is_context_full)


def test_an_answer_that_the_budget_cuts_off_says_so() -> None:
    """Its output was shortened to what the budget could pay."""
    model = Verbose("It is")
    agent = replace(agent_for(max_output_tokens=2000), chain=chain_of(model))
    context = Poor(1000)

    answer = run_loop(agent, context)

    assert ("It is", "budget", 0) == (answer.content, answer.stop_reason, context.exhausted)
    assert [999] == [one.max_output_tokens for one in model.requests]


@pytest.mark.parametrize("said", ["It is", ""])
def test_an_answer_that_a_full_context_cuts_off_is_no_matter_of_the_budget(said: str) -> None:
    """With more money, it would have been cut off as well."""
    model = Verbose(said)
    model.is_context_full = True
    agent = replace(agent_for(max_output_tokens=2000), chain=chain_of(model))
    context = Poor(1000)

    if said:
        assert "length" == run_loop(agent, context).stop_reason
    else:
        with pytest.raises(RunFailure, match="filled its context"):
            run_loop(agent, context)

    assert [999] == [one.max_output_tokens for one in model.requests]
    assert [] == context.voided


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
