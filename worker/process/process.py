"""A worker process: its lease, writer and signal listener, and the runs it executes."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from uuid import UUID

from arkloop.shared import metrics
from arkloop.shared.background_loop import BackgroundLoop
from arkloop.shared.catalog import model_routes
from arkloop.shared.catalog.catalog import Catalog
from arkloop.shared.claim import Claim
from arkloop.shared.config import Settings
from arkloop.shared.errors import Unavailable
from arkloop.shared.events import event_log
from arkloop.shared.files.configured_storage import storage_of
from arkloop.shared.runs import claims, recovery, sweep
from arkloop.shared.runs.endings import RunEnder
from arkloop.shared.runs.fair_queue import FairQueue
from arkloop.shared.runs.worker_calls import CallEnded
from arkloop.shared.security import program_user
from arkloop.shared.storage import signals
from arkloop.shared.storage.connections import Connections, connect
from arkloop.shared.storage.group_commit import GroupCommit
from arkloop.shared.storage.notifications import NotificationSender
from arkloop.shared.storage.postgres import RUN_TIMEOUTS
from arkloop.worker.contract.outcomes import (
    CancelRequested,
    DeadlineExceeded,
    ShuttingDown,
    TimeToLand,
)
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.mcp.client import McpClient
from arkloop.worker.process.context_sizes import ContextSizes
from arkloop.worker.process.event_writer import EventWriter
from arkloop.worker.process.file_loader import FileLoader
from arkloop.worker.process.history_loader import HistoryLoader
from arkloop.worker.process.lease import Lease
from arkloop.worker.process.route_limits import RouteLimits
from arkloop.worker.process.worker_calls import WorkerCalls
from arkloop.worker.webhooks.sender import WebhookSender

log = logging.getLogger(__name__)

#: A message that has not arrived by then is not expected any more.
DELIVERY_SECONDS = 2.0
#: A run that waits for longer than this has waited for others: messages take some milliseconds.
LONG_WAIT_SECONDS = 0.25
#: How long a model call may continue after SIGTERM before its run is handed over.
DRAIN_SECONDS = 5.0
#: How long handing over may take after that, and removing the worker's row.
HAND_OVER_SECONDS = 3.0
DEREGISTER_SECONDS = 2.0
#: The part of a run's time that is reserved for its last call, and the most that this may be.
LANDING_SHARE = 0.2
MAX_LANDING_SECONDS = 60.0


class ActiveRun:
    """A run that one thread of this process executes, with what may reach it from outside."""

    def __init__(self, run_id: UUID) -> None:
        self.run_id = run_id
        self.stop = StopSignal()
        self.answered = threading.Event()  # its input has arrived
        self.timeout_seconds = float("inf")
        self.deadline = self.landing_at = float("inf")  # on the monotonic clock

    def limit_time(self, timeout_seconds: float, used_seconds: float) -> None:
        """Stop the run when it has taken `timeout_seconds`, of which it has used some already.

        Before that, a run that can land gets the time for its last call.
        """
        self.timeout_seconds = timeout_seconds
        self.deadline = time.monotonic() + timeout_seconds - used_seconds
        self.landing_at = self.deadline - landing_seconds(timeout_seconds)

    def enforce_time(self, now: float) -> None:
        """Stop the run if its time is over, or only that for its last call is left."""
        if self.deadline < now:
            self.stop.set(DeadlineExceeded(self.timeout_seconds))
        elif self.landing_at < now:
            self.stop.set(TimeToLand())


def landing_seconds(timeout_seconds: float) -> float:
    """Return the seconds of a run's time that are reserved for its last call."""
    return min(timeout_seconds * LANDING_SHARE, MAX_LANDING_SECONDS)


class WorkerProcess:
    """Built once per process, after any fork; `execution.execute` runs in many threads of it."""

    def __init__(self, settings: Settings, routes: model_routes.Routes) -> None:
        self.settings = settings
        # Everything for Redis goes through one thread, so that a run's events stay in order.
        self.connections: Connections = connect(
            settings, application="arkloop-worker", timeouts=RUN_TIMEOUTS, send=NotificationSender()
        )
        self.catalog = Catalog(self.connections, routes)
        self.limits = RouteLimits(self.connections)
        self.context_sizes = ContextSizes(self.connections)
        self.mcp = McpClient(
            allowed_networks=settings.allowed_networks,
            stdio=settings.mcp_stdio,
            run_as=program_user.of(settings.mcp_stdio_user) if settings.mcp_stdio else None,
            core_dumps=settings.core_dumps,
        )
        self.writer = EventWriter(self.connections)
        # Apart: an error of a run that resumes is none of new ones, which are claimed by then.
        self._claim_new = GroupCommit(partial(self._claim, claims.claim_new))
        self._claim_resumed = GroupCommit(partial(self._claim, claims.claim_resumed))
        self._fair_queue = FairQueue()
        #: Returns the run whose turn it is while the queue is long, for one that a message names,
        #: and for one that was chosen instead and was another process's.
        self.whose_turn = GroupCommit(self._whose_turn)
        #: True from a claim that had waited for others to one that had not, by its own message.
        self.queue_is_long = False
        self.histories = HistoryLoader(self.connections)
        storage = storage_of(settings)
        self.files = FileLoader(self.connections, storage, self.histories.memory)
        self.draining = threading.Event()
        self.webhooks = WebhookSender(self.connections, self.draining)
        self.end = RunEnder(self.connections, self.webhooks.endpoints_of)
        self._lock = threading.Lock()
        self._active: set[ActiveRun] = set()
        self._suspect: ActiveRun | None = None
        self._outage_runs: set[UUID] = set()
        #: Executes a run, in the middle of whose call a person was asked; the poller sets it.
        self.resume: Callable[[UUID], None] = lambda _run_id: None
        self._delivered_at = float("-inf")
        self._newest_delivered: datetime | None = None
        self.lease = Lease(settings, self.connections.keys, self.active_runs, self._on_orphan)
        self.worker_id = self.lease.worker_id
        self.worker_calls = WorkerCalls(self.connections)
        self._signals = signals.SignalListener(
            self.connections, self.worker_id, self.active_runs, self._on_signal
        )
        self._sweep = sweep.start(self.connections)
        BackgroundLoop("deadlines", self._enforce_deadlines, seconds=0.25)
        threading.Thread(target=self._hand_over, name="drain", daemon=True).start()

    def close(self) -> None:
        """Drain, and let the threads that talk to Postgres and Redis end at their next turn."""
        self.drain()
        self._wait_for_runs(DRAIN_SECONDS + HAND_OVER_SECONDS)
        self.webhooks.wait_until_ended()
        self.lease.stop(DEREGISTER_SECONDS)
        self._signals.stop()
        self._sweep.stop()
        self.worker_calls.stop()
        self.mcp.close()
        self.connections.close()

    def claim(self, run: "ActiveRun") -> Claim | None:
        """Claim the run, together with what other threads claim now; None if it is not queued.

        Raises:
            Unavailable: it may have been claimed.
        """
        return self._claim_new(run) or self._claim_resumed(run)

    def _claim(
        self, write: Callable[..., dict[UUID, Claim]], wanted: Sequence["ActiveRun"]
    ) -> list[Claim | None]:
        ids = [run.run_id for run in wanted]
        suspects = [run.run_id for run in wanted if run is self._suspect]
        taken = write(self.connections, ids, self.worker_id, suspects=suspects)
        # A run may be wanted twice: only the first gets it.
        return [taken.pop(run.run_id, None) for run in wanted]

    def _whose_turn(self, wanted: Sequence[tuple[UUID, UUID | None]]) -> list[UUID]:
        named = [run_id for run_id, _ in wanted]
        lost = [run_id for _, run_id in wanted if run_id is not None]
        with self.connections.reading() as sql:
            return self._fair_queue.choose(sql, named, lost)

    def mark_wait(self, claim: Claim, *, by_message: bool) -> None:
        """Note whether a run has waited for others, until its message or its turn came.

        Messages arrive in the order of the queue, so one of a fresh run says that there is none.
        No time does: where runs take minutes, so does the time from one claim to the next.
        """
        # Not less than 0: Postgres' clock may have been set back meanwhile.
        waited = max(0.0, (claim.claimed_at - claim.queued_at).total_seconds())
        metrics.RUN_WAIT.add(waited)
        if waited > LONG_WAIT_SECONDS:
            self.queue_is_long = True
        elif by_message:
            self.queue_is_long = False

    def active_runs(self) -> dict[UUID, StopSignal]:
        """Return the stop signals of the runs being executed or claimed, by run id."""
        with self._lock:
            return {run.run_id: run.stop for run in self._active}

    @contextmanager
    def track(self, run_id: UUID) -> Iterator[ActiveRun]:
        """Listen for the run's signals: from before the claim, so that none is missed."""
        run = ActiveRun(run_id)
        with self._lock:
            self._active.add(run)
        metrics.SLOTS_IN_USE.add(1)
        try:
            yield run
        finally:
            metrics.SLOTS_IN_USE.add(-1)
            with self._lock:
                self._active.discard(run)

    @property
    def free_slots(self) -> int:
        """The number of further runs that this process may execute."""
        return self.settings.worker_concurrency - len(self._active)

    def mark_delivered(self, queued_at: datetime) -> None:
        """Note that a message delivered a run that was queued at this time."""
        self._delivered_at = time.monotonic()
        self._newest_delivered = max(queued_at, self._newest_delivered or queued_at)

    @property
    def newest_delivered_queued_at(self) -> datetime | None:
        """The time at which the newest delivered run was queued; None without a recent delivery.

        Messages arrive in order: one for a run that was queued earlier is not going to arrive.
        """
        is_recent = time.monotonic() - self._delivered_at < DELIVERY_SECONDS
        return self._newest_delivered if is_recent else None

    @property
    def has_suspect(self) -> bool:
        return self._suspect is not None

    def enter_quarantine(self, run: ActiveRun) -> bool:
        """Make the run this process's only suspect; False if there is another one.

        A suspect that kills its worker must not take along others that are given up with their
        next lost owner.
        """
        with self._lock:
            if self._suspect is None:
                self._suspect = run
            return self._suspect is run

    def leave_quarantine(self, run: ActiveRun) -> None:
        """Make room for another suspect: the run is none, or not any more."""
        with self._lock:
            if self._suspect is run:
                self._suspect = None

    def drain(self) -> None:
        """Hand the runs over: at their next step, or when the drain time is over.

        Only sets a flag: it is called from a signal handler, which must not block.
        """
        self.draining.set()

    def wait_until_drained(self) -> None:
        """Return once every run is handed over and each webhook's attempt is recorded, or a few
        seconds after they should have been.
        """
        self._wait_for_runs(2 * DRAIN_SECONDS)
        self.webhooks.wait_until_ended()

    def _wait_for_runs(self, seconds: float) -> None:
        """Return once no run is active, or after `seconds`."""
        deadline = time.monotonic() + seconds
        while self.active_runs() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _hand_over(self) -> None:
        self.draining.wait()
        self._wait_for_runs(DRAIN_SECONDS)
        for stop in self.active_runs().values():
            stop.set(ShuttingDown())
        self.mcp.settle()  # beside the attempts of webhooks, which may take longer

    def mark_outage(self, run_id: UUID) -> None:
        """Note that the run was abandoned in an outage of Postgres, which is no crash of it."""
        with self._lock:
            self._outage_runs.add(run_id)

    def _on_orphan(self, run_id: UUID, fence: int) -> None:
        taking_back = partial(self._recover, run_id, fence)
        threading.Thread(target=taking_back, name="orphan", daemon=True).start()

    def _recover(self, run_id: UUID, fence: int) -> None:
        is_crash = run_id not in self._outage_runs
        try:
            with self.connections.reading() as sql:
                extra = event_log.subject(sql, run_id)
            log.error(
                "no thread of this process executes its run %s: requeueing it", run_id, extra=extra
            )
            is_taken = recovery.recover_orphan(
                self.connections, run_id, self.worker_id, fence, is_crash
            )
        except Unavailable:
            return  # the next heartbeat finds the run again
        if is_taken:  # else the outage may be that of a later claim
            with self._lock:
                self._outage_runs.discard(run_id)

    def _on_signal(self, kind: str, run_id: UUID, detail: str) -> None:
        if kind == CallEnded.kind:
            self.worker_calls.wake(run_id)
            return
        with self._lock:
            concerned = [run for run in self._active if run.run_id == run_id]
        for run in concerned:
            if kind == "cancel":
                run.stop.set(CancelRequested(signals.canceller_of(detail)))
            elif kind == "input":
                run.answered.set()
        if kind == "input" and not concerned and str(run_id) in self.mcp.held.runs.values():
            self.resume(run_id)

    def _enforce_deadlines(self) -> None:
        now = time.monotonic()
        with self._lock:
            active = list(self._active)
        for run in active:
            run.enforce_time(now)
