"""Tools within the loop: keys, crashes, approvals, and what is kept of their output."""

import threading
from dataclasses import replace
from typing import Any

import pytest

from arkloop.shared.events.tool_output import MAX_OUTPUT_BYTES, cut
from arkloop.worker.agent.conversation import Turn
from arkloop.worker.agent.permitted_calls import UNKNOWN_OUTCOME
from arkloop.worker.agent.questions import MAX_CALLS_PER_TURN
from arkloop.worker.agent.structured_output import OutputSchema
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.contract.messages import ToolCall, ToolMessage
from arkloop.worker.contract.outcomes import CancelRequested, ShuttingDown, WaitForInput
from arkloop.worker.providers.output_modes import FINAL_TOOL
from arkloop.worker.tools import CallInfo, tool
from tests.worker.agent.looping_models import CALCULATE, agent_for, results, run
from tests.worker.recorded_run import RecordedRun


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


def test_the_final_tool_is_called_alone() -> None:
    """A call of it among others is refused: these are made, and their results may change it."""
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    both = {"tools": [{"tool": FINAL_TOOL, "args": {"sum": 1}}, CALCULATE]}
    agent = agent_for(both, {"output": {"sum": 42}}, output_schema=schema)
    context = RecordedRun()

    answer = run(replace(agent, output=OutputSchema(schema)), context)

    refused = "Not accepted: call 'final_answer' alone, when you have all results."
    assert [("call_1_1", refused, True), ("call_1_2", "42", False)] == results(context)
    assert {"sum": 42} == answer.output


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
        meeting.wait(60)
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
    """No character is cut in its middle."""
    short, characters = cut(output)
    assert len(output) == characters

    assert MAX_OUTPUT_BYTES - 8 <= len(short.encode()) <= MAX_OUTPUT_BYTES
    head, mark, tail = short.partition(f"\n[truncated: the output had {len(output)} characters]\n")
    assert head and mark and tail
    assert output.startswith(head) and output.endswith(tail)


def test_output_is_cleaned() -> None:
    """NUL and lone surrogates, which Postgres cannot store."""
    assert ("a\ufffdb\ufffd", None) == cut("a\x00b\ud800")
