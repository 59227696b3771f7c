"""Client tools under kill -9: is a result lost, an effect doubled, or a run left waiting?

    .venv/bin/python -m bench.client_tools [--trials 200] [--seed 1]

At each point of the path of a call, the worker or the web server is killed while eight runs are in
progress. Before that, the time from an accepted result to the next model turn is compared with that
of a tool in the worker, in the same run. Exit status 1: any trial has a fault.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.client_tools.trials import POINTS, RUNS, Bench, Trial
from bench.service import Service

ENVIRON = {
    "ARKLOOP_FAULTS": "1",
    "ARKLOOP_LEASE_SECONDS": "6",
    "ARKLOOP_HEARTBEAT_SECONDS": "0.5",
    "ARKLOOP_SWEEP_SECONDS": "0.3",
}
TIMED_CALLS = 100


def main() -> int:
    options = _options()
    began, trials = time.monotonic(), list[Trial]()
    with (
        tempfile.TemporaryDirectory(prefix="arkloop-client-tools-") as folder,
        Service(environ=ENVIRON) as service,
    ):
        bench = Bench(service, Path(folder))
        for kind, times in bench.overhead(TIMED_CALLS).items():
            ordered = sorted(times)
            p50, p99 = statistics.median(ordered), ordered[int(len(ordered) * 0.99)]
            print(f"{kind}: p50 {p50:.0f} ms, p99 {p99:.0f} ms to the next model turn", flush=True)
        for number in range((options.trials + RUNS - 1) // RUNS):
            point = POINTS[number % len(POINTS)]
            played = bench.round(point, options.seed + number)
            trials += played
            for trial in played:
                for fault in trial.faults:
                    print(f"round {number}, {trial.point}: {fault}", flush=True)
    for point in POINTS:
        of_point = [trial for trial in trials if trial.point == point]
        sent = sum(len(trial.accepted) for trial in of_point)
        unknown = sum(trial.is_unknown for trial in of_point)
        print(
            f"{point:22} {len(of_point):4} trials: {sent:4} results, {unknown:3} unknown outcomes"
        )
    faults = sum(bool(trial.faults) for trial in trials)
    print(f"{len(trials)} trials, {faults} with faults, {time.monotonic() - began:.0f} s")
    return int(faults > 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
