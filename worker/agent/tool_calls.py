"""The tool calls of one turn: what a person must approve first, then all of them side by side."""

import contextvars
import logging
import threading
import time
from functools import partial
from typing import Any

from arkloop.shared import fault_points, machine, metrics
from arkloop.shared.errors import LeaseLost, Unavailable
from arkloop.shared.events import tool_output, types
from arkloop.shared.runs.states import ResultSource
from arkloop.shared.spans import Span
from arkloop.worker.agent import call_spans
from arkloop.worker.agent.agent import Agent
from arkloop.worker.agent.awaited_results import may_wait, result_source, wait_for_results
from arkloop.worker.agent.conversation import Turn
from arkloop.worker.agent.permitted_calls import begin, permitted
from arkloop.worker.agent.questions import question, tool_of
from arkloop.worker.agent.tool_progress import TurnProgress
from arkloop.worker.contract.attachments import ToolOutput, images_of
from arkloop.worker.contract.context import RunContext, ToolContext, ToolLedger
from arkloop.worker.contract.input_requests import InputRequired
from arkloop.worker.contract.messages import ToolCall, ToolMessage
from arkloop.worker.contract.outcomes import ShuttingDown, StopRun, TimeToLand
from arkloop.worker.tools import CallInfo, ResultPending, Tool, ToolFailed, as_output

log = logging.getLogger(__name__)

#: Tools that heed a stop end at once; others are abandoned after this.
STOP_SECONDS = 1.0

_NOT_MADE = "Not executed: the run's time is over."
_CUT_OFF = "The run's time was over during this call; it may or may not have taken effect."


def call_tools(agent: Agent, context: RunContext, turn: Turn) -> None:
    """Ask people first, one question at a time; then make the calls side by side.

    Calls whose results come from outside are waited for last: the others are done by then, and
    their results are kept. Events are written in call order, whatever ends first.

    Raises:
        WaitForInput: a person must answer first, or results come from outside.
        StopRun, LeaseLost: the attempt ends; calls that do not notice within `STOP_SECONDS` are
            abandoned, and have no result.
    """
    waiting = [call for call in turn.calls if call.id not in turn.results]
    for call in waiting:
        if asked := question(agent, turn, call):
            raise asked
    context.checkpoint()
    progress = TurnProgress()
    may_park = {call.id for call in waiting if may_wait(agent, turn, call)}
    calls = [
        _SideBySide(agent, context, turn, call, progress, keep=bool(may_park - {call.id}))
        for call in waiting
    ]
    grace = _Grace()
    stopped: BaseException | None = None
    pending: list[ToolCall] = []
    for made in calls:
        made.wait(context, grace)
        stopped = stopped or made.stopped
        if made.is_pending and made.stopped is None:
            pending.append(made.call)
            continue
        if isinstance(made.stopped, TimeToLand):
            made.stopped, made.result = None, _cut_off(context, turn, made.call)
        # Where the run resumes elsewhere, as after an error, results come in call order there: the
        # ledger has them.
        if made.stopped is None and not isinstance(stopped, ShuttingDown | LeaseLost | Exception):
            progress.end(context, made.call.id)
            if pending:
                turn.ledger_results[made.call.id] = made.result
                continue
            seq = context.emit(made.result)
            _count(made.result)
            turn.results[made.call.id] = ToolMessage(
                made.call.id,
                made.call.name,
                made.result.output,
                images_of(made.result.files),
                seq=seq,
                characters=made.result.characters,
            )
    if stopped is not None:
        raise stopped
    if pending:
        fault_points.reach("worker.before_park")
        asked = next(filter(None, (question(agent, turn, call) for call in pending)), None)
        raise asked or wait_for_results(agent, turn, pending)
    # The step is over: a crash in the next one must not ask what became of these calls.
    context.checkpoint()
    fault_points.reach("worker.step_finished")


def cut_off_calls(context: RunContext, turn: Turn) -> list[types.ToolResult]:
    """Give a result to each call that has none: the run lands, and vendors require them all."""
    results = [_cut_off(context, turn, call) for call in turn.calls if call.id not in turn.results]
    for result in results:
        turn.results[result.tool_call_id] = ToolMessage(
            result.tool_call_id, result.name, result.output
        )
        _count(result)
    return results


def _count(result: types.ToolResult) -> None:
    """Count a call with the event of its result, and again if this attempt is lost before it is
    committed.
    """
    metrics.TOOL_CALLS.add(1, "error" if result.is_error else "ok")


def _cut_off(context: ToolLedger, turn: Turn, call: ToolCall) -> types.ToolResult:
    """Return the result of a call for which no time is left."""
    if (stored := turn.ledger_results.get(call.id)) is not None:
        return stored
    if call.name == "ask_user" and (answer := turn.answers.get(call.id)) is not None:
        return types.ToolResult(call.id, call.name, answer, False, 0)
    # The ledger lets an attempt begin its own calls again: the answer to a write can get lost.
    is_new = context.begin_tool_call(call.id) and call.id not in turn.begun
    output = _NOT_MADE if is_new else _CUT_OFF
    # A result that came from outside first counts, and none that comes later.
    return context.end_tool_call(types.ToolResult(call.id, call.name, output, True, 0))


class _Grace:
    """The time in which all calls of a turn can notice that the run has to stop."""

    def __init__(self) -> None:
        self._ends: float | None = None

    def seconds_left(self) -> float:
        """Return what is left of it; it begins with the first call of this method."""
        if self._ends is None:
            self._ends = time.monotonic() + STOP_SECONDS
        return max(0.0, self._ends - time.monotonic())


class _SideBySide:
    """A tool call in a thread of its own; `stopped` is what ended it if the run has to stop.

    `is_pending`: the call has begun, and its result comes from outside. With `keep` the ledger
    gets whatever the result is, since the run may have to wait for those of other calls.

    No thread can be ended from outside. The thread of a tool that does not return in time is
    abandoned: the run continues without it, and what it returns later is dropped.
    """

    def __init__(
        self,
        agent: Agent,
        context: RunContext,
        turn: Turn,
        call: ToolCall,
        progress: TurnProgress,
        *,
        keep: bool,
    ) -> None:
        self.call = call
        self.result: types.ToolResult
        self.stopped: BaseException | None = None
        self.is_pending = False
        self._keep = keep
        # Where a result may still be sent, as by a tool that is gone, what is read instead is kept.
        self._keep_error = call.name not in agent.tools or result_source(agent, call) is not None
        self._agent, self._context, self._turn = agent, context, turn
        self._lock = threading.Lock()
        self._progress = progress
        self._changed, self._ended = progress.changed, threading.Event()
        self._deadline: float | None = None  # while the tool's function runs
        self._has_outcome = False
        self._span: Span | None = None  # while the tool's function runs
        # With this thread's context: lines that the tool logs name the run.
        target = contextvars.copy_context().run
        threading.Thread(
            target=target, args=(self._run,), name=f"tool-{call.name}", daemon=True
        ).start()

    def wait(self, context: RunContext, grace: _Grace) -> None:
        """Return once the call has ended or is abandoned; meanwhile write the progress of all."""
        try:
            with context.aborting(self._changed.set):
                while not self._ended.is_set():
                    waits = (self._seconds_left(), self._progress.seconds_left())
                    self._changed.wait(min((s for s in waits if s is not None), default=None))
                    self._changed.clear()
                    context.check()
                    self._progress.write(context)
                    if self._seconds_left() == 0:
                        self._abandon(None)
        except (StopRun, LeaseLost) as reason:
            if not self._ended.wait(grace.seconds_left()):
                self._abandon(reason)

    def _seconds_left(self) -> float | None:
        deadline = self._deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def _abandon(self, reason: BaseException | None) -> None:
        with self._lock:
            if self._has_outcome or (self.is_pending and reason is None):
                return
            self._has_outcome = True
        tool = tool_of(self._agent, self._turn, self.call)
        seconds = tool.timeout_seconds if tool else 0.0  # only a tool that runs can be too late
        log.warning(
            "abandoning call %s of tool %s: it did not return%s",
            self.call.id,
            self.call.name,
            "" if reason else f" within {seconds:g} s",
        )
        if self._span is not None:
            self._span.fail("timeout")
            self._span.end()
        self.stopped = reason
        output = f"The tool did not return within {seconds:g} s; the call may still take effect."
        self.result = types.ToolResult(
            self.call.id, self.call.name, output, True, round(seconds * 1000)
        )
        if reason is None and (self._keep or self._keep_error):
            self._store(None)
        self._ended.set()

    def _run(self) -> None:
        is_own = False
        try:
            began = time.monotonic()
            returned, is_error, stopped, begun = self._outcome()
            output, files = self._kept(returned)
            duration_ms = round((time.monotonic() - began) * 1000)
            with self._lock:
                if self._has_outcome:
                    return
                self._has_outcome = is_own = True
                self._deadline = None
            self.stopped = stopped
            if not self.is_pending:
                self._take(output, is_error, duration_ms, files, begun=begun)
        except BaseException as error:  # such as no memory: the run must not wait for ever
            with self._lock:
                if is_own or not self._has_outcome:
                    self._has_outcome, self._deadline, self.stopped = True, None, error
        finally:
            self._ended.set()
            self._changed.set()

    def _take(
        self,
        output: str,
        is_error: bool,
        duration_ms: int,
        files: list[dict[str, Any]] | None,
        *,
        begun: bool,
    ) -> None:
        """Set the result, and keep it in the ledger where its event may have to wait."""
        earlier = self._turn.ledger_results.get(self.call.id)
        shown, characters = tool_output.cut(output)
        self.result = earlier or types.ToolResult(
            self.call.id, self.call.name, shown, is_error, duration_ms, files, characters
        )
        is_last = len(self._turn.calls) - len(self._turn.results) <= 1
        # Its event waits for the calls before it; a crash meanwhile must not lose the result.
        # What the event has no room for is kept there for good.
        is_alone = is_last and characters is None and not (is_error and self._keep_error)
        may_be_begun = begun or (self._context.is_resumed and is_error and self._keep_error)
        is_kept = self._keep or (may_be_begun and not is_alone)
        if earlier is not None or self.stopped is not None or not is_kept:
            return
        self._store(tool_output.kept(output, characters), begun=begun)

    def _store(self, whole_output: str | None, *, begun: bool = True) -> None:
        try:
            if not begun:
                self._context.begin_tool_call(self.call.id)
            self.result = self._context.end_tool_call(self.result, whole_output)
        except BaseException as error:
            self.stopped = error

    def _kept(self, returned: str | ToolOutput) -> tuple[str, list[dict[str, Any]] | None]:
        """Store the images of what the tool returned; return its text and these files."""
        if isinstance(returned, str):
            return returned, None
        try:
            files = self._context.files.keep(returned.images)
        except Exception:
            # The thread must not end by it, nor must the text get lost: the call was made.
            log.exception("storing the images of call %s failed", self.call.id)
            files = []
        if missing := len(returned.images) - len(files):
            note = f"[{missing} of {len(returned.images)} images could not be stored]"
            return f"{note}\n{returned.text}", files or None
        return returned.text, files

    def _outcome(self) -> tuple[str | ToolOutput, bool, BaseException | None, bool]:
        """Make the call; return output, is_error, why it had to stop, and whether it began."""
        agent, context, turn, call = self._agent, self._context, self._turn, self.call
        if call.id in turn.ledger_results:
            return "", False, None, False
        if call.id in turn.accepted:
            if (sent := self._sent_early()) is not None:
                return *sent, None, True
            self.is_pending = True
            return "", False, None, True
        tool, begun = None, False
        try:
            tool, made = permitted(agent, context, turn, call)
            if call.name == "ask_user":
                return turn.answers.get(call.id, ""), False, None, False
            context.check()
            turn.begun.add(call.id)
            if self._has_outcome:  # the run may have said that the call was not made
                return "", True, None, False
            replies = begin(context, tool, turn, call)
            begun = True
            self._deadline = time.monotonic() + tool.timeout_seconds
            self._changed.set()
            try:
                progress = partial(self._progress.report, call.id)
                info = _info(agent, call, replies=replies, report_progress=progress)
                with call_spans.tool_call(agent.identity, made, tool) as span:
                    self._span = span
                    return _make(context, tool, info, made), False, None, True
            except ResultPending:
                if (sent := self._sent_early()) is not None:
                    return *sent, None, True
                # The row of a client's call says from the beginning who sends its result.
                if self._park() and tool.result_from is not ResultSource.CLIENT:
                    context.expect_result(call.id)
            except InputRequired as required:
                if self._park():
                    self._require_input(tool, required)
            return "", False, None, True
        except ToolFailed as error:
            return str(error), True, None, begun
        except (StopRun, LeaseLost) as reason:
            return "", True, reason, begun
        except BaseException as error:  # SystemExit, too: libraries for command lines raise it
            # Its text may hold secrets, such as the URL of a database: it goes to the log alone.
            log.exception("tool %s raised in call %s", call.name, call.id)
            is_ours = isinstance(error, Unavailable)  # it need not last
            lack = machine.shortage_behind(error) if is_ours else machine.lasting_shortage(error)
            if isinstance(lack, OSError) and tool is not None and tool.idempotent:
                return "", True, lack, begun  # another worker may have one, and calls it again
            return f"The tool failed: {type(error).__name__}.", True, None, begun

    def _sent_early(self) -> tuple[str, bool] | None:
        """Return what the client has sent for the call before it was made, if it is this call.

        The row of the call awaits a result, so it is kept there.
        """
        sent = self._turn.early_results.get(self.call.id)
        if sent is None or self._turn.as_made(self.call) != self.call:
            return None
        self._keep = True
        return sent

    def _park(self) -> bool:
        """Note that the result comes later; False if the call was abandoned before."""
        with self._lock:
            if not self._has_outcome:
                self.is_pending, self._deadline = True, None
            return self.is_pending

    def _require_input(self, tool: Tool, required: InputRequired) -> None:
        """Keep what the call asks people for: it is made again with their replies."""
        turn, call_id = self._turn, self.call.id
        request = required.request(turn.replies.get(call_id, ()), tool.mcp_tool)
        self._context.require_input(call_id, request)
        turn.input_requests[call_id] = request


def _info(agent: Agent, call: ToolCall, **more: Any) -> CallInfo:
    return CallInfo.of(
        agent.identity,
        call.id,
        egress=agent.egress,
        result_tokens=agent.result_tokens,
        searchable=agent.searchable.values(),
        **more,
    )


def _make(context: ToolContext, tool: Tool, info: CallInfo, call: ToolCall) -> str | ToolOutput:
    output = as_output(tool(context, info, call.arguments))
    fault_points.reach("worker.tool_returned")
    return output
