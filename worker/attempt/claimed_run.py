"""A run that this process holds: what the loop asks of it, and the ways to let it go."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TypeVar
from uuid import UUID

from shared import fault_points, ids, times
from shared.catalog.model_routes import Route
from shared.catalog.personas import Persona
from shared.claim import Claim
from shared.errors import LeaseLost, Unavailable
from shared.events import eventlog, types
from shared.events.types import Event, RouteCost, RunError, StoredEvent, ToolResult, Usage
from shared.runs import claims, lost_calls
from shared.runs.endings import Ending, Outcome
from shared.runs.status import RunState
from shared.runs.transitions import Totals
from shared.storage.connections import Connections, Transaction
from worker.agent.loop import Answer
from worker.attempt.admission import Admission
from worker.contract.outcomes import WaitForInput
from worker.contract.patience import Patience
from worker.contract.stop_signal import StopSignal
from worker.process.route_limits import RouteLimits
from worker.process.run_log import RunLog

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.2
#: A row that somebody else has locked for a moment.
LOCKED_SECONDS = 0.02

T = TypeVar("T")


class ClaimedRun:
    """`context.RunContext` over a claim; one attempt, from claim to the write that lets go."""

    def __init__(
        self,
        connections: Connections,
        claim: Claim,
        run_log: RunLog,
        stop: StopSignal,
        limits: RouteLimits,
        end: Callable[[Ending], Outcome],
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """`end` writes an ending, perhaps together with those of other runs.

        `on_progress` is called when a step is finished: crashes are counted anew from there.
        """
        self.claim = claim
        self.attempt = claim.attempt
        self.is_resumed = claim.attempt > 1
        self.stop = stop
        self.log = run_log
        self.totals = Totals()
        self._connections = connections
        self.admission = Admission(
            claim,
            limits,
            write=lambda change: self._write(connections.transaction, change),
            emit=self.emit,
            wait=stop.wait,
        )
        self._open_text: list[str] = []
        self._lost: Sequence[StoredEvent] = ()
        self._end = end
        self._on_progress = on_progress
        self._progressed = False

    # ---- RunContext ----

    def check(self) -> None:
        self.stop.check()
        self.log.check_size()

    def wait(self, seconds: float) -> None:
        self.stop.wait(seconds)

    def aborting(self, abort: Callable[[], None]) -> AbstractContextManager[None]:
        return self.stop.aborting(abort)

    def stream_text(self, text: str) -> None:
        self._open_text.append(text)
        self.log.add_text(types.MessageDelta, text)
        self.log.check_size()

    def stream_thinking(self, text: str) -> None:
        self.log.add_text(types.MessageThinking, text)
        self.log.check_size()

    def void_text(self, reason: str, *then: Event) -> None:
        self._open_text.clear()
        self.log.void_text(reason, *then)

    def emit(self, *happened: Event) -> None:
        self._open_text.clear()
        self.log.add(*happened)

    def checkpoint(self) -> None:
        self.log.flush()
        self._progressed = True
        self._on_progress()

    def begin_tool_call(self, tool_call_id: str) -> bool:
        return self._write(
            self._connections.statement,
            lambda tx: claims.begin_tool_call(tx, self.claim, tool_call_id),
        )

    def end_tool_call(self, result: ToolResult) -> None:
        self._write(
            self._connections.statement, lambda tx: claims.end_tool_call(tx, self.claim, result)
        )

    def add_usage(self, route: Route, usage: Usage) -> Event:
        self.admission.record_usage(route, usage)
        self.totals = self.totals.plus(RouteCost(route.id, route.model, usage, route.cost(usage)))
        return self._cost()

    @property
    def is_limited(self) -> bool:
        return self.admission.is_limited

    def reserve(self, route: Route, worst_case: Usage) -> None:
        self.admission.reserve(route, worst_case, self.totals.cost_usd, self.totals.own_usd)

    def settle(self) -> None:
        self.admission.settle(self.totals.cost_usd, self.totals.own_usd)

    def admit(self, route: Route, tokens: int, patience: Patience) -> None:
        self.admission.admit(route, tokens, patience)

    def pause_route(self, route: Route, seconds: float, *, is_shared: bool) -> None:
        self.admission.pause_route(route, seconds, is_shared=is_shared)

    def back_off(self, route: Route, seconds: float, *, is_shared: bool) -> None:
        self.admission.back_off(route, seconds, is_shared=is_shared)

    def wait_for_memory(self, seconds: float) -> None:
        self.admission.wait_for_memory(seconds)

    def reopen(self, lost: Sequence[StoredEvent]) -> None:
        """An earlier attempt streamed these: they are kept and counted if the run ends before
        they are void.
        """
        self._lost = lost
        self._open_text.append(eventlog.text_of(lost))

    def count_lost(self, call: tuple[Route, Usage] | None = None) -> Event:
        """Count the model call in which an earlier attempt was lost.

        `call`: the route that made it, and the estimate by its request; without it what is stored
        of the run is measured.

        Raises:
            Unavailable
        """
        with self._connections.reading() as sql:
            self.totals = lost_calls.count(
                self._connections, sql, self.claim.run_id, self.totals, self._lost, call
            )
        self._lost = ()
        return self._cost()

    def void_lost(self, from_seq: int, *cost: Event) -> None:
        """The text of an earlier attempt is void, and was not free."""
        self._lost = ()
        self.emit(types.MessageReset(from_seq, "resumed"), *cost)

    # ---- ways to let go ----

    def complete(self, answer: Answer) -> bool:
        """The model's last word, the end and the thread's message, in one transaction.

        False: the run is being cancelled instead (as for `fail`, `release` and `park`).
        """
        message = (UUID(answer.message_id), answer.content) if answer.content else None
        stop_reason = types.clean(answer.stop_reason)
        ended = types.RunCompleted(
            answer.message_id if message else None,
            self.totals.usage,
            self.totals.cost_usd,
            stop_reason,
        )
        return self._finish(
            RunState.COMPLETED, message, None, *answer.closing, ended, stop_reason=stop_reason
        )

    def fail(self, error: RunError) -> bool:
        cost = self._last_cost()
        ended = types.RunFailed(error, self.totals.usage, self.totals.cost_usd)
        return self._finish(RunState.FAILED, self._partial(), error, cost, ended)

    def cancel(self, by_user_id: UUID | None = None) -> None:
        """`by_user_id` wants it; None: read who does."""
        if by_user_id is None:
            with self._connections.reading() as sql:
                by_user_id = claims.cancel_requested_by(sql, self.claim)
        cost = self._last_cost()
        self._finish(
            RunState.CANCELLED,
            self._partial(),
            None,
            types.RunCancelRequested(str(by_user_id)),
            cost,
            types.RunCancelled(self.totals.usage, self.totals.cost_usd),
        )

    def release(self) -> bool:
        """Hand the run to another worker; its open text will be void there."""
        cost = self._last_cost()
        return self._hand_back(
            lambda tx, stored: claims.release(
                tx,
                self.claim,
                stored,
                self.totals,
                progressed=self._progressed or any(event.ends_step for event in stored),
            ),
            cost,
        )

    def park(self, wait: WaitForInput, persona: Persona) -> bool:
        """Wait for a person to answer."""
        expires_at = self.log.now() + timedelta(seconds=persona.input_expires_seconds)
        request = wait.request(str(ids.new_id()), times.rfc3339(expires_at))
        shown = {**request, **wait.tool()}
        if persona.on_input_expired != "fail":
            shown["on_expiry"] = persona.on_input_expired
        return self._hand_back(
            lambda tx, stored: claims.park(
                tx,
                self.claim,
                stored,
                pending_input={k: v for k, v in shown.items() if v is not None},
                expires_at=expires_at,
                totals=self.totals,
            ),
            types.RunWaitingForInput(**request),
        )

    # ---- pieces ----

    def _cost(self) -> Event:
        return types.RunCost(self.totals.usage, self.totals.cost_usd, self.totals.routes)

    def _last_cost(self) -> Event:
        return self.count_lost() if self._lost else self._cost()

    def _partial(self) -> tuple[UUID, str] | None:
        text = "".join(self._open_text)
        return (ids.new_id(), text) if text else None

    def _finish(
        self,
        state: RunState,
        message: tuple[UUID, str] | None,
        error: RunError | None,
        *last: Event,
        stop_reason: str | None = None,
    ) -> bool:
        def finish(stored: list[StoredEvent]) -> bool:
            ending = Ending(
                claim=self.claim,
                state=state,
                stored=stored,
                totals=self.totals,
                message=message,
                stop_reason=stop_reason,
                error=error,
                is_held=self.is_limited,
            )
            while (outcome := self._try(lambda: self._end(ending))) is Outcome.LOCKED:
                self._check_lease()
                time.sleep(LOCKED_SECONDS)
            if outcome is Outcome.LOST:
                raise LeaseLost()
            return outcome is Outcome.ENDED

        fault_points.reach("worker.before_end")
        return self._let_go(finish, *last)

    def _hand_back(
        self, change: Callable[[Transaction, list[StoredEvent]], bool], *last: Event
    ) -> bool:
        return self._let_go(
            lambda stored: self._write(
                self._connections.transaction, lambda tx: change(tx, stored)
            ),
            *last,
        )

    def _let_go(self, write: Callable[[list[StoredEvent]], bool], *last: Event) -> bool:
        """Write everything still unwritten and the `last` events together with the change."""
        stored = self.log.withdraw(*last)
        done = False
        try:
            done = write(stored)
        except LeaseLost:
            # A COMMIT whose answer was lost may have ended the claim itself: its events tell.
            if not self._is_stored(stored[-1]):
                raise
            self._connections.send(eventlog.news(self._connections, {self.claim.run_id: stored}))
            done = True
        finally:
            if not done:
                self.log.retract(stored, len(last))
        return done

    def _write(
        self,
        begin: Callable[[], AbstractContextManager[Transaction]],
        change: Callable[[Transaction], T],
    ) -> T:
        def once() -> T:
            with begin() as tx:
                return change(tx)

        return self._try(once)

    def _try(self, write: Callable[[], T]) -> T:
        """Make a guarded write; try again while Postgres is out of reach and the lease lives."""
        while True:
            try:
                return write()
            except Unavailable as error:
                log.warning(
                    "retrying to write the run's state: Postgres unavailable: %s", error.__cause__
                )
                self._check_lease(error)
                time.sleep(RETRY_SECONDS)

    def _check_lease(self, cause: Exception | None = None) -> None:
        if self.stop.lease_lost:
            raise LeaseLost() from cause

    def _is_stored(self, event: StoredEvent) -> bool:
        with self._connections.reading() as sql:
            return event in eventlog.read_table(sql, self.claim.run_id, event.seq - 1, 1)
