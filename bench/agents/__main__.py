"""Custom agents under kill -9: is a step doubled, lost, or unknown without a word?

    .venv/bin/python -m bench.agents [--served] [--trials 200] [--seed 1]

At each point of a step, and at any moment, the worker is killed while eight runs of an agent are
in progress. Before that, the calls of an agent are timed. With --served the agent is in a worker of
the customer, which is killed or frozen at each of its commits, as are processes of the service.
Exit status 1: a step that may be made once was made twice, a result is missing or wrong, an answer
is not that of the results, a run did not continue from its checkpoint, or a lost worker wrote.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.agents import served, trials
from bench.agents.served import ServedBench
from bench.agents.trials import RUNS, Bench, Trial
from bench.service import ROOT, Service

ENVIRON = {
    "ARKLOOP_PLUGINS": str(ROOT / "bench" / "agents" / "plugins"),
    "ARKLOOP_FAULTS": "1",
    "ARKLOOP_LEASE_SECONDS": str(served.LEASE_SECONDS),
    "ARKLOOP_HEARTBEAT_SECONDS": "0.5",
    "ARKLOOP_SWEEP_SECONDS": "0.3",
    "ARKLOOP_WORKER_NICENESS": "0",  # the trials compute beside it
}


def main() -> int:
    options = _options()
    began, played = time.monotonic(), list[Trial]()
    points = tuple(options.points or (served.POINTS if options.served else trials.POINTS))
    with (
        tempfile.TemporaryDirectory(prefix="arkloop-agents-") as folder,
        Service(environ=ENVIRON) as service,
    ):
        play = _bench(service, Path(folder), is_served=options.served)
        for number in range((options.trials + RUNS - 1) // RUNS):
            point = points[number % len(points)]
            trials_of_round = play(point, options.seed + number)
            played += trials_of_round
            for trial in trials_of_round:
                for fault in trial.faults:
                    print(f"round {number}, {trial.point}: {fault}", flush=True)
    for point in points:
        there = [trial for trial in played if trial.point == point]
        unknown = sum(trial.unknown for trial in there)
        lost = sum(trial.was_lost for trial in there)
        print(
            f"{point:24} {len(there):4} trials: {lost:3} continued elsewhere,"
            f" {unknown:3} steps reported as unknown"
        )
    faults = sum(bool(trial.faults) for trial in played)
    print(f"{len(played)} trials, {faults} with faults, {time.monotonic() - began:.0f} s")
    return int(faults > 0)


def _bench(service: Service, folder: Path, *, is_served: bool) -> Callable[[str, int], list[Trial]]:
    if is_served:
        return ServedBench(service, folder).round
    bench = Bench(service, folder)
    for name, times in bench.milliseconds().items():
        p50, p99 = statistics.median(times), sorted(times)[int(len(times) * 0.99)]
        print(f"run.{name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    return bench.round


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--served", action="store_true")
    parser.add_argument("--points", nargs="*", help="some of them alone")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
