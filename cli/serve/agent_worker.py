"""A worker of the customer that executes runs of an agent: it polls, executes them side by side,
and has a heartbeat waiting in another thread.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from arkloop.cli.client.client import Refused
from arkloop.cli.client.server_address import ServerAddress
from arkloop.cli.serve.freezes import Freezes
from arkloop.cli.serve.heartbeats import Heartbeats
from arkloop.cli.serve.pauses import Pauses
from arkloop.cli.serve.returned_output import InvalidOutput
from arkloop.cli.serve.served_run import ServedRun
from arkloop.cli.serve.service import Service, Unreachable
from arkloop.cli.serve.serving import stop_on_error
from arkloop.shared import ids
from arkloop.shared.agents.agent_call import AgentCall, AgentFunction
from arkloop.shared.agents.agent_run import RunStopped, is_stop
from arkloop.shared.agents.transcript import shown
from arkloop.shared.events.plain import clean

log = logging.getLogger(__name__)

WAIT_SECONDS = 30
HEARTBEATS_PER_LEASE = 3
#: Between heartbeats that fail.
MAX_PAUSE_SECONDS = 1.0
#: How long a function may go on after its run had to stop; then it is abandoned.
STOP_SECONDS = 2.0
#: How often the main thread looks for signals.
SIGNAL_SECONDS = 0.2
MAX_RUNS_OF_A_POLL = 16
#: The service accepts 8,192 bytes; a refusal with many details has more.
MAX_MESSAGE_BYTES = 2_000
OUTPUT_INVALID = "output.invalid"


class _Execution:
    """A run that was polled, and the function that executes it, in a thread of its own."""

    def __init__(
        self,
        service: Service,
        run: Mapping[str, Any],
        function: AgentFunction,
        draining: threading.Event,
    ) -> None:
        self.fence: int = run["fence"]
        self.run = ServedRun(service, run, draining)
        self.is_over = False  # the function may still go on
        self._service = service
        self._agent = AgentCall(function)
        self._returned = threading.Event()
        self._outcome: Callable[[], None] = lambda: None

    @property
    def name(self) -> dict[str, Any]:
        """Return how heartbeats name the run."""
        cancelled = self.run.stopped == "cancelled"
        return {"run_id": self.run.run_id, "fence": self.fence, "cancel_requested": cancelled}

    def start(self) -> None:
        """Call the function, in a thread of its own."""
        threading.Thread(target=self._call, name="agent", daemon=True).start()

    def finish(self) -> None:
        """Wait until the function returns or the run has to stop; then end the run."""
        while not self._returned.wait(SIGNAL_SECONDS):
            if self.run.stopping.is_set():
                self._agent.cancel()
                if not self._returned.wait(STOP_SECONDS):
                    log.warning("run %s: its agent did not stop in time", self.run.run_id)
                break
        try:
            self._end()
        except RunStopped:
            pass
        except Refused as error:
            log.error("run %s could not be ended: %s", self.run.run_id, error)
        finally:
            self.is_over = True
            self.run.stop("lost")
            self.run.outbox.close()
            self._service.close()

    def _end(self) -> None:
        run = self.run
        if run.stopped is None:
            try:
                self._outcome()
                return
            except RunStopped:
                pass
            except Exception as error:
                log.error("run %s: %s", run.run_id, error, exc_info=not _is_shown(error))
                if (problem := _problem_of_output(error)) is not None:
                    run.outbox.send("fail", message=_cut(problem), code=OUTPUT_INVALID)
                else:
                    run.outbox.send("fail", message=_message(error))
                return
        if run.stopped in ("cancelled", "shutdown"):
            run.release()
        elif run.stopped in (None, "limit"):
            self._fail_refused()

    def _fail_refused(self) -> None:
        """End a run of which the service refused events, unless it has ended it itself."""
        for _ in range(2):  # events that the agent has added since are refused and dropped as well
            with contextlib.suppress(Refused):
                self.run.outbox.send("fail", message="The service refused the agent's events.")
                return

    def _call(self) -> None:
        try:
            returned = self._agent(self.run)
            self._outcome = lambda: self.run.finish(returned)
        except asyncio.CancelledError:
            if self.run.stopped is None:
                self._outcome = lambda: self.run.outbox.send(
                    "fail", message="The agent failed: CancelledError."
                )
        except BaseException as error:
            if is_stop(error):
                # Without a reason: the agent has ignored the refusal of its events, and went on.
                self._outcome = self._fail_refused
                return
            # Its text may hold secrets, unless it is the service's: it goes to this worker's log.
            log.exception("the agent raised in run %s", self.run.run_id)
            why = _message(error) if isinstance(error, Refused) else shown(error)
            message = f"The agent failed: {why}"
            self._outcome = lambda: self.run.outbox.send("fail", message=message)
        finally:
            self._returned.set()


def _is_shown(error: Exception) -> bool:
    return isinstance(error, ValueError | Refused)


def _problem_of_output(error: Exception) -> str | None:
    """Return why what the agent has returned is not the output of its run; None if it may be."""
    if isinstance(error, Refused):
        # A service of the release before refuses long integers of the output, each by its name.
        problems = [
            f"{_field(name)} {'; '.join(map(str, why))}."
            for name, why in error.details.items()
            if name == "output" or name.startswith("output.")
        ]
        return " ".join(problems) or None
    return str(error) if isinstance(error, InvalidOutput) else None


def _field(name: str) -> str:
    return "The output" if name == "output" else f"The property {name.removeprefix('output.')!r}:"


def _message(error: Exception) -> str:
    """Return why a run could not be completed, as the service accepts it."""
    if not _is_shown(error):
        return f"The worker failed: {type(error).__name__}."
    return _cut(error.message if isinstance(error, Refused) else str(error))


def _cut(text: str) -> str:
    return clean(text).encode()[:MAX_MESSAGE_BYTES].decode(errors="ignore")


class AgentWorker:
    """Executes runs of an agent until `stop`; `failure` is why it could not go on."""

    def __init__(
        self,
        server: ServerAddress,
        agent: str,
        function: AgentFunction,
        *,
        concurrency: int,
        grace_seconds: float,
    ) -> None:
        self.id = str(ids.new_id())
        self.failure: click.ClickException | None = None
        self._server, self._path = server, f"/agent-workers/{agent}"
        self._function = function
        self._grace_seconds = grace_seconds
        self._polls = Service(server, self._path)
        self._changed = threading.Condition()
        self._heartbeats = Heartbeats(
            server,
            self._path,
            self._changed,
            work=lambda: self._executions,
            send=self._beat,
            wait_seconds=self._wait_seconds,
            max_pause_seconds=MAX_PAUSE_SECONDS,
        )
        self._executions: set[_Execution] = set()
        self._free = concurrency
        self._lease_seconds = 15.0
        self._stopping = threading.Event()
        self._is_stop_requested = False
        self._draining = threading.Event()
        self._freezes = Freezes()

    def run(self) -> None:
        """Work until `stop` is called, or the service refuses the key; then drain."""
        for task in (self._poll, *self._heartbeats.tasks):
            threading.Thread(
                target=stop_on_error, args=(self, task), name="requests", daemon=True
            ).start()
        # Again and again: a signal that another thread receives does not wake this one, in which
        # Python would execute its handler.
        while not self._is_stop_requested and not self._stopping.wait(SIGNAL_SECONDS):
            self._freezes.look()
        self._stopping.set()
        self._draining.set()
        self._polls.abort()
        self._drain()
        self._heartbeats.abort()

    def stop(self, *_: object) -> None:
        """Poll no more; may be called by a signal handler."""
        # Not the event: its lock may be that of the code which the handler has interrupted.
        self._is_stop_requested = True

    def _poll(self) -> None:
        pauses = Pauses(self._stopping)
        while not self._stopping.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._free > 0)
                free = min(self._free, MAX_RUNS_OF_A_POLL)
                held = [one.run.run_id for one in self._executions]
            body = {
                "worker_id": self.id,
                "max_runs": free,
                "wait_seconds": WAIT_SECONDS,
                "held": held,
            }
            began = self._freezes.now()
            try:
                polled = self._polls.post(
                    "poll", body, fields=("lease_seconds", "runs"), wait_seconds=WAIT_SECONDS
                )
            except (Unreachable, Refused) as error:
                if (failure := pauses.failure(error)) is not None:
                    self.failure = failure
                    self._stopping.set()
                    return
                pauses.after(error)
                continue
            pauses.end()
            self._lease_seconds = polled["lease_seconds"]
            self._freezes.least_seconds = self._lease_seconds / HEARTBEATS_PER_LEASE
            for run in self._held(polled["runs"], began):
                self._start(run)

    def _held(self, runs: Sequence[Mapping[str, Any]], began: float) -> Sequence[Mapping[str, Any]]:
        """Return the runs of a poll that began then, without those that a frozen worker has lost
        meanwhile; what is left out in error is polled again.
        """
        while runs and self._freezes.since(began):
            began = self._freezes.now()
            named = [
                {"run_id": one["run_id"], "fence": one["fence"], "cancel_requested": False}
                for one in runs
            ]
            body = {"worker_id": self.id, "runs": named, "wait_seconds": 0}
            try:
                news = self._polls.post("heartbeat", body, fields=["runs"])["runs"]
            except (Unreachable, Refused) as error:
                log.warning("runs are polled again after a freeze: %s", error)
                return ()
            lost = {one["run_id"] for one in news if not one["is_held"]}
            asked = {one["run_id"] for one in news if one["cancel_requested"]}
            runs = [
                {**one, "cancel_requested": one["cancel_requested"] or one["run_id"] in asked}
                for one in runs
                if one["run_id"] not in lost
            ]
        return runs

    def _start(self, run: Mapping[str, Any]) -> None:
        service = Service(self._server, self._path)
        execution = _Execution(service, run, self._function, self._draining)
        with self._changed:
            self._free -= 1
            self._executions.add(execution)
            self._changed.notify_all()
        try:
            execution.start()
            threading.Thread(
                target=self._finish, args=(execution,), name="run", daemon=True
            ).start()
        except RuntimeError:  # no thread is left for it
            execution.run.stop("lost")
            self._forget(execution)
            raise

    def _finish(self, execution: _Execution) -> None:
        try:
            execution.finish()
        finally:
            self._forget(execution)

    def _forget(self, execution: _Execution) -> None:
        with self._changed:
            self._executions.discard(execution)
            self._free += 1
            self._changed.notify_all()

    def _beat(self, service: Service, executions: Sequence[_Execution]) -> None:
        """Renew the lease, and learn which runs are cancelled or lost."""
        beating = [one for one in executions if one.run.stopped != "lost"]
        # Of a run that waited, and was polled again, an earlier execution may be ending.
        beating.sort(key=lambda one: one.fence)
        named = {one.run.run_id: one for one in beating}
        lease, wait = self._lease_seconds, self._wait_seconds()
        body = {
            "worker_id": self.id,
            "runs": [one.name for one in named.values()],
            "wait_seconds": int(wait),
        }
        began = time.monotonic()
        news = service.post(
            *("heartbeat", body), fields=["runs"], wait_seconds=wait, lease_seconds=lease
        )
        for one in news["runs"]:
            # Only this execution was asked about, and not one that was polled meanwhile.
            if not one["is_held"]:
                named[one["run_id"]].run.stop("lost")
            elif one["cancel_requested"]:
                named[one["run_id"]].run.stop("cancelled")
        # A server that is being stopped responds at once.
        time.sleep(max(0.0, min(0.05, began + 0.05 - time.monotonic())))

    def _wait_seconds(self) -> float:
        return min(self._lease_seconds / HEARTBEATS_PER_LEASE, WAIT_SECONDS)

    def _drain(self) -> None:
        """Let runs end or reach a checkpoint; the others go back to the queue as they are."""
        self._wait_for_runs(self._grace_seconds)
        with self._changed:
            left = list(self._executions)
        for one in left:
            log.warning("run %s goes to another worker", one.run.run_id)
            one.run.stop("shutdown")
        self._wait_for_runs(STOP_SECONDS + 3.0)
        self._give_back()

    def _give_back(self) -> None:
        """Release runs that a response brought which the end of the polls has cut off."""
        last = Service(self._server, self._path)
        own = {"worker_id": self.id, "max_runs": 0, "wait_seconds": 0}
        with self._changed:
            held = [one.run.run_id for one in self._executions]
        with contextlib.suppress(Unreachable, Refused):
            while runs := last.post("poll", {**own, "held": held}, fields=["runs"])["runs"]:
                for run in runs:
                    claim = {"run_id": run["run_id"], "fence": run["fence"]}
                    last.post("release", {**claim, "seq": run["next_seq"]})

    def _wait_for_runs(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._executions, timeout=seconds)
