"""The result of a tool call is kept, also while its event has to wait for the calls before it."""

import threading
from dataclasses import replace
from typing import Any

import pytest

from arkloop.shared import metrics, times
from arkloop.shared.errors import LeaseLost
from arkloop.shared.events.types import ToolCallRequested, ToolResult
from arkloop.shared.runs.states import ResultSource
from arkloop.worker.agent.conversation import Turn
from arkloop.worker.agent.permitted_calls import UNKNOWN_OUTCOME
from arkloop.worker.agent.tool_calls import cut_off_calls
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.contract.messages import ToolCall, ToolSpec
from arkloop.worker.contract.outcomes import (
    CancelRequested,
    PendingCall,
    ShuttingDown,
    WaitForInput,
)
from arkloop.worker.tools import ResultPending, Tool, ToolFailed, tool
from tests.counted import counted
from tests.worker.agent.looping_models import CALCULATE, agent_for, results, run
from tests.worker.recorded_run import RecordedRun


@tool(idempotent=False)
def once(context: ToolContext) -> str:
    """Fail, since it must not run."""
    raise AssertionError


def test_a_result_of_a_lost_attempt_is_taken_from_the_ledger() -> None:
    """It is written as the call's event; the tool is not called again."""
    kept = ToolResult("call_1_2", "once", "had its effect", False, 7)
    calls = [
        ToolCall("call_1_1", "calculator", CALCULATE["args"]),
        ToolCall("call_1_2", "once", {}),
    ]
    turn = Turn("m", "", calls, ledger_results={"call_1_2": kept})
    context = RecordedRun(attempt=2, begun=["call_1_1", "call_1_2"])

    run(agent_for({"tool": "x"}, {"say": "b"}, extra={"once": once}), context, [turn])

    assert [("call_1_1", "42", False), ("call_1_2", "had its effect", False)] == results(context)
    assert kept in context.events


def test_a_result_that_must_wait_is_kept_at_once() -> None:
    """The second call is done, and the first one still runs: a crash now would lose it."""
    second_is_kept = threading.Event()

    class Watching(RecordedRun):
        def end_tool_call(self, result: ToolResult, whole_output: str | None = None) -> ToolResult:
            kept = super().end_tool_call(result)
            second_is_kept.set()
            return kept

    @tool(idempotent=True)
    def wait(context: ToolContext) -> str:
        """Wait until the other call's result is kept."""
        assert second_is_kept.wait(60)
        return "waited"

    context = Watching()
    run(agent_for({"tools": [{"tool": "wait"}, CALCULATE]}, extra={"wait": wait}), context)

    assert "call_1_2" == context.done[0].tool_call_id
    assert [("call_1_1", "waited", False), ("call_1_2", "42", False)] == results(context)


def test_a_failure_is_kept_as_well() -> None:
    """A failed call's result is kept, but not that of a call which never began, which may be made
    again.
    """
    meeting = threading.Barrier(2)

    @tool(idempotent=False)
    def fail(context: ToolContext) -> str:
        """Fail while another call runs."""
        meeting.wait(60)
        raise ValueError("no")

    context = RecordedRun()
    calls: list[dict[str, Any]] = [{"tool": "fail"}, {"tool": "fail"}, {"tool": "none"}]
    run(agent_for({"tools": calls}, extra={"fail": fail}), context)

    kept = {result.tool_call_id: result.output for result in context.done}
    assert {"The tool failed: ValueError."} == set(kept.values())
    assert {"call_1_1"} <= kept.keys() <= {"call_1_1", "call_1_2"}


def test_a_lone_call_needs_no_second_record() -> None:
    """A lone call's result needs no record in the ledger, as its event is written at once."""
    context = RecordedRun()

    run(agent_for(CALCULATE), context)

    assert [] == context.done


def test_what_cannot_be_kept_stops_the_run() -> None:
    """The claim may be over: nothing more is written."""

    class Cancelled(RecordedRun):
        def end_tool_call(self, result: ToolResult, whole_output: str | None = None) -> ToolResult:
            raise CancelRequested

    @tool(idempotent=True)
    def slow(context: ToolContext) -> str:
        """Take longer than the other call."""
        threading.Event().wait(0.2)
        return "slow"

    context = Cancelled()
    extra: dict[str, Tool] = {"slow": slow}
    with pytest.raises(CancelRequested):
        run(agent_for({"tools": [{"tool": "slow"}, CALCULATE]}, extra=extra), context)


@pytest.mark.parametrize("reason", [ShuttingDown, LeaseLost])
def test_a_turn_that_goes_on_elsewhere_has_its_results_in_call_order(
    reason: type[BaseException],
) -> None:
    """A later call's result waits in the ledger for the attempt that makes the earlier call."""
    second_is_kept = threading.Event()

    class HandedOver(RecordedRun):
        def end_tool_call(self, result: ToolResult, whole_output: str | None = None) -> ToolResult:
            kept = super().end_tool_call(result)
            second_is_kept.set()
            return kept

    @tool(idempotent=True)
    def stopped(context: ToolContext) -> str:
        """Stop by the end of the process, or of its lease."""
        assert second_is_kept.wait(60)
        raise reason

    context = HandedOver()
    calls = {"tools": [{"tool": "stopped"}, CALCULATE]}
    with pytest.raises(reason):
        run(agent_for(calls, extra={"stopped": stopped}), context)

    assert [] == results(context)
    assert ["call_1_2"] == [result.tool_call_id for result in context.done]


def test_a_result_is_counted_by_the_attempt_that_writes_it() -> None:
    """A deploy is no failure of a tool; results that wait in the ledger are counted once."""

    @tool(idempotent=True)
    def stopped(context: ToolContext) -> str:
        """Stop by the end of the process."""
        raise ShuttingDown

    stopping = agent_for({"tools": [{"tool": "stopped"}, CALCULATE]}, extra={"stopped": stopped})
    first = RecordedRun()
    with counted(metrics.TOOL_CALLS) as seen:
        with pytest.raises(ShuttingDown):
            run(stopping, first)
        assert {} == seen

        calls = [ToolCall(f"call_1_{n}", "calculator", CALCULATE["args"]) for n in (1, 2)]
        kept = {result.tool_call_id: result for result in first.done}
        assert {"call_1_2"} == kept.keys()
        turn = Turn("m", "", calls, ledger_results=kept)
        run(agent_for({"tool": "x"}, {"say": "b"}), RecordedRun(attempt=2), [turn])

    assert {("ok",): [2]} == seen


PENDING = Tool(
    spec=ToolSpec("ask_client", "Ask.", {"type": "object"}),
    function=lambda *_: _wait_for_client(),
    idempotent=True,
    result_from=ResultSource.CLIENT,
)
SENT_LATER = replace(PENDING, idempotent=False, result_from=ResultSource.HTTP)


def _wait_for_client() -> str:
    raise ResultPending


def test_a_turn_waits_for_a_client_when_its_other_calls_are_done() -> None:
    """Results before the first missing one are events; the others are kept, of whatever kind."""
    calls = [CALCULATE, {"tool": "ask_client"}, {"tool": "unknown"}, CALCULATE]
    context = RecordedRun()

    with pytest.raises(WaitForInput) as wait:
        run(agent_for({"tools": calls}, extra={"ask_client": PENDING}), context)

    assert ["call_1_2"] == [call.tool_call_id for call in wait.value.calls]
    assert ["call_1_1"] == [id_ for id_, _, _ in results(context)]
    assert {"call_1_1", "call_1_3", "call_1_4"} == {r.tool_call_id for r in context.done}
    requested = [event for event in context.events if isinstance(event, ToolCallRequested)]
    assert [None, "client", None, None] == [event.result_from for event in requested]


def test_a_result_from_outside_is_counted_when_the_run_has_it() -> None:
    """Neither the call that awaits it nor an attempt that awaits it again is counted as ok."""
    call = ToolCall("call_1_1", "ask_client", {})
    sent = ToolResult(call.id, call.name, "No.", True, 7)
    waits = Turn("m", "", [call], accepted={call.id})
    agent = agent_for({"tool": "ask_client"}, {"say": "b"}, extra={"ask_client": PENDING})

    with counted(metrics.TOOL_CALLS) as seen:
        for turns in ([], [waits]):
            with pytest.raises(WaitForInput):
                run(agent, RecordedRun(attempt=len(turns) + 1, begun=["call_1_1"]), turns)
        assert {} == seen
        run(agent, RecordedRun(attempt=3), [Turn("m", "", [call], ledger_results={call.id: sent})])

    assert {("error",): [1]} == seen


def test_the_results_of_a_run_that_lands_are_counted() -> None:
    """The ledger has that of one call, and no time is left for the other."""
    calls = [ToolCall(f"call_1_{n}", "once", {}) for n in (1, 2)]
    kept = ToolResult("call_1_1", "once", "had its effect", False, 7)

    with counted(metrics.TOOL_CALLS) as seen:
        cut_off_calls(RecordedRun(), Turn("m", "", calls, ledger_results={kept.tool_call_id: kept}))

    assert {("ok",): [1], ("error",): [1]} == seen


def test_a_lost_attempt_waits_again_and_makes_no_call_again() -> None:
    """What the ledger has is not repeated: neither results nor calls accepted elsewhere."""
    kept = ToolResult("call_1_2", "once", "had its effect", False, 7)
    accepted = replace(PENDING, function=lambda *_: "must not run", idempotent=False)
    calls = [ToolCall("call_1_1", "accepted", {}), ToolCall("call_1_2", "once", {})]
    turn = Turn("m", "", calls, ledger_results={"call_1_2": kept}, accepted={"call_1_1"})
    context = RecordedRun(attempt=2, begun=["call_1_1", "call_1_2"])
    agent = agent_for({"say": "b"}, extra={"once": once, "accepted": accepted})

    with pytest.raises(WaitForInput) as wait:
        run(agent, context, [turn])

    assert ["call_1_1"] == [call.tool_call_id for call in wait.value.calls]
    assert [] == results(context)


@pytest.mark.parametrize("is_begun", [False, True])
@pytest.mark.parametrize("is_error", [False, True])
def test_a_result_that_was_sent_before_its_call_is_kept_with_it(
    is_begun: bool, is_error: bool
) -> None:
    """A lost attempt may have begun the call; its row must not await a result for good."""
    turn = Turn("m", "", [ToolCall("call_1_1", "ask_client", {})])
    turn.early_results = {"call_1_1": ("Rome", is_error)}
    turn.accepted |= {"call_1_1"} if is_begun else set()
    context = RecordedRun(attempt=2, begun=["call_1_1"] if is_begun else [])

    run(agent_for({"tool": "x"}, {"say": "b"}, extra={"ask_client": PENDING}), context, [turn])

    assert [("call_1_1", "Rome", is_error)] == results(context)
    assert ["call_1_1"] == [result.tool_call_id for result in context.done]


def test_the_result_of_an_accepted_call_is_awaited_without_its_tool() -> None:
    """An HTTP tool that was deleted or renamed meanwhile can still send it; other calls end."""
    calls = [ToolCall("call_1_1", "gone", {"n": 1}), ToolCall("call_1_2", "deleted", {})]
    turn = Turn("m", "", calls, accepted={"call_1_1"})
    context = RecordedRun(attempt=2, begun=["call_1_1"])

    with pytest.raises(WaitForInput) as wait:
        run(agent_for({"say": "b"}), context, [turn])

    [sent] = wait.value.shown(times.now())["calls"]
    assert ("call_1_1", {"n": 1}, "http", False) == (
        *(sent["tool_call_id"], sent["arguments"]),
        *(sent["result_from"], sent["idempotent"]),
    )
    assert ["call_1_2"] == [result.tool_call_id for result in context.done]


def test_a_failure_is_kept_where_a_result_may_still_be_sent() -> None:
    """The sender of a later result is refused: the model has read another one."""

    def fail(*_: object) -> str:
        raise ToolFailed("The connection was lost.")

    context = RecordedRun()
    broken = replace(PENDING, function=fail)
    run(agent_for({"tool": "ask_client"}, {"say": "x"}, extra={"ask_client": broken}), context)

    assert ["The connection was lost."] == [result.output for result in context.done]


@pytest.mark.parametrize("extra", [{"ask_server": SENT_LATER}, {}])
def test_an_unknown_outcome_is_kept_where_a_result_may_still_be_sent(
    extra: dict[str, Tool],
) -> None:
    """A lone call that a lost attempt began, also of a tool that is gone by now: what its server
    sends later is refused, as the model has read that nobody knows.
    """
    turn = Turn("m", "", [ToolCall("call_1_1", "ask_server", {})])
    context = RecordedRun(attempt=2, begun=["call_1_1"])

    run(agent_for({"tool": "x"}, {"say": "b"}, extra=extra), context, [turn])

    assert [("call_1_1", UNKNOWN_OUTCOME, True)] == results(context)
    assert [("call_1_1", UNKNOWN_OUTCOME)] == [(r.tool_call_id, r.output) for r in context.done]


def test_a_result_that_is_sent_before_a_call_is_given_up_counts() -> None:
    """It came after the next attempt had read the ledger: the model reads it, not that nobody
    knows.
    """
    sent = ToolResult("call_1_1", "ask_server", "refunded", False, 9)

    class Sent(RecordedRun):
        def end_tool_call(self, result: ToolResult, whole_output: str | None = None) -> ToolResult:
            return sent

    turn = Turn("m", "", [ToolCall("call_1_1", "ask_server", {})])
    context = Sent(attempt=2, begun=["call_1_1"])

    run(agent_for({"say": "b"}, extra={"ask_server": SENT_LATER}), context, [turn])

    assert [("call_1_1", "refunded", False)] == results(context)


def test_the_wait_shows_arguments_as_far_as_a_list_has_room() -> None:
    """The event has all arguments, the run's lists those that are short enough together."""
    calls = [
        PendingCall(f"c{i}", "t", {"x": "y" * length}, ResultSource.CLIENT)
        for i, length in enumerate((4000, 5000, 10))
    ]
    persona = agent_for({"say": "x"}).persona
    wait = WaitForInput(persona=persona, kind="tool_results", prompt="?", calls=calls)

    now = times.now()
    sent = wait.request("r", now)["calls"]
    assert [call.arguments for call in calls] == [call["arguments"] for call in sent]
    assert ["arguments" in call for call in wait.shown(now)["calls"]] == [True, False, False]


def test_the_wait_tells_calls_of_http_tools_from_those_of_the_client() -> None:
    """Their results come from the org's server; a page must not make them."""
    sources = (ResultSource.CLIENT, ResultSource.HTTP, ResultSource.RUN)
    calls = [PendingCall(f"c{n}", "t", {}, source) for n, source in enumerate(sources)]
    persona = agent_for({"say": "x"}).persona
    wait = WaitForInput(persona=persona, kind="tool_results", prompt="?", calls=calls)

    sent = wait.request("r", times.now())["calls"]

    assert [("c0", None), ("c1", "http")] == [
        (call["tool_call_id"], call.get("result_from")) for call in sent
    ]
