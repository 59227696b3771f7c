"""The tool calls of one turn: time limits, stops, and what a failure shows to whom."""

import asyncio
import errno
import hashlib
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from arkloop.shared import logs, metrics
from arkloop.shared.events.types import ToolResult
from arkloop.shared.runs.states import ResultSource
from arkloop.worker.agent import tool_calls
from arkloop.worker.agent.tool_calls import STOP_SECONDS
from arkloop.worker.contract.context import ToolContext
from arkloop.worker.contract.outcomes import CancelRequested, ShuttingDown
from arkloop.worker.tools import Tool, ToolOutput, tool
from tests.counted import counted
from tests.no_descriptor import no_descriptor_left
from tests.waiting import eventually
from tests.worker.agent.looping_models import CALCULATE, agent_for, results, run
from tests.worker.recorded_run import RecordedRun

#: Of no form for which the search for leaks looks: the log is where it belongs.
SECRET = "host=db user=arkloop password=hunter2"


class Blocked:
    """A tool that ignores every stop until it is released."""

    def __init__(self, timeout_seconds: float = 60.0) -> None:
        self.began, self.release, self.returned = (threading.Event() for _ in range(3))

        @tool(idempotent=False, timeout_seconds=timeout_seconds)
        def blocked(context: ToolContext) -> str:
            """Block."""
            self.began.set()
            self.release.wait(60)
            self.returned.set()
            return "late"

        self.tool: Tool = blocked


def test_a_tool_is_abandoned_at_its_time_limit() -> None:
    """The run continues with an error in place of the result; what comes later is dropped."""
    blocked, context = Blocked(timeout_seconds=1), RecordedRun()
    steps = ({"tools": [{"tool": "blocked"}, CALCULATE]}, {"say": "ok"})

    with counted(metrics.TOOL_CALLS) as seen:
        answer = run(agent_for(*steps, extra={"blocked": blocked.tool}), context)
        blocked.release.set()
        assert blocked.returned.wait(60)

    assert {("error",): [1], ("ok",): [1]} == seen
    assert "ok" == answer.content
    assert [
        ("call_1_1", "The tool did not return within 1 s; the call may still take effect.", True),
        ("call_1_2", "42", False),
    ] == results(context)
    assert ["call_1_2"] == [result.tool_call_id for result in context.done]


@tool(idempotent=True)
def camera(context: ToolContext, images: int, unusable: int = 0) -> ToolOutput:
    """Return images."""
    return ToolOutput("click", [*["YWJj"] * images, *[""] * unusable])


def test_images_of_a_result_are_kept_and_shown_to_the_model() -> None:
    """They are stored as files; the event refers to them, and the next request has them."""
    context = RecordedRun()
    both = [{"tool": "camera", "args": {"images": 1}}, CALCULATE]

    answer = run(agent_for({"tools": both}, {"describe": True}, extra={"camera": camera}), context)

    digest = hashlib.sha256(b"abc").hexdigest()[:16]
    assert f"[image/png 3 bytes sha256:{digest}]" == answer.content
    [taken, counted] = [event for event in context.events if isinstance(event, ToolResult)]
    file = {"file_id": "file-1", "name": "image-1", "media_type": "image/png", "size": 3}
    assert ("click", [file]) == (taken.output, taken.files)
    assert counted.files is None
    assert [taken.files] == [done.files for done in context.done if done.name == "camera"]


def test_images_that_cannot_be_stored_are_named() -> None:
    """The result is not lost with them."""
    context = RecordedRun()
    call = {"tool": "camera", "args": {"images": 1, "unusable": 2}}

    run(agent_for(call, {"describe": True}, extra={"camera": camera}), context)

    [(_, output, is_error)] = results(context)
    assert ("[2 of 3 images could not be stored]\nclick", False) == (output, is_error)


@pytest.mark.parametrize(
    "make",
    [
        lambda: None,
        lambda: {"stock": 7},
        lambda: b"7",
        lambda: ToolOutput(None, []),  # type: ignore[arg-type]  # as a plugin may write it
        lambda: ToolOutput("7", None),  # type: ignore[arg-type]  # likewise
        lambda: ToolOutput("7", "YWJj"),
        lambda: ToolOutput("7", [b"abc"]),  # type: ignore[list-item]  # likewise
    ],
)
def test_a_tool_that_returns_something_other_than_text_has_failed(
    make: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The call has its result at once, and the log says what the tool returned."""
    context = RecordedRun()

    @tool(idempotent=True, timeout_seconds=60)
    def stock(context: ToolContext) -> Any:
        """Return something other than text."""
        return make()

    answer = run(agent_for({"tool": "stock"}, {"say": "ok"}, extra={"stock": stock}), context)

    assert "ok" == answer.content
    assert [("call_1_1", "The tool failed: TypeError.", True)] == results(context)
    assert "TypeError: the " in caplog.text


@pytest.mark.parametrize("raised", [SystemExit(2), asyncio.CancelledError()])
def test_an_exception_that_is_not_derived_from_exception_fails_the_call(
    raised: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """The run continues, also if `except Exception` would not catch it."""
    context = RecordedRun()

    @tool(idempotent=True)
    def parse(context: ToolContext) -> str:
        """Raise what a library raises."""
        raise raised

    answer = run(agent_for({"tool": "parse"}, {"say": "ok"}, extra={"parse": parse}), context)

    assert "ok" == answer.content
    expected = ("call_1_1", f"The tool failed: {type(raised).__name__}.", True)
    assert [expected] == results(context)
    assert "tool parse raised in call call_1_1" in caplog.text


class FullDisk(RecordedRun):
    """A run whose files raise what no storage should."""

    def keep(self, images: Sequence[str]) -> list[dict[str, Any]]:
        raise OSError(28, "No space left on device")


def test_no_error_of_the_storage_holds_up_the_run(caplog: pytest.LogCaptureFixture) -> None:
    """The call has its result at once, rather than an error at the tool's time limit."""
    context = FullDisk()
    call = {"tool": "camera", "args": {"images": 1}}

    run(agent_for(call, {"say": "ok"}, extra={"camera": camera}), context)

    assert [("call_1_1", "[1 of 1 images could not be stored]\nclick", False)] == results(context)
    assert "storing the images of call call_1_1 failed" in caplog.text


class LargeText(str):
    """An output of a tool that there is no memory to keep."""

    def __getitem__(self, part: Any) -> str:
        raise MemoryError


def test_a_result_for_which_there_is_no_memory_ends_the_attempt() -> None:
    """The run does not wait for it until its time is over: another worker may have memory.

    Results of later calls are written there too, in call order.
    """
    context = RecordedRun()

    @tool(idempotent=True)
    def large(context: ToolContext) -> str:
        """Return much."""
        return LargeText()

    with pytest.raises(MemoryError):
        run(agent_for({"tools": [{"tool": "large"}, CALCULATE]}, extra={"large": large}), context)

    assert [] == results(context)


@pytest.mark.parametrize("idempotent", [True, False])
def test_an_idempotent_call_that_lacks_a_descriptor_is_left_for_another_worker(
    idempotent: bool,
) -> None:
    """The model reads that any other has failed: another worker could not make it again."""
    context = RecordedRun()

    @tool(idempotent=idempotent)
    def reads(context: ToolContext) -> str:
        """Open a file."""
        raise RuntimeError("a library's") from OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    agent = agent_for({"tool": "reads"}, {"say": "ok"}, extra={"reads": reads})
    if idempotent:
        with no_descriptor_left(), pytest.raises(OSError, match="Too many open files"):
            run(agent, context)
        assert [] == results(context)
    else:
        assert "ok" == run(agent, context).content
        assert [("call_1_1", "The tool failed: RuntimeError.", True)] == results(context)


def test_a_tool_that_takes_all_descriptors_fails() -> None:
    """Any other worker that called it again would lack them, too."""
    context = RecordedRun()

    @tool(idempotent=True)
    def leaks(context: ToolContext) -> str:
        """Take descriptors."""
        taken = []
        while True:
            taken.append(select.epoll())

    agent = agent_for({"tool": "leaks"}, {"say": "ok"}, extra={"leaks": leaks})
    with no_descriptor_left(but=20):
        assert "ok" == run(agent, context).content

    assert [("call_1_1", "The tool failed: OSError.", True)] == results(context)


def test_waiting_for_a_call_does_not_count_towards_the_limit_of_another() -> None:
    """Each call has its own clock, from the moment at which its tool starts."""
    first, second = Blocked(timeout_seconds=0.3), Blocked(timeout_seconds=30)
    context = RecordedRun()
    threading.Timer(0.6, second.release.set).start()
    extra = {"first": first.tool, "second": second.tool}

    run(agent_for({"tools": [{"tool": "first"}, {"tool": "second"}]}, extra=extra), context)
    first.release.set()

    assert [True, False] == [is_error for _, _, is_error in results(context)]


@pytest.mark.parametrize("reason", [CancelRequested(), ShuttingDown()])
def test_blocked_tools_do_not_delay_a_stop(reason: BaseException) -> None:
    """All calls of the turn share one grace period, and what finished before has its result."""
    blocked, context = Blocked(), RecordedRun()
    calls = [CALCULATE, *[{"tool": "blocked"}] * 30]

    stopped_at: list[float] = []

    def stop() -> None:
        eventually(lambda: results(context) and blocked.began.is_set())
        stopped_at.append(time.monotonic())
        context.stop.set(reason)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(type(reason)):
        run(agent_for({"tools": calls}, extra={"blocked": blocked.tool}), context)
    seconds = time.monotonic() - stopped_at[0]
    blocked.release.set()

    assert STOP_SECONDS <= seconds < 20 * STOP_SECONDS
    assert [("call_1_1", "42", False)] == results(context)


def test_the_call_of_a_tool_that_is_gone_does_not_delay_a_stop() -> None:
    """The run ends by the stop, also while the ledger is asked if the call has begun."""
    asked, release = threading.Event(), threading.Event()

    class Slow(RecordedRun):
        def begin_tool_call(
            self, tool_call_id: str, result_from: ResultSource | None = None
        ) -> bool:
            asked.set()
            return release.wait(30)

    context = Slow(attempt=2)
    threading.Thread(
        target=lambda: (asked.wait(10), context.stop.set(ShuttingDown())), daemon=True
    ).start()

    with pytest.raises(ShuttingDown):
        run(agent_for({"tool": "gone"}), context)
    release.set()


def test_a_tool_that_heeds_a_stop_is_not_abandoned(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tool that heeds a stop ends the run at once, and is not abandoned."""
    monkeypatch.setattr(tool_calls, "STOP_SECONDS", 30.0)  # for a busy machine
    context = RecordedRun()

    @tool(idempotent=True)
    def waits(context: ToolContext) -> str:
        """Wait."""
        stopping.set()
        while True:
            time.sleep(0.01)
            context.check()

    stopping = threading.Event()
    threading.Thread(
        target=lambda: (stopping.wait(60), context.stop.set(CancelRequested())), daemon=True
    ).start()
    began = time.monotonic()

    with pytest.raises(CancelRequested):
        run(agent_for({"tool": "waits"}, extra={"waits": waits}), context)

    assert time.monotonic() - began < 30
    assert "abandoning" not in caplog.text


def test_the_text_of_an_exception_is_in_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    """The model, the stream and the database get its class; the log has the traceback."""
    logs.clear()
    logs.bind(run_id="the-run")

    @tool(idempotent=True)
    def leaks(context: ToolContext) -> str:
        """Raise an error whose text has a password."""
        bound.append(logs.bound.get())
        raise ConnectionError(f"cannot connect to {SECRET}")

    bound: list[Any] = []
    context = RecordedRun()
    with caplog.at_level(logging.ERROR):
        run(agent_for({"tool": "leaks"}, extra={"leaks": leaks}), context)
    logs.clear()

    assert [("call_1_1", "The tool failed: ConnectionError.", True)] == results(context)
    assert SECRET not in str([event for event in context.events if isinstance(event, ToolResult)])
    assert SECRET in caplog.text
    assert "Traceback" in caplog.text
    assert [{"run_id": "the-run"}] == bound
