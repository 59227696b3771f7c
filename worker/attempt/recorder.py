"""Recording the outcome of an attempt: its last events and the end of its claim, in one write."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

from arkloop.shared import fault_points, ids, metrics
from arkloop.shared.catalog import mcp_access
from arkloop.shared.errors import LeaseLost, Unavailable
from arkloop.shared.events import event_log, types
from arkloop.shared.events.plain import clean
from arkloop.shared.events.stored_events import StoredEvent
from arkloop.shared.events.types import Event, RunError
from arkloop.shared.runs import claims, commands, delegation, endings, unbegun_calls
from arkloop.shared.runs.endings import Ending
from arkloop.shared.runs.states import ResultSource, RunState
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.worker.attempt.claimed_run import ClaimedRun
from arkloop.worker.attempt.outcome import Cancelled, Completed, Failed, HandedOff, Outcome, Waiting
from arkloop.worker.contract.outcomes import RunFailure, WaitForInput

#: The pause before an ending is tried again whose row another transaction has locked.
LOCKED_SECONDS = 0.02


@dataclass(slots=True)
class _Batch:
    """Events that are withdrawn from the run's log, to be stored by this module."""

    events: list[StoredEvent]
    is_stored: bool = False


class Recorder:
    """Writes the outcome of one attempt, after which its claim is over."""

    def __init__(
        self,
        connections: Connections,
        run: ClaimedRun,
        end: Callable[[Ending], endings.Outcome],
    ) -> None:
        """`end` writes an ending, perhaps together with those of other runs."""
        self._connections = connections
        self._run = run
        self._end_run = end

    def record(self, outcome: Outcome) -> bool:
        """Write the outcome; False, and nothing written, if the run is being cancelled instead.

        Raises:
            LeaseLost, Unavailable
        """
        run = self._run
        match outcome:
            case Completed(answer):
                message = (UUID(answer.message_id), answer.content) if answer.content else None
                stop_reason = clean(answer.stop_reason)
                completed = types.RunCompleted(
                    answer.message_id if message else None,
                    run.totals.usage,
                    run.totals.cost_usd,
                    stop_reason,
                    answer.output,
                )
                closing = [*answer.closing, completed]
                return self._end(
                    RunState.COMPLETED,
                    closing,
                    message,
                    stop_reason=stop_reason,
                    output_is_json=answer.output is not None,
                )
            case Failed(error):
                cost = run.last_cost()
                failed = types.RunFailed(error, run.totals.usage, run.totals.cost_usd)
                closing = [cost, failed]
                return self._end(RunState.FAILED, closing, run.partial_message(), error=error)
            case Cancelled(by_user_id):
                successor: UUID | None = None
                reason: str | None = None
                if by_user_id is None:
                    by_user_id, successor, reason = self._cancelled_for()
                requested = types.RunCancelRequested(str(by_user_id))
                cost = run.last_cost()
                cancelled = types.RunCancelled(
                    run.totals.usage,
                    run.totals.cost_usd,
                    None if successor is None else str(successor),
                    reason,
                )
                closing = [requested, cost, cancelled]
                return self._end(RunState.CANCELLED, closing, run.partial_message())
            case HandedOff():
                return self._hand_off()
            case Waiting(request):
                return self._park(request)

    def _end(
        self,
        state: RunState,
        closing: list[Event],
        message: tuple[UUID, str] | None,
        *,
        error: RunError | None = None,
        stop_reason: str | None = None,
        output_is_json: bool = False,
    ) -> bool:
        fault_points.reach("worker.before_end")
        run = self._run
        with self._withdrawn(closing) as batch:
            ending = Ending(
                claim=run.claim,
                state=state,
                stored=batch.events,
                totals=run.totals.after(closing),
                message=message,
                stop_reason=stop_reason,
                output_is_json=output_is_json,
                error=error,
                has_reservation=run.admission.is_limited,
            )
            while True:
                try:
                    result = self._end_run(ending)
                except Unavailable as outage:
                    run.pause_for(outage)
                    continue
                if result is not endings.Outcome.LOCKED:
                    break
                run.check_lease()
                time.sleep(LOCKED_SECONDS)
            run.wrote()
            if result is endings.Outcome.LOST:
                raise LeaseLost()
            batch.is_stored = result is endings.Outcome.ENDED
        if batch.is_stored:
            metrics.RUNS_ENDED.add(1, state, "" if error is None else error.code)
        return batch.is_stored

    def _hand_off(self) -> bool:
        """Queue the run again; its open text will be void in the next attempt."""
        run = self._run
        with self._withdrawn([run.last_cost()]) as batch:
            progressed = run.has_progressed or any(event.ends_step for event in batch.events)

            def release(tx: Transaction) -> bool:
                is_released = claims.release(
                    tx, run.claim, batch.events, run.totals, progressed=progressed
                )
                if is_released:
                    self._keep_unbegun(tx)
                return is_released

            batch.is_stored = run.write(self._connections.transaction, release)
        return batch.is_stored

    def _park(self, wait: WaitForInput) -> bool:
        """Let the run wait for a person, or for results from outside, without a worker."""
        run = self._run
        if wait.calls and all(call.result_from is ResultSource.RUN for call in wait.calls):
            return self._suspend(wait)
        now = run.log.now()
        request = wait.request(str(ids.new_id()), now)
        shown = {**request, **wait.shown(now), "identity": None}  # the run's own fields
        if wait.persona.on_input_expired != "fail":
            shown["on_expiry"] = wait.persona.on_input_expired
        with self._withdrawn([types.RunWaitingForInput(**request)]) as batch:

            def park(tx: Transaction) -> bool:
                has_page = _has_page(tx, run.claim.run_id, wait)
                is_parked = claims.park(
                    tx,
                    run.claim,
                    batch.events,
                    pending_input={k: v for k, v in shown.items() if v is not None},
                    expires_at=wait.next_expires_at(now),
                    totals=run.totals,
                )
                if is_parked and not has_page:
                    commands.answer_visit(tx, run.claim.run_id, wait.url or "", is_accepted=True)
                if is_parked:
                    self._keep_unbegun(tx)
                return is_parked

            batch.is_stored = run.write(self._connections.transaction, park)
        fault_points.reach("worker.parked")
        return batch.is_stored

    def _suspend(self, wait: WaitForInput) -> bool:
        """Let the run wait for its sub-runs without a worker."""
        run = self._run
        call_ids = [call.tool_call_id for call in wait.calls]
        with self._withdrawn([types.RunSuspended(call_ids)]) as batch:

            def suspend(tx: Transaction) -> bool:
                is_parked = claims.suspend(tx, run.claim, batch.events, totals=run.totals)
                if is_parked:
                    _check_awaited(tx, run.claim.run_id, call_ids)
                    self._keep_unbegun(tx)
                return is_parked

            batch.is_stored = run.write(self._connections.transaction, suspend)
        fault_points.reach("worker.parked")
        return batch.is_stored

    def _keep_unbegun(self, tx: Transaction) -> None:
        """Store which calls the next attempt can begin."""
        run = self._run
        if run.unbegun_calls is not None:
            unbegun_calls.keep(tx, run.claim, run.unbegun_calls)

    @contextmanager
    def _withdrawn(self, closing: list[Event]) -> Iterator[_Batch]:
        """Take the events not committed yet, and `closing`, for the block to store.

        If it does not store them, the run's log has all but `closing` again.
        """
        log = self._run.log
        batch = _Batch(log.withdraw(*closing, closes=True))
        try:
            yield batch
        except LeaseLost:
            # A COMMIT whose answer was lost may have ended the claim itself: its events show it.
            if not self._is_stored(batch.events[-1]):
                raise
            stored = {log.run_id: batch.events}
            self._connections.notify(event_log.Publish(stored))
            batch.is_stored = True
        finally:
            if not batch.is_stored:
                log.retract(batch.events, len(closing))

    def _is_stored(self, event: StoredEvent) -> bool:
        with self._connections.reading() as sql:
            event = event._replace(prompts=None)  # as it is read
            return event in event_log.read_table(sql, self._run.claim.run_id, event.seq - 1, 1)

    def _cancelled_for(self) -> tuple[UUID | None, UUID | None, str | None]:
        with self._connections.reading() as sql:
            return claims.cancelled_for(sql, self._run.claim)


def _check_awaited(tx: Transaction, run_id: UUID, call_ids: Sequence[str]) -> None:
    """Check that results of these calls can arrive: else the run would be queued again at once,
    to wait for them again.

    Raises:
        RunFailure
    """
    if missing := set(call_ids) - delegation.accepted(tx.sql, run_id, call_ids):
        names = ", ".join(map(repr, sorted(missing)))
        raise RunFailure("worker.crashed", f"No results of sub-runs can arrive for: {names}.")


def _has_page(tx: Transaction, run_id: UUID, wait: WaitForInput) -> bool:
    """Return whether the page that the call asked for is still open, and keep it open.

    Other calls of the turn may have taken their time; another run's page is enough for both.
    """
    if not wait.gives_access or wait.mcp_tool is None:
        return True
    return mcp_access.hold_open(tx.sql, UUID(wait.mcp_tool["config_id"]), run_id)
