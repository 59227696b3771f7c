"""Custom agents under kill -9: is a step doubled, lost, or unknown without a word?

    .venv/bin/python -m bench.agents [--trials 200] [--seed 1]

At each point of a step, and at any moment, the worker is killed while eight runs of an agent are in
progress. Before that, the calls of an agent are timed. Exit status 1: a step that may be made once
was made twice, a result is missing or wrong, or an answer is not that of the results.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.agents.trials import POINTS, RUNS, Bench, Trial
from bench.service import ROOT, Service

ENVIRON = {
    "ARKLOOP_PLUGINS": str(ROOT / "bench" / "agents" / "plugins"),
    "ARKLOOP_FAULTS": "1",
    "ARKLOOP_LEASE_SECONDS": "6",
    "ARKLOOP_HEARTBEAT_SECONDS": "0.5",
    "ARKLOOP_SWEEP_SECONDS": "0.3",
}


def main() -> int:
    options = _options()
    began, trials = time.monotonic(), list[Trial]()
    with (
        tempfile.TemporaryDirectory(prefix="arkloop-agents-") as folder,
        Service(environ=ENVIRON) as service,
    ):
        bench = Bench(service, Path(folder))
        for name, times in bench.milliseconds().items():
            p50, p99 = statistics.median(times), sorted(times)[int(len(times) * 0.99)]
            print(f"run.{name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
        for number in range((options.trials + RUNS - 1) // RUNS):
            point = POINTS[number % len(POINTS)]
            played = bench.round(point, options.seed + number)
            trials += played
            for trial in played:
                for fault in trial.faults:
                    print(f"round {number}, {trial.point}: {fault}", flush=True)
    for point in POINTS:
        played = [trial for trial in trials if trial.point == point]
        unknown = sum(trial.unknown for trial in played)
        print(f"{point:22} {len(played):4} trials: {unknown:3} steps reported as unknown")
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
