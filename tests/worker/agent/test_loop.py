"""The agent loop: steps, tools, questions, limits; and where a run resumes."""

import json
import threading
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from arkloop.shared import times
from arkloop.shared.catalog import personas
from arkloop.shared.events.stored_events import encode
from arkloop.shared.events.tool_output import MAX_OUTPUT_BYTES, cut
from arkloop.shared.events.types import (
    MessageCompleted,
    RouteCost,
    RunCost,
    ToolCallRequested,
    ToolResult,
)
from arkloop.shared.events.usage import Usage
from arkloop.worker import tools
from arkloop.worker.agent import loop
from arkloop.worker.agent.agent import Agent
from arkloop.worker.agent.conversation import Turn
from arkloop.worker.agent.loop import Answer
from arkloop.worker.agent.permitted_calls import UNKNOWN_OUTCOME
from arkloop.worker.agent.questions import MAX_CALLS_PER_TURN
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Message,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    ToolMessage,
    TurnEnd,
    UserMessage,
)
from arkloop.worker.contract.outcomes import (
    CancelRequested,
    LimitExceeded,
    RunFailure,
    ShuttingDown,
    WaitForInput,
)
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers.scripted_provider import ScriptedProvider
from arkloop.worker.tools import CallInfo, Tool, tool
from tests.worker.recorded_run import ROUTE, RUN, RecordedRun, chain_of, history_of

#: Of the run in its thread, after everything else.
POSITION = 1_000_000
CALCULATE = {"tool": "calculator", "args": {"expression": "6*7"}}


class Model(ScriptedProvider):
    """The scripted model, with the requests that it got."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[ModelRequest] = []

    def stream(self, request: ModelRequest, stop: StopSignal) -> Any:
        self.requests.append(request)
        return super().stream(request, stop)

    def saw(self, number: int = -1) -> list[Message]:
        return list(self.requests[number].messages)


def agent_for(*steps: Any, extra: dict[str, Tool] | None = None, **changes: Any) -> Agent:
    """Build an agent that plays a script."""
    persona = replace(personas.builtin()[changes.pop("persona", "assistant@1")], **changes)
    return Agent(
        identity=RUN,
        persona=persona,
        chain=chain_of(Model()),
        tools={**tools.load(persona.tools), **(extra or {})},
        history=history_of(UserMessage(json.dumps({"script": steps}))),
        position=POSITION,
        draining=threading.Event(),
    )


def after(agent: Agent, *earlier: Message) -> Agent:
    """Return the agent in a thread that begins with these messages."""
    return replace(agent, history=history_of(*earlier, *agent.history.messages))


def run(agent: Agent, context: RecordedRun, turns: list[Turn] | None = None) -> Answer:
    return loop.run(agent, context, context.stop, [] if turns is None else turns)


def results(context: RecordedRun) -> list[tuple[str, str, bool]]:
    return [
        (event.tool_call_id, event.output, event.is_error)
        for event in context.events
        if isinstance(event, ToolResult)
    ]


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


@tool(idempotent=False)
def once(context: ToolContext, info: CallInfo) -> str:
    """Run only once."""
    return f"ran with {info.idempotency_key}"


@tool(idempotent=True)
def broken(context: ToolContext) -> str:
    """Raise an internal error."""
    raise RuntimeError("oh no")


def test_a_call_has_a_stable_key() -> None:
    """The run and the call: the same whenever it is repeated."""
    context = RecordedRun()

    run(agent_for({"tool": "once"}, extra={"once": once}), context)

    assert [("call_1_1", "ran with run:call_1_1", False)] == results(context)


def test_a_call_that_began_before_a_crash_is_repeated_only_if_it_may_be() -> None:
    """Otherwise the model reads that the outcome is unknown."""
    calls = [
        ToolCall("call_1_1", "once", {}),
        ToolCall("call_1_2", "calculator", CALCULATE["args"]),
    ]
    context = RecordedRun(attempt=2, begun=["call_1_1", "call_1_2"])

    run(agent_for({"tool": "once"}, extra={"once": once}), context, [Turn("m", "", calls)])

    assert [("call_1_1", UNKNOWN_OUTCOME, True), ("call_1_2", "42", False)] == results(context)


def test_a_call_that_did_not_begin_before_a_crash_is_made() -> None:
    """After a crash, a call that had not begun is made, and one that has a result is not
    repeated.
    """
    calls = [ToolCall("call_1_1", "once", {}), ToolCall("call_1_2", "once", {})]
    turn = Turn("m", "", calls, {"call_1_1": ToolMessage("call_1_1", "once", "before")})
    agent = agent_for({"tool": "x"}, {"say": "b"}, extra={"once": once})
    context = RecordedRun(attempt=2, begun=["call_1_1"])

    answer = run(agent, context, [turn])

    assert [("call_1_2", "ran with run:call_1_2", False)] == results(context)
    assert "b" == answer.content
    assert ["before", "ran with run:call_1_2"] == [
        m.content for m in agent.chain.provider.saw()[-2:]
    ]


def test_a_last_word_before_a_crash_is_not_asked_for_again() -> None:
    """The finished turn is the answer."""
    agent = agent_for({"say": "x"})

    answer = run(agent, RecordedRun(attempt=2), [Turn("m", "the end")])

    assert Answer(message_id="m", content="the end", stop_reason="stop") == answer
    assert [] == agent.chain.provider.requests


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ({"tool": "none"}, "Unknown tool 'none'."),
        ({"tool": "broken"}, "The tool failed: RuntimeError."),
        ({"tool": "calculator"}, "Missing argument 'expression'."),
        ({"tool": "ask_user", "args": {"question": "?", "options": "x"}}, "of type null or array"),
    ],
)
def test_a_tool_that_fails_does_not_end_the_run(call: dict[str, Any], why: str) -> None:
    """A failing tool does not end the run; the model reads the reason."""
    context = RecordedRun()

    answer = run(agent_for(call, {"say": "ok"}, extra={"broken": broken}), context)

    [(_, output, is_error)] = results(context)
    assert "ok" == answer.content
    assert is_error
    assert why in output


def test_a_question_parks_the_run_before_any_tool_runs() -> None:
    """Questions are asked in call order, and answered ones not again."""
    calls = [
        ToolCall("c1", "once", {}),
        ToolCall("c2", "ask_user", {"question": "A?", "options": ["x"]}),
        ToolCall("c3", "ask_user", {"question": "B?"}),
    ]
    context = RecordedRun()
    agent = agent_for({"tool": "x"}, {"say": "ok"}, extra={"once": once})
    turn = Turn("m", "", calls)

    with pytest.raises(WaitForInput) as first:
        run(agent, context, [turn])
    assert ("question", "A?", "c2", ["x"]) == (
        first.value.kind,
        first.value.prompt,
        first.value.tool_call_id,
        first.value.options,
    )
    turn.answers["c2"] = "one"
    with pytest.raises(WaitForInput) as second:
        run(agent, context, [turn])
    assert ("c3", None) == (second.value.tool_call_id, second.value.options)
    assert [] == context.events
    turn.answers["c3"] = "two"

    run(agent, context, [turn])

    assert [
        ("c1", "ran with run:c1", False),
        ("c2", "one", False),
        ("c3", "two", False),
    ] == results(context)


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        ("yes", ("c1", "42", False)),
        (" Approve ", ("c1", "42", False)),
        ("no", ("c1", "The call was denied: no", True)),
    ],
)
def test_a_tool_that_requires_approval_asks_first(
    answer: str, result: tuple[str, str, bool]
) -> None:
    """A yes lets it run, a no does not."""
    turn = Turn("m", "", [ToolCall("c1", "calculator", CALCULATE["args"])])
    agent = agent_for({"tool": "x"}, {"say": "ok"}, persona="careful@1")
    context = RecordedRun()
    with pytest.raises(WaitForInput) as asked:
        run(agent, context, [turn])
    assert ("tool_confirmation", "c1") == (asked.value.kind, asked.value.tool_call_id)

    turn.answers["c1"] = answer
    run(agent, context, [turn])

    assert [result] == results(context)


def test_a_call_that_cannot_be_made_requests_no_approval() -> None:
    """Nobody is asked about arguments that do not fit."""
    context = RecordedRun()

    run(agent_for({"tool": "calculator"}, {"say": "ok"}, persona="careful@1"), context)

    assert results(context)[0][2]


def test_nobody_is_asked_about_a_call_beyond_the_last_that_is_made() -> None:
    """A call beyond the limit of a turn is refused without a question."""
    calls = [ToolCall(f"c{i}", "ask_user", {"question": "A?"}) for i in range(70)]
    turn = Turn("m", "", calls, answers={call.id: "yes" for call in calls[:MAX_CALLS_PER_TURN]})
    context = RecordedRun()

    answer = run(agent_for({"tool": "x"}, {"say": "ok"}), context, [turn])

    assert "ok" == answer.content
    assert [i >= MAX_CALLS_PER_TURN for i in range(70)] == [error for *_, error in results(context)]


def test_the_calls_of_a_turn_run_side_by_side() -> None:
    """Two that wait for each other get through; results come in call order."""
    meeting = threading.Barrier(2)

    @tool(idempotent=True)
    def meet(context: ToolContext, name: str) -> str:
        """Wait for the other one."""
        meeting.wait(5)
        return name

    calls = [{"tool": "meet", "args": {"name": name}} for name in ("a", "b")]
    context = RecordedRun()

    run(agent_for({"tools": calls}, extra={"meet": meet}), context)

    assert [("call_1_1", "a", False), ("call_1_2", "b", False)] == results(context)


def test_a_stop_in_a_tool_keeps_the_results_of_the_others() -> None:
    """The run stops, and what is done is done."""
    context = RecordedRun()

    @tool(idempotent=True)
    def stop(context: ToolContext) -> str:
        """Stop; an `except Exception` of the tool's own cannot swallow it."""
        try:
            raise CancelRequested
        except Exception:
            return "swallowed"

    calls = {"tools": [{"tool": "stop"}, CALCULATE]}
    with pytest.raises(CancelRequested):
        run(agent_for(calls, extra={"stop": stop}), context)

    assert [("call_1_2", "42", False)] == results(context)


def test_a_process_that_ends_hands_over_between_steps() -> None:
    """A stopping process hands a run over between steps, but not before the first step of its
    claim.
    """
    agent = agent_for(CALCULATE, {"say": "x"})
    agent.draining.set()
    context = RecordedRun()

    with pytest.raises(ShuttingDown):
        run(agent, context)

    assert 1 == len(results(context))


@pytest.mark.parametrize("size", [0, 1, MAX_OUTPUT_BYTES - 1, MAX_OUTPUT_BYTES])
def test_output_of_up_to_64_kib_stays_as_it_is(size: int) -> None:
    """Output of up to 64 KiB of UTF-8 is kept unchanged."""
    assert ("x" * size, None) == cut("x" * size)


@pytest.mark.parametrize(
    "output", ["x" * (MAX_OUTPUT_BYTES + 1), "€" * 30_000, "\U0001f600" * 20_000, "x" * 5_000_000]
)
def test_longer_output_is_cut_and_says_so(output: str) -> None:
    """Never in the middle of a character."""
    short, characters = cut(output)
    assert len(output) == characters

    assert MAX_OUTPUT_BYTES - 8 <= len(short.encode()) <= MAX_OUTPUT_BYTES
    head, mark, tail = short.partition(f"\n[truncated: the output had {len(output)} characters]\n")
    assert head and mark and tail
    assert output.startswith(head) and output.endswith(tail)


def test_output_is_cleaned() -> None:
    """NUL and lone surrogates, which Postgres cannot store."""
    assert ("a\ufffdb\ufffd", None) == cut("a\x00b\ud800")


def test_events_of_a_turn_can_be_encoded() -> None:
    """Events of a turn can be encoded, whatever the model calls a tool with."""
    context = RecordedRun()
    run(agent_for({"tool": "none\x00", "args": {"a\ud800": ["\x00", 1.5, None]}}), context)

    [call] = [event for event in context.events if isinstance(event, ToolCallRequested)]
    assert "tool.call" == encode(1, call, times.now()).type
