"""Calls of HTTP tools under kill -9: is an effect doubled, lost, or unknown without a word?

    .venv/bin/python -m bench.http_tools [--trials 200] [--seed 1]

At each point of a call, of the worker and of the tool's server, that process is killed while
nine runs are in progress. Then the time of a call is compared with that of a tool in the worker.
Exit status 1: an effect came twice under one key, a call was lost, or the model was misinformed.
"""

import argparse
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.http_tools.trials import POINTS, RUNS, Bench, Receiver, Trial
from bench.service import Service

ENVIRON = {
    "ARKLOOP_ALLOWED_NETWORKS": "127.0.0.0/8",
    "ARKLOOP_ENCRYPTION_KEY": secrets.token_hex(32),
    "ARKLOOP_FAULTS": "1",
    "ARKLOOP_LEASE_SECONDS": "6",
    "ARKLOOP_HEARTBEAT_SECONDS": "0.5",
    "ARKLOOP_SWEEP_SECONDS": "0.3",
}
TIMED_CALLS = 200


def main() -> int:
    options = _options()
    began, trials = time.monotonic(), list[Trial]()
    with (
        tempfile.TemporaryDirectory(prefix="arkloop-http-tools-") as folder,
        Service(environ=ENVIRON) as service,
        Receiver(Path(folder), service) as server,
    ):
        bench = Bench(service, server)
        _compare(bench)
        for number in range((options.trials + RUNS - 1) // RUNS):
            point = POINTS[number % len(POINTS)]
            played = bench.round(point, options.seed + number)
            trials += played
            for trial in played:
                for fault in trial.faults:
                    print(f"round {number}, {trial.point} {trial.path}: {fault}", flush=True)
    for point in POINTS:
        _say(point, [trial for trial in trials if trial.point == point])
    faults = sum(bool(trial.faults) for trial in trials)
    print(f"{len(trials)} trials, {faults} with faults, {time.monotonic() - began:.0f} s")
    return int(faults > 0)


def _say(point: str, trials: list[Trial]) -> None:
    done = sum(trial.outputs == (f"done {trial.number}",) for trial in trials)
    unknown = sum(trial.is_unknown for trial in trials)
    print(f"{point:22} {len(trials):4} trials: {done:4} results, {unknown:4} reported as unknown")


def _compare(bench: Bench) -> None:
    for tool, args in (("calculator", {"expression": "6*7"}), ("fast", {"n": 1})):
        times = sorted(bench.milliseconds(tool, args, TIMED_CALLS))
        p50, p99 = statistics.median(times), times[int(len(times) * 0.99)]
        print(f"{tool}: p50 {p50:.0f} ms, p99 {p99:.0f} ms from tool.call to tool.result")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
