"""Runs with a cap: how much of it do they use before they land, and is it ever exceeded?

    .venv/bin/python -m bench.budget_use [--trials 1000] [--seed 1]

Each trial has a seed of its own, counted up from `--seed`. Exit status 1: a run has exceeded its
cap, has landed before it used 80 % of it although the rest would have paid for another call, or
has left no answer.
"""

import argparse
import sys
import time
from decimal import Decimal

from bench.budget_use.trial import CAPS, LEAST_USED, Bench, Trial
from bench.budget_use.vendor import counting_vendor
from bench.service import Service

SAID_AFTER = 100


def main() -> int:
    options = _options()
    began, trials = time.monotonic(), list[Trial]()
    environ = {"ARKLOOP_ALLOWED_NETWORKS": "127.0.0.0/8"}
    with counting_vendor() as vendor_url, Service(environ=environ) as service:
        bench = Bench(service.urls[0], service.api_key, vendor_url)
        for number in range(options.trials):
            trials.append(bench.run(options.seed + number))
            for fault in trials[-1].faults:
                print(f"seed {trials[-1].seed}: {fault}", flush=True)
            if (number + 1) % SAID_AFTER == 0:
                print(f"{number + 1} trials, {time.monotonic() - began:.0f} s", flush=True)
    for cap in CAPS:
        _say(cap, [trial for trial in trials if trial.cap == cap])
    return int(any(trial.faults for trial in trials))


def _say(cap: Decimal, trials: list[Trial]) -> None:
    if not trials:
        return
    used = sorted(trial.cost / cap for trial in trials)
    landed = sorted(trial.landed_at / cap for trial in trials)
    print(
        f"cap {cap} USD: {len(trials)} runs, {sum(trial.calls for trial in trials)} calls;"
        f" used {used[0]:.1%} to {used[-1]:.1%}, median {used[len(used) // 2]:.1%};"
        f" before the last call at least {landed[0]:.1%}, median {landed[len(landed) // 2]:.1%};"
        f" {sum(trial.is_answered for trial in trials)} answers;"
        f" {sum(trial.is_sparing for trial in trials)} below {LEAST_USED:.0%}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
