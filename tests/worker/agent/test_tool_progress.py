"""Progress of tool calls: written by the run's own thread, a few times per second."""

import threading

import pytest

from arkloop.shared.events.types import ToolProgress, ToolResult
from arkloop.worker.agent import tool_progress
from arkloop.worker.agent.tool_progress import MAX_MESSAGE_CHARACTERS
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.tools import CallInfo, tool
from tests.waiting import eventually
from tests.worker.agent.looping_models import CALCULATE, agent_for, run
from tests.worker.recorded_run import RecordedRun


def progress(context: RecordedRun) -> list[ToolProgress]:
    return [event for event in context.events if isinstance(event, ToolProgress)]


def test_progress_is_written_while_the_run_waits_for_another_call() -> None:
    """The first report of a call is written at once, whichever call the run waits for."""
    context, release = RecordedRun(), threading.Event()

    @tool(idempotent=True)
    def silent(context: ToolContext) -> str:
        """Wait."""
        release.wait(30)
        return "released"

    @tool(idempotent=True)
    def copy(context: ToolContext, info: CallInfo) -> str:
        """Report once, until the run has written it."""
        info.report_progress(3.0, total=4, message="x" * 1000)
        eventually(lambda: progress(recorded))
        release.set()
        return "copied"

    recorded = context
    calls = {"tools": [{"tool": "silent"}, {"tool": "copy"}, CALCULATE]}

    run(agent_for(calls, extra={"silent": silent, "copy": copy}), context)

    text = "x" * MAX_MESSAGE_CHARACTERS
    assert [ToolProgress("call_1_2", 3, 4, text)] == progress(context)


def test_many_reports_are_few_events_and_none_follows_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last report of each half second is written, and none after the result."""
    assert tool_progress.INTERVAL_SECONDS == 0.5
    monkeypatch.setattr(tool_progress, "INTERVAL_SECONDS", 2.0)  # enough for all on a busy machine
    context, infos = RecordedRun(), []

    @tool(idempotent=True)
    def copy(context: ToolContext, info: CallInfo) -> str:
        """Report a hundred times."""
        infos.append(info)
        info.report_progress(0)
        eventually(lambda: progress(recorded))
        for step in range(100):
            info.report_progress(step)
        info.report_progress(float("nan"))
        eventually(lambda: len(progress(recorded)) == 2)
        info.report_progress(1000)
        return "copied"

    recorded = context

    run(agent_for({"tool": "copy"}, extra={"copy": copy}), context)
    infos[0].report_progress(1001)

    reported = progress(context)
    assert [0, 99, 1000] == [event.progress for event in reported]
    assert isinstance(context.events[context.events.index(reported[-1]) + 1], ToolResult)
