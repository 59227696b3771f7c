"""A claimed run, as the loop and `Recorder` use it."""

import logging
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Row

from arkloop.shared import ids, metrics
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.claim import Claim
from arkloop.shared.errors import LeaseLost, Unavailable
from arkloop.shared.events import event_log, prompts, types
from arkloop.shared.events.stored_events import StoredEvent
from arkloop.shared.events.types import ContextCompacted, Event, ToolResult
from arkloop.shared.events.usage import Usage
from arkloop.shared.outage_log import OutageLog, reason_of
from arkloop.shared.runs import claims, input_requests, interrupted_calls, offered_messages
from arkloop.shared.runs.states import ResultSource
from arkloop.shared.runs.thread_queue import Effect, Guard, Happening, Holder, rule_for
from arkloop.shared.runs.transitions import Totals
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.threads import thread_contexts
from arkloop.shared.times import rfc3339
from arkloop.worker.agent.conversation import steered_by
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.attempt.admission import Admission
from arkloop.worker.contract.attachments import TextPart
from arkloop.worker.contract.input_requests import InputRequest
from arkloop.worker.contract.messages import AssistantMessage, Message, ModelRequest, Steered
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.process import stored_results
from arkloop.worker.process.file_loader import FileLoader, RunFiles
from arkloop.worker.process.route_limits import RouteLimits
from arkloop.worker.process.run_log import ArgumentsOf, RunLog

log = logging.getLogger(__name__)
#: Of all runs of the process: an outage stops the writes of all, a lock timeout those of one.
_writes = OutageLog(log, "writing runs' states")

RETRY_SECONDS = 0.2

T = TypeVar("T")


class ClaimedRun:
    """An attempt of a run, from its claim on: the `RunContext` of its loop."""

    def __init__(
        self,
        connections: Connections,
        claim: Claim,
        run_log: RunLog,
        stop: StopSignal,
        limits: RouteLimits,
        loader: FileLoader,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Call `on_progress` when a step is finished: crashes are counted anew from there."""
        is_kept = connections.settings.keep_prompts
        self._prompts = prompts.Encoder() if is_kept else None
        self.claim = claim
        self.attempt = claim.attempt
        self.is_resumed = claim.is_resumed
        self.stop = stop
        self.log = run_log
        run_log.has_offered = claim.has_offered
        self.steered: list[Steered] = []  # the messages that reached the run before this attempt
        self.chain: RouteChain | None = None  # its routes, once they are known
        self._connections = connections
        # A run that refers to itself is left to the garbage collector, which would stop all others
        # of the process for milliseconds to find it.
        this: ClaimedRun = weakref.proxy(self)
        self.admission = Admission(
            claim,
            limits,
            write=lambda change: this.write(connections.transaction, change),
            # A custom agent waits within a turn: its text stays open.
            emit=lambda event: this.note(event),
            wait=stop.wait,
        )
        self.files = RunFiles(loader, claim, this)
        self._open_text: list[str] = []
        self._silent_since: float | None = time.monotonic()  # None: it has had text
        self._lost: Sequence[StoredEvent] = ()
        self._on_progress = on_progress
        self.may_have_sub_runs = False
        #: Calls of a custom agent that this attempt leaves unbegun; None: as they were before.
        self.unbegun_calls: Sequence[str] | None = None
        self.has_progressed = False  # whether a step was finished under this claim

    # ---- RunContext ----

    def check(self) -> None:
        self.stop.check()
        self.log.check_size()

    def wait(self, seconds: float) -> None:
        self.stop.wait(seconds)

    def aborting(self, abort: Callable[[], None]) -> AbstractContextManager[None]:
        # It may be a plugin's, and the thread that stops the run stops others, or renews the lease.
        return self.stop.aborting(abort, may_block=True)

    def stream_text(self, text: str) -> None:
        self._open_text.append(text)
        if self._silent_since is not None:
            metrics.RUN_FIRST_TEXT.add(time.monotonic() - self._silent_since)
            self._silent_since = None
        self.log.add_text(types.MessageDelta, text)
        self.log.check_size()

    def stream_thinking(self, text: str) -> None:
        self.log.add_text(types.MessageThinking, text)
        self.log.check_size()

    def stream_arguments(self, tool_call_id: str, name: str, text: str) -> None:
        self.log.add_text(ArgumentsOf(tool_call_id, name), text)
        self.log.check_size()

    def keep_prompt(self, route: Route, request: ModelRequest, body: bytes) -> None:
        if self._prompts is None:
            return
        purpose = "last_answer" if request.answer_only else "turn"
        facts = {
            "sent_at": rfc3339(self.log.now()),
            "attempt": self.attempt,
            "step": request.turn + 1,
            "try_number": request.try_number,
            "purpose": "summary" if request.is_summary else purpose,
            "route_id": route.id,
            "provider": route.provider,
            "model": route.model,
        }
        files = _contents_of(request.messages)
        self.log.add_prompt(self._prompts.encode(facts, body, files))

    def count_prompts(self, stored: int) -> None:
        """Count the bytes of prompts that earlier attempts have stored."""
        if self._prompts is not None:
            self._prompts.count(stored)

    @property
    def open_text(self) -> str:
        return "".join(self._open_text)

    def void_text(self, reason: str, *then: Event) -> None:
        self._open_text.clear()
        self.log.void_text(reason, *then)

    def emit(self, *happened: Event) -> int:
        self._open_text.clear()
        self.admission.totals = self.totals.after(happened)
        return self.log.add(*happened)

    def note(self, *happened: Event) -> int:
        """Write events within the turn that is being streamed; returns the `seq` of the first."""
        return self.log.add(*happened, ends_turn=False)

    def checkpoint(self) -> None:
        self.log.flush()
        self._note_progress()

    def checkpoint_with(
        self, change: Callable[[Transaction], None], ended: types.MessageCompleted | None = None
    ) -> None:
        """Finish a step with a change that the claim guards, and with the end of the open turn, if
        there is one, in the same transaction.

        Raises:
            LeaseLost
        """
        self.log.flush()
        if ended is None:
            self.write(self._connections.statement, change)
        else:
            self._end_turn_with(change, ended)
        self._note_progress()

    def _end_turn_with(self, change: Callable[[Transaction], None], ended: Event) -> None:
        events = self.log.withdraw(ended)

        def store(tx: Transaction) -> None:
            change(tx)
            if event_log.is_cut_off(tx.sql, self.claim.run_id, events[0].seq):
                raise LeaseLost()
            event_log.store(tx, {self.claim.run_id: events})

        try:
            self.write(self._connections.transaction, store)
        except BaseException:
            self.log.retract(events, 1)
            raise
        self.log.stored(events)
        metrics.EVENTS.add(len(events))
        self._open_text.clear()
        self.admission.totals = self.totals.after([ended])

    def _note_progress(self) -> None:
        self.has_progressed = True
        self._on_progress()

    def take_messages(self, steered: list[Steered], among: Collection[str] | None = None) -> None:
        if not self._may_take():
            return
        self.log.has_offered = False
        with self._connections.reading() as sql:
            offered = offered_messages.find(sql, self.claim.run_id)
        # One that an earlier attempt has written is part of the run already.
        known = {one.message_id for one in steered}
        if among is not None:
            offered = [row for row in offered if str(row.id) in known | set(among)]
        for row in offered:
            if str(row.id) not in known:
                event = _steered(row)
                steered.append(steered_by(self.note(event), event))
        self.log.flush()  # the run may have to land now: its last call reads them, too
        ids_taken = [row.id for row in offered]
        self.write(
            self._connections.transaction,
            lambda tx: offered_messages.settle(tx, self.claim, ids_taken),
        )

    def offered_messages(self, steered: Sequence[Steered]) -> Sequence[types.RunSteered]:
        if not self._may_take():
            return ()
        with self._connections.reading() as sql:
            offered = offered_messages.find(sql, self.claim.run_id)
        known = {one.message_id for one in steered}
        return [_steered(row) for row in offered if str(row.id) not in known]

    def _may_take(self) -> bool:
        facts = [Guard.HAS_OFFERED] if self.log.has_offered else []
        return Effect.DELIVER in rule_for(Happening.STEP, Holder.EXECUTING, facts).effects

    def begin_tool_call(self, tool_call_id: str, result_from: ResultSource | None = None) -> bool:
        return self.write(
            self._connections.statement,
            lambda tx: claims.begin_tool_call(tx, self.claim, tool_call_id, result_from),
        )

    def expect_result(self, tool_call_id: str) -> None:
        self.write(
            self._connections.statement,
            lambda tx: claims.expect_result(tx, self.claim, tool_call_id),
        )

    def require_input(self, tool_call_id: str, request: InputRequest) -> None:
        text = request.to_text()
        self.write(
            self._connections.statement,
            lambda tx: input_requests.require_input(tx, self.claim, tool_call_id, text),
        )

    def continue_tool_call(self, tool_call_id: str) -> bool:
        return self.write(
            self._connections.transaction,
            lambda tx: input_requests.continue_tool_call(tx, self.claim, tool_call_id),
        )

    def end_tool_call(self, result: ToolResult, whole_output: str | None = None) -> ToolResult:
        self.log.written_bytes += len(whole_output or "")
        return self.write(
            self._connections.statement,
            lambda tx: claims.end_tool_call(tx, self.claim, result, whole_output),
        )

    def stored_result(self, result_id: str) -> str | None:
        with self._connections.reading() as sql:
            return stored_results.find(sql, self.claim, result_id)

    def compact(self, to: ContextCompacted, *events: Event) -> None:
        # Events first: they have the point too, and the costs of its summary, if a crash follows.
        self.emit(*events, to)
        self.log.flush()
        self.store_context(to)

    def wait_for_memory(self, seconds: float) -> None:
        self.admission.wait_for_memory(seconds)

    # ---- for the attempt ----

    @property
    def totals(self) -> Totals:
        """The steps, usage and cost of the run so far."""
        return self.admission.totals

    def reopen(self, lost: Sequence[StoredEvent]) -> None:
        """Keep, and bill, the text of a lost attempt if the run ends before it is void."""
        self._lost = lost
        self._open_text.append(event_log.text_of(lost))

    def bill_lost_call(self, call: tuple[Route, Usage] | None = None) -> Event:
        """Count the model call in which an earlier attempt was lost.

        `call` is its route with an estimate by its request; without it the estimate is made from
        what is stored of the run.

        Raises:
            Unavailable
        """
        with self._connections.reading() as sql:
            self.admission.totals = interrupted_calls.count(
                self._connections, sql, self.claim.run_id, self.admission.totals, self._lost, call
            )
        self._lost = ()
        return self.admission.cost()

    def store_context(self, to: ContextCompacted) -> None:
        """Store the thread's truncation point, unless it is further on already."""
        self.write(self._connections.statement, lambda tx: thread_contexts.move(tx, self.claim, to))

    def void_lost(self, from_seq: int, *cost: Event) -> None:
        """Declare the text of an earlier attempt void; `cost` is the event that bills it."""
        self._lost = ()
        self.emit(types.MessageReset(from_seq, "resumed"), *cost)

    def last_cost(self) -> Event:
        """Return the final `run.cost`, with a lost call that no attempt has made again.

        Raises:
            Unavailable
        """
        return self.bill_lost_call() if self._lost else self.admission.cost()

    def partial_message(self) -> tuple[UUID, str] | None:
        """Return id and content of the message that keeps the open text; None without any."""
        text = self.open_text
        return (ids.new_id(), text) if text else None

    def write(
        self,
        begin: Callable[[], AbstractContextManager[Transaction]],
        change: Callable[[Transaction], T],
    ) -> T:
        """Make a change guarded by the claim; retried while Postgres is unavailable.

        Raises:
            LeaseLost
        """
        while True:
            try:
                with begin() as tx:
                    changed = change(tx)
            except Unavailable as outage:
                self.pause_for(outage)
            else:
                self.wrote()
                return changed

    def pause_for(self, outage: Unavailable) -> None:
        """Wait before a write is tried again. Raises: LeaseLost: it would be too late."""
        line = "retrying to write the run's state: Postgres unavailable: %s"
        _writes.failed(line, reason_of(outage))
        self.check_lease(outage)
        time.sleep(RETRY_SECONDS)

    def wrote(self) -> None:
        """Record that Postgres has answered a write: an outage before it is over."""
        _writes.worked()

    def check_lease(self, cause: Exception | None = None) -> None:
        """Check the lease. Raises: LeaseLost: the run may belong to another worker."""
        if self.stop.lease_lost:
            raise LeaseLost() from cause


def _steered(offered: Row[Any]) -> types.RunSteered:
    return types.RunSteered(str(offered.id), offered.content, offered.parts)


def _contents_of(messages: Iterable[Message]) -> Iterator[prompts.FileContent]:
    """Yield the content of the messages' files, as far as it was loaded, in the order of both."""
    for message in messages:
        for part in () if isinstance(message, AssistantMessage) else message.parts:
            if part.file_id is None:
                continue
            if isinstance(part, TextPart):
                yield prompts.FileContent(part.file_id, part.text, is_text=True)
            elif part.data:
                yield prompts.FileContent(part.file_id, part.data)
