"""Pages of the AI SDK under cuts: is every answer the one of a page that was not disturbed?

    .venv/bin/python -m bench.ai_sdk [--trials 130] [--seed 1]
    .venv/bin/python -m bench.ai_sdk --costs

Up to ten connections of each trial are cut at random bytes, while the worker and the web server are
killed and Redis is emptied. Exit status 1: an answer differs, is missing, or is there twice.

`--costs` measures this projection, and those of Responses and AG-UI, beside the native stream.
"""

import argparse
import sys
import time
from collections import defaultdict

from bench.ai_sdk import costs
from bench.ai_sdk.trials import Trial, play
from bench.service import Service

ENVIRON = {
    "ARKLOOP_LEASE_SECONDS": "6",
    "ARKLOOP_HEARTBEAT_SECONDS": "0.5",
    "ARKLOOP_SWEEP_SECONDS": "0.3",
}


def main() -> int:
    options = _options()
    if options.costs:
        for line in costs.measure():
            print(line, flush=True)
        return 0
    began, kinds = time.monotonic(), defaultdict[str, list[Trial]](list)
    with Service(environ=ENVIRON) as service:
        for number, trial in enumerate(play(service, options.trials, options.seed)):
            kinds[trial.kind].append(trial)
            for fault in trial.faults:
                print(f"trial {number}, {trial.kind}: {fault}", flush=True)
    for kind, trials in kinds.items():
        cuts = sum(trial.cuts for trial in trials)
        resumes, reloads = (sum(getattr(t, n) for t in trials) for n in ("resumes", "reloads"))
        print(
            f"{kind:13} {len(trials):4} answers, {cuts} cuts, {resumes} resumes, {reloads} reloads"
        )
    all_trials = [trial for trials in kinds.values() for trial in trials]
    faults = sum(bool(trial.faults) for trial in all_trials)
    cuts = sum(trial.cuts for trial in all_trials)
    seconds = time.monotonic() - began
    print(f"{len(all_trials)} answers, {cuts} cuts, {faults} with faults, {seconds:.0f} s")
    return int(faults > 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=130)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--costs", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
