"""The summary that takes the place of what a truncation omits."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from arkloop.shared.events.types import (
    ContextCompacted,
    ContextTruncated,
    RunCost,
    RunSettingsDropped,
)
from arkloop.shared.events.usage import Usage
from arkloop.worker import tools
from arkloop.worker.agent import loop, summaries
from arkloop.worker.agent.agent import Agent
from arkloop.worker.agent.conversation import Entry
from arkloop.worker.agent.request_builder import RequestBuilder
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.contract import retry_deadline
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Message,
    ModelRequest,
    ToolCall,
    UserMessage,
)
from arkloop.worker.contract.outcomes import ProviderError, TimeToLand
from arkloop.worker.contract.retry_deadline import OTHER_ROUTE_SECONDS
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers import anthropic_request, output_modes
from tests.worker.agent.looping_models import CALCULATE, Model, after, agent_for, run
from tests.worker.recorded_run import ROUTE, RecordedRun

FACT = "The code is tulip-7."


class Summarizing(Model):
    """Counts four characters as a token, and refuses the first summaries."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__()
        self.failures = failures

    def stream(self, request: ModelRequest, stop: StopSignal) -> Any:
        if request.is_summary and self.failures:
            self.failures -= 1
            raise ProviderError("invalid_request", "no")
        *chunks, end = super().stream(request, stop)
        yield from chunks
        tokens = sum(len(message.content) for message in request.messages) // 4
        yield replace(end, usage=Usage(input_tokens=tokens, output_tokens=9))

    @property
    def summaries(self) -> list[ModelRequest]:
        return [request for request in self.requests if request.is_summary]


def talk(turns: int) -> list[Message]:
    """Build an earlier conversation whose first message has the fact."""
    first = json.dumps({"script": [], "remember": FACT})
    said = [first, *(f"question {i} " + "word " * 60 for i in range(turns - 1))]
    return [m for text in said for m in (UserMessage(text), AssistantMessage("Yes. " * 20))]


def summing_up(
    model: Model, *steps: Any, context_tokens: int = 2_000, max_output_tokens: int | None = 200
) -> Agent:
    route = replace(ROUTE, context_tokens=context_tokens, max_output_tokens=max_output_tokens)
    agent = agent_for(*(steps or [{"find": "The code"}]), compaction="summary", tools=())
    return replace(agent, chain=RouteChain([route], lambda _: model), tools={})


def of_type(context: RecordedRun, kind: type) -> list[Any]:
    return [event for event in context.events if isinstance(event, kind)]


def test_what_is_omitted_is_summarized() -> None:
    """A call with the omitted beginning makes the summary that the answer needs."""
    model = Summarizing()
    context = RecordedRun()

    answer = run(after(summing_up(model), *talk(12)), context)

    [compacted] = of_type(context, ContextCompacted)
    [asked], sent = model.summaries, model.requests[-1]
    assert FACT == answer.content
    assert f"remember: {FACT}" == compacted.summary
    assert 0 < compacted.dropped_messages < 24
    assert talk(12)[: len(asked.messages) - 1] == asked.messages[:-1]
    assert asked.tools == sent.tools and asked.system_prompt == sent.system_prompt
    assert compacted.summary in sent.messages[0].content
    # A summary may repeat what a tool has said: it never becomes an instruction of the system.
    assert isinstance(sent.messages[0], UserMessage)
    assert sent.messages[1] == talk(12)[compacted.upto_position - 1]
    # Its text is no part of the answer, and its cost is the run's.
    assert FACT == "".join(context.streamed)
    assert [] == of_type(context, ContextTruncated)
    [cost] = of_type(context, RunCost)
    assert (9, 18) == (cost.usage.output_tokens, context.usage.output_tokens)


@pytest.mark.parametrize("chosen", [None, "required", "none"])
def test_anthropic_has_all_but_the_instruction_in_its_cache(chosen: str | None) -> None:
    """Its cache has no message of a request with another `tool_choice` than the one before."""
    model, context = Summarizing(), RecordedRun()
    settings = {"tool_choice": chosen} if chosen else {}
    agent = after(summing_up(model, CALCULATE, {"say": "ok"}), *talk(40))
    route = replace(agent.chain.route, provider="anthropic", context_tokens=6_000)
    persona = replace(agent.persona, tools=("calculator",), model_settings=settings)
    agent = replace(agent, chain=RouteChain([route], lambda _: model), persona=persona)

    run(replace(agent, tools=tools.load(persona.tools)), context)

    asked, step = map(anthropic_request.arguments, (model.summaries[0], model.requests[-1]))
    assert asked["extra_body"] == step["extra_body"]
    assert (asked["system"], asked["tools"]) == (step["system"], step["tools"])
    assert "cache_control" in asked["messages"][-1]["content"][-1]


@pytest.mark.parametrize(("context_tokens", "most"), [(2_000, 1_000), (20_000, 4_096)])
def test_a_small_context_has_room_for_the_summary(context_tokens: int, most: int) -> None:
    """Where nobody limits the output, it may have half of the context at most, as answers may."""
    model = Summarizing()
    agent = summing_up(model, context_tokens=context_tokens, max_output_tokens=None)

    run(after(agent, *talk(6 * context_tokens // 1_000)), RecordedRun())

    assert {most} == {asked.max_output_tokens for asked in model.summaries}


def test_what_no_cache_can_have_is_not_written_to_it() -> None:
    """Without the schema that the steps have, the vendor's cache does not apply."""
    settings = {output_modes.SETTING: {"type": "object"}}
    step = ModelRequest(model="m", system_prompt="", messages=[], settings=settings)

    asked = summaries.request_for(step, [], 100, replace(ROUTE, provider="anthropic"))

    assert (False, {}) == (asked.may_cache, asked.settings)


@pytest.mark.parametrize(
    "end_fields",
    [{"tool_calls": (ToolCall("c", "calculator", {}),)}, {"stop_reason": "content_filter"}],
    ids=["a tool call", "a refusal"],
)
def test_what_sums_up_nothing_is_no_summary(end_fields: dict[str, Any]) -> None:
    """It is paid for once; the conversation is truncated, and an earlier summary stays."""

    class Otherwise(Summarizing):
        def stream(self, request: ModelRequest, stop: StopSignal) -> Any:
            *chunks, end = super().stream(request, stop)
            yield from chunks
            yield replace(end, **end_fields) if request.is_summary else end

    model, context = Otherwise(), RecordedRun()

    run(after(summing_up(model), *talk(12)), context)

    [compacted] = of_type(context, ContextCompacted)
    assert (None, 1) == (compacted.summary, len(model.summaries))
    assert 1 == len(of_type(context, RunCost))


@pytest.mark.parametrize("failures", [1, 99])
def test_without_a_summary_the_thread_is_truncated(failures: int) -> None:
    """The run continues without it."""
    model = Summarizing(failures)
    context = RecordedRun()

    answer = run(after(summing_up(model), *talk(12)), context)

    [compacted] = of_type(context, ContextCompacted)
    assert (None, "nothing") == (compacted.summary, answer.content)
    assert 1 == len(of_type(context, ContextTruncated))


def test_a_setting_that_the_route_lacks_is_reported_once_in_the_run() -> None:
    """The call for the answer and those for several summaries drop it."""

    class Lacking(Summarizing):
        settings = frozenset({"tool_choice"})

    model, context = Lacking(), RecordedRun()
    agent = after(summing_up(model), *talk(40))
    persona = replace(agent.persona, model_settings={"seed": 7})

    run(replace(agent, persona=persona), context)

    assert 1 < len(model.summaries)
    assert [RunSettingsDropped(ROUTE.id, ["seed"])] == of_type(context, RunSettingsDropped)


@pytest.mark.parametrize(("has_other", "summary"), [(True, None), (False, f"remember: {FACT}")])
def test_a_busy_route_holds_up_a_summary_only_where_the_run_has_no_other(
    monkeypatch: pytest.MonkeyPatch, has_other: bool, summary: str | None
) -> None:
    """The run's other route would be free; without one the call for the answer waits, too."""

    class Busy(Summarizing):
        def stream(self, request: ModelRequest, stop: StopSignal) -> Any:
            if has_other or sum(context.paused) < 60:
                raise ProviderError("rate_limited", "no", retry_after=2)
            return super().stream(request, stop)

    context, busy, free = RecordedRun(), Busy(), Summarizing()
    monkeypatch.setattr(retry_deadline, "monotonic", lambda: sum(context.paused))
    agent = after(summing_up(busy), *talk(12))
    first = agent.chain.route
    routes = [first, replace(first, id="scripted-2")][: 1 + has_other]
    models = {first.id: busy, "scripted-2": free}

    run(replace(agent, chain=RouteChain(routes, lambda route: models[route.id])), context)

    [compacted] = of_type(context, ContextCompacted)
    assert summary == compacted.summary
    assert (2 * OTHER_ROUTE_SECONDS >= sum(context.paused)) == has_other


@pytest.mark.parametrize(("turns", "omits"), [(40, False), (300, True)])
def test_a_part_that_no_request_can_hold_takes_several_calls(turns: int, omits: bool) -> None:
    """Each has the summary so far; beyond eight calls the rest is omitted."""
    model = Summarizing()
    context = RecordedRun()

    answer = run(after(summing_up(model), *talk(turns)), context)

    assert FACT == answer.content
    assert (len(model.summaries) == 8) == omits == bool(of_type(context, ContextTruncated))
    for request in model.requests[1:]:
        assert FACT in request.messages[0].content
        assert sum(len(m.content) for m in request.messages) / 3 <= 2_000


def test_a_finished_summary_is_not_paid_for_again() -> None:
    """A worker that takes over after it finds it with the thread."""
    model, context = Summarizing(), RecordedRun()
    agent = after(summing_up(model), *talk(12))
    run(agent, context)
    history = replace(agent.history, contexts=context.contexts)

    assert FACT == run(replace(agent, history=history), RecordedRun()).content

    assert 1 == len(model.summaries)


@pytest.mark.parametrize(
    ("reason", "expected"), [("timeout", 0), ("budget", 0), ("max_steps", 1), ("tool_loop", 1)]
)
def test_what_is_left_at_the_end_of_time_or_money_is_for_the_answer(
    reason: str, expected: int
) -> None:
    """The last call of such a run gets a conversation that is truncated, and not summarized."""
    model, context = Summarizing(), RecordedRun()
    agent = after(summing_up(model, {"say": "So."}), *talk(12))

    answer = loop.run(agent, context, context.stop, [], reason)

    assert ("So.", reason) == (answer.content, answer.stop_reason)
    assert expected == len(model.summaries)
    assert (not expected) == bool(of_type(context, ContextTruncated))


def test_a_summary_that_the_end_of_time_has_cut_off_is_not_begun_again() -> None:
    """The time that is reserved for the last call is used for it."""

    begun: list[ModelRequest] = []

    class Slow(Summarizing):
        def stream(self, request: ModelRequest, stop: StopSignal) -> Any:
            if request.is_summary:
                begun.append(request)
                stop.set(TimeToLand())
                stop.check()
            yield from super().stream(request, stop)

    context = RecordedRun()

    answer = run(after(summing_up(Slow(), {"say": "So."}), *talk(12)), context)

    assert ("So.", "timeout") == (answer.content, answer.stop_reason)
    assert 1 == len(begun)


def test_a_fact_of_turn_1_of_1000_is_found() -> None:
    """Each turn is a run of its own, and the context holds a few of them."""
    model = Summarizing()
    agent = after(summing_up(model, {"say": "ok"}))
    entries: list[Entry] = []
    contexts: dict[int, ContextCompacted] = {}
    for turn in range(1_000):
        text = talk(2)[0 if turn == 0 else 2].content
        if turn == 999:
            text = json.dumps({"script": [{"find": "The code"}]})
        entries.append(Entry(2 * turn + 1, 1, [UserMessage(text)]))
        history = replace(agent.history, entries=entries[-40:], contexts=contexts)
        context = RecordedRun()
        answer = run(replace(agent, history=history, position=2 * turn + 2), context)
        contexts = {**contexts, **context.contexts}
        entries.append(Entry(2 * turn + 2, 2, [AssistantMessage(answer.content)]))

    assert FACT == answer.content
    assert 20 < len(model.summaries) < 1_000 / 3


def test_a_long_conversation_is_looked_up_in_one_go() -> None:
    """What is to be summarized of 4,000 messages is found about as fast as what is sent.

    One by one it took 16 ms of the process, in which no other run got on. Calls are counted here
    instead of seconds, which depend on what else the machine does.
    """
    said = [UserMessage("Is it so?"), AssistantMessage("Yes.")] * 2_000
    agent = after(summing_up(Summarizing(), context_tokens=200_000), *said)
    builder, route = RequestBuilder(agent, RecordedRun(), []), agent.chain.route
    entries = builder._entries()

    def calls_of(call: Callable[[], object]) -> int:
        counts = Counter[str]()
        sys.setprofile(lambda _frame, event, _argument: counts.update([event]))
        try:
            call()
        finally:
            sys.setprofile(None)
        return counts["call"] + counts["c_call"]

    def look_at_all() -> None:
        builder._estimate(route)
        builder._kept(route)

    end, messages = builder._to_summarize(route, entries, 0, 3_900)
    assert (3_900, 3_900) == (end, len(messages))
    found = calls_of(lambda: builder._to_summarize(route, entries, 0, 3_900))
    assert found < 2.2 * calls_of(look_at_all)
