"""Trials: runs of an agent in workers of the customer, whose processes are killed and frozen."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import psutil

from bench.agents import doomed_worker
from bench.agents.trials import RUNS, STEPS, Bench, Trial, wait_for_status
from bench.service import ROOT, Service

#: Killed: the agent worker at its points and at any moment, a web process after its commits and at
#: any moment, the service's worker. Frozen: the agent worker, for two leases.
POINTS = (
    *doomed_worker.POINTS,
    "agent.any_moment",
    "frozen.call_stored",
    "frozen.in_step",
    "frozen.checkpoint_stored",
    "web.committed",
    "web.any_moment",
    "worker.any_moment",
)
#: How often a run comes to a point; one response to a poll may have all the runs.
_TIMES = {
    "call": STEPS,
    "step": STEPS,
    "result": STEPS,
    "checkpoint": STEPS // 2,
    "tasks": 1,
    "end": 1,
}
LEASE_SECONDS = 6
#: A frozen worker that has woken finds within this time that its runs are not its own.
LATE_SECONDS = 2.0


class ServedBench:
    """The agent in processes of `arkloop agents serve`, which have a key of their own."""

    def __init__(self, service: Service, folder: Path) -> None:
        self._service = service
        self._bench = Bench(service, folder, doomed_worker.AGENT)
        self._log = folder / "agent-workers.log"

    def round(self, point: str, seed: int) -> list[Trial]:
        """Start `RUNS` runs and kill or freeze a process while they are in progress."""
        chance = Random(f"{point} {seed}")
        where, _, moment = point.partition(".")
        if where == "web":
            return self._web_round(point, chance)
        if moment == "any_moment":
            return self._any_moment(point, chance)
        times = next((RUNS * n for name, n in _TIMES.items() if name in moment), 1)
        how = "STOP" if where == "frozen" else "KILL"
        death = f"agent.{moment}:{chance.randint(1, times)}:{how}"
        with self._worker(death) as doomed:
            run_ids = self._bench.start_runs()
            status = psutil.STATUS_STOPPED if how == "STOP" else psutil.STATUS_ZOMBIE
            if not wait_for_status(doomed.pid, status):
                raise TimeoutError(f"{point} is not reached:\n{self._log.read_text()[-4000:]}")
            frozen_at = time.monotonic()
            with self._worker():
                self._bench.wait_for(run_ids)
                if how == "STOP":
                    time.sleep(max(0, frozen_at + 2 * LEASE_SECONDS - time.monotonic()))
                    doomed.send_signal(signal.SIGCONT)
                    time.sleep(LATE_SECONDS)
        return self._bench.trials(point, run_ids)

    def _any_moment(self, point: str, chance: Random) -> list[Trial]:
        with self._worker() as doomed:
            run_ids = self._bench.start_runs()
            self._bench.wait_for_step(point, run_ids)
            time.sleep(chance.uniform(0, 0.5))
            if point.startswith("agent."):
                doomed.kill()
            else:
                self._service.end("worker")
                self._service.start("worker")
            with self._worker():
                self._bench.wait_for(run_ids)
        return self._bench.trials(point, run_ids)

    def _web_round(self, point: str, chance: Random) -> list[Trial]:
        """Have the agent worker use a web process of its own, whose gunicorn replaces it."""
        armed = {"ARKLOOP_FAULT_POINT": f"transaction.committed:{chance.randint(20, 90)}:KILL"}
        master = self._service.start("web", armed if point == "web.committed" else None)
        url = self._service.urls.pop()
        self._service.pids["web"].remove(master)
        try:
            with self._worker(url=url):
                run_ids = self._bench.start_runs()
                while not (first := psutil.Process(master).children()):
                    time.sleep(0.05)
                if point == "web.any_moment":
                    self._bench.wait_for_step(point, run_ids)
                    time.sleep(chance.uniform(0, 0.5))
                    for process in psutil.Process(master).children():
                        process.kill()
                self._bench.wait_for(run_ids)
            if any(process.is_running() for process in first):
                raise TimeoutError(f"{point} is not reached")
        finally:
            os.killpg(master, signal.SIGKILL)
        return self._bench.trials(point, run_ids)

    @contextmanager
    def _worker(
        self, death: str | None = None, url: str | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "bench.agents.doomed_worker"]
        server = {
            "ARKLOOP_URL": url or self._service.urls[0],
            "ARKLOOP_API_KEY": self._service.api_key,
        }
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [*command, death] if death else command,
                cwd=ROOT,
                env={**os.environ, **server},
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
