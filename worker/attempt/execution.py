"""An attempt of a run: claim it, run the loop, record one outcome."""

import logging
import time
from contextlib import closing
from typing import Any
from uuid import UUID

from arkloop.shared import fault_points, logs, machine, times
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.claim import Claim
from arkloop.shared.errors import LeaseLost, Unavailable
from arkloop.shared.outage_log import OutageLog, reason_of
from arkloop.shared.runs import run_spans
from arkloop.shared.spans import Span
from arkloop.shared.storage.notifications import Enqueue
from arkloop.worker.agent import loop
from arkloop.worker.agent.conversation import ResumeState
from arkloop.worker.agent.loop import Answer
from arkloop.worker.agent.tool_calls import cut_off_calls
from arkloop.worker.attempt import (
    custom_agent,
    delegating,
    failure_log,
    preparation,
)
from arkloop.worker.attempt.claimed_run import ClaimedRun
from arkloop.worker.attempt.outcome import (
    ABANDONED,
    NAMES,
    Cancelled,
    Completed,
    Failed,
    Outcome,
    Waiting,
    outcome_of,
)
from arkloop.worker.attempt.recorder import Recorder
from arkloop.worker.contract.outcomes import DeadlineExceeded, ProviderError, StopRun
from arkloop.worker.process.history import most_bytes
from arkloop.worker.process.process import ActiveRun, WorkerProcess
from arkloop.worker.process.run_log import RunLog

log = logging.getLogger(__name__)
_claims = OutageLog(log, "claiming runs")

#: Seconds for which the process that parked a run listens for its input, while slots are free.
LINGER_SECONDS = 2.0
LEASE_WAIT_SECONDS = 10.0
#: Processes may choose the same runs: what one of them loses, it chooses again as often as this.
MAX_CHOICES = 4
#: Of a run's time: what it waits at most because earlier runs were refused.
REFUSAL_WAIT_PART = 0.1
#: It may come straight back: not more often than this.
SEND_ON_SECONDS = 0.2


def execute_in_turn(process: WorkerProcess, run_id: UUID, *, by_message: bool = False) -> None:
    """Execute the run, or, while the queue is long, the one whose turn it is.

    If another process has that one by then, its org has another turn, a few times; then the run
    itself is executed.
    """
    lost = None
    for _ in range(MAX_CHOICES):
        if not process.queue_is_long or process.draining.is_set():
            break
        turn = _turn(process, run_id, lost)
        if turn == run_id:
            break
        if execute(process, turn):
            return
        lost = turn
    execute(process, run_id, by_message=by_message)


def _turn(process: WorkerProcess, run_id: UUID, lost: UUID | None) -> UUID:
    try:
        return process.whose_turn((run_id, lost))
    except Unavailable:
        return run_id


def execute(process: WorkerProcess, run_id: UUID, *, by_message: bool = False) -> bool:
    """Claim the run if it is queued, and execute it until it ends, waits or must be let go.

    Returns whether it could be claimed. `by_message`: a message named it, and not a look into
    Postgres.
    """
    was_claimed = False
    while True:
        if process.draining.is_set():
            _send_on(process, run_id)
            return was_claimed
        # Not claimed here, it stays queued: another worker finds it.
        if not process.lease.wait_until_valid(LEASE_WAIT_SECONDS):
            return was_claimed
        fault_points.reach("worker.popped")
        with process.track(run_id) as active:
            parked = _attempt(process, active, by_message=by_message)
            was_claimed = was_claimed or parked is not None
            has_capacity = process.free_slots > process.settings.worker_concurrency // 2
            if not parked or not has_capacity or process.draining.is_set():
                return was_claimed
            if not active.answered.wait(LINGER_SECONDS):
                return was_claimed


def _send_on(process: WorkerProcess, run_id: UUID) -> None:
    """Enqueue the run again for another worker: this one stops, but still takes messages for a
    moment.
    """
    time.sleep(SEND_ON_SECONDS)
    process.connections.notify(Enqueue(run_id))


def _attempt(process: WorkerProcess, active: ActiveRun, *, by_message: bool) -> bool | None:
    """Make one attempt; return whether the run now waits for a person, None if it has no claim."""
    began, began_ns = time.monotonic(), time.time_ns()
    try:
        try:
            claim = _claim(process, active, by_message=by_message)
        except Unavailable as error:
            # The poller finds the run again and again, and each try would have a line.
            _claims.failed("claiming a run failed: %s", reason_of(error))
            process.mark_outage(active.run_id)  # the response to its claim may be lost
            return False
        _claims.worked()
        if claim is None:
            return None
        logs.bind(
            run_id=str(claim.run_id),
            org_id=str(claim.org_id),
            trace_id=claim.trace_id,
            attempt=claim.attempt,
        )
        with run_spans.begin_attempt(claim, began=began_ns, by_message=by_message) as span:
            outcome = _traced(process, active, claim, span)
        log.info("attempt ended", extra=_ended(outcome, began))
        return isinstance(outcome, Waiting)
    except (LeaseLost, Unavailable) as error:
        line = "abandoning run: its lease may have expired: %s"
        if machine.shortage_behind(error):
            line = "abandoning run: %s"
        log.warning(line, reason_of(error), extra=_ended(None, began))
        process.mark_outage(active.run_id)
        return False
    except MemoryError as error:  # a crash: a run that takes all memory each time must end
        line = "abandoning run: no memory is left"
        log.error(line, exc_info=error, extra=_ended(None, began))
        return False
    finally:
        process.leave_quarantine(active)
        logs.clear()


def _traced(process: WorkerProcess, active: ActiveRun, claim: Claim, span: Span) -> Outcome:
    try:
        outcome = _carry_out(process, active, claim)
    except (LeaseLost, Unavailable, MemoryError):
        span.drop()  # who recovers the run records the attempt
        raise
    span.set({"arkloop.outcome": NAMES[type(outcome)]})
    if isinstance(outcome, Failed):
        span.fail(outcome.error.code)
    return outcome


def _ended(outcome: Outcome | None, began: float) -> dict[str, Any]:
    """Return the fields of the line with which an attempt ends; `outcome`: None without one."""
    return {
        "outcome": ABANDONED if outcome is None else NAMES[type(outcome)],
        "error_code": outcome.error.code if isinstance(outcome, Failed) else None,
        "duration_ms": round((time.monotonic() - began) * 1000),
    }


def _claim(process: WorkerProcess, active: ActiveRun, *, by_message: bool) -> Claim | None:
    process.enter_quarantine(active)
    claim = process.claim(active)
    if claim is None:
        return None
    process.mark_wait(claim, by_message=by_message)
    if by_message:
        process.mark_delivered(claim.queued_at)
    fault_points.reach("worker.claimed")
    if not claim.is_suspect:
        process.leave_quarantine(active)
    return claim


def _carry_out(process: WorkerProcess, active: ActiveRun, claim: Claim) -> Outcome:
    """Execute the claimed run and record what becomes of it; return the outcome recorded."""
    run = _claimed_run(process, active, claim)
    recorder = Recorder(process.connections, run, process.end)
    outcome = _perform(process, active, run)
    try:
        is_recorded = recorder.record(outcome)
    except Exception as error:  # it cannot be stored
        outcome = outcome_of(error)
        is_recorded = recorder.record(outcome)
    if not is_recorded:  # a cancel was accepted first
        outcome = Cancelled()
        recorder.record(outcome)
    if isinstance(outcome, Completed | Failed | Cancelled | Waiting):
        process.webhooks.wake(claim.org_id)
    if run.may_have_sub_runs and isinstance(outcome, Completed | Failed | Cancelled):
        delegating.cancel_left(process, run)
    if isinstance(outcome, Failed):
        route = run.chain.route if run.chain else None
        failure_log.report(outcome.error, claim.route_id, route, outcome.cause)
    return outcome


def _claimed_run(process: WorkerProcess, active: ActiveRun, claim: Claim) -> ClaimedRun:
    run_log = RunLog(
        claim.run_id,
        claim.fence,
        claim.last_seq,
        active.stop,
        process.writer.mark,
        times.clock_set_to(claim.claimed_at),
        process.settings.run_output_mib * 1024 * 1024,
        server=claim.server,
    )
    return ClaimedRun(
        process.connections,
        claim,
        run_log,
        active.stop,
        process.limits,
        process.files,
        lambda: process.leave_quarantine(active),
    )


def _perform(process: WorkerProcess, active: ActiveRun, run: ClaimedRun) -> Outcome:
    """Execute the run up to its outcome; here alone an exception becomes one."""
    try:
        return Completed(_answer(process, active, run))
    except (StopRun, Exception) as reason:
        return outcome_of(reason)


def _answer(process: WorkerProcess, active: ActiveRun, run: ClaimedRun) -> Answer:
    """Prepare the agent, let it continue after earlier attempts, and return its final answer."""
    claim = run.claim
    # First what it has cost: whatever fails from here on, a run ends with that.
    earlier = preparation.resume(process.connections, run) if run.is_resumed else ResumeState()
    persona = preparation.persona_of(process, claim)
    run.admission.set_persona(persona)
    run.may_have_sub_runs = bool(persona.delegates)
    active.limit_time(persona.timeout_seconds, claim.used_seconds)
    if persona.agent is not None:
        identity = preparation.identity_of(claim)
        return custom_agent.carry_out(process, run, identity, persona, earlier)
    run.steered = earlier.steered
    first: Route | None = None
    try:
        chain, left = preparation.chain_of(process, run, persona, earlier)
        run.chain, first = chain, chain.route
        loader, most, windows = process.histories, most_bytes(chain, persona), chain.windows
        if not run.is_resumed:
            run.admission.wait_after_refusals(first, persona.timeout_seconds * REFUSAL_WAIT_PART)
        with loader.history_of(claim, most, run, windows) as seen, closing(chain):
            agent = preparation.agent_of(
                process, run, persona, chain, preparation.continued(seen, run, earlier)
            )
            if earlier.lost:
                run.void_lost(earlier.lost[0].seq, *preparation.cost_of_lost(agent, run, earlier))
            if left:
                run.emit(left)
            if run.is_resumed:
                run.admission.take_over(
                    keep_is_own=chain.route.is_of_org, is_last=earlier.limit_reached is not None
                )
                if run.may_have_sub_runs:
                    delegating.announce(process, run)
            answer = loop.run(agent, run, active.stop, earlier.turns, earlier.limit_reached)
            run.admission.note_success(first)
            return answer
    except ProviderError as error:
        if first is not None and error.too_large is not None and error.too_large.is_per_minute:
            run.admission.note_refusal(first)
        raise
    except DeadlineExceeded:
        if persona.on_limit == "fail":
            raise
        # The loop adds its turns to these, and the last one may have calls in progress.
        if earlier.turns and (results := cut_off_calls(run, earlier.turns[-1])):
            run.note(*results)
        return loop.cut_off(persona, run, earlier.limit_reached or "timeout", run.last_cost())
