"""MCP under kill -9: is a call made twice, lost, or unknown without a word?

    .venv/bin/python -m bench.mcp_losses [--trials 200] [--seed 1]

The server is server-everything (`scripts/install-peers`), over HTTP and as a program. It is killed
before and after it has read a call, between calls and before a discovery; the process that speaks
MCP and the worker are killed within calls and between them. Exit status 1: a call was made twice
under one key, has no result or another one than it had, or no call succeeds afterwards.
"""

import argparse
import os
import pwd
import secrets
import sys
import tempfile
import time
from pathlib import Path

from bench.mcp_losses.trials import POINTS, RUNS, TRANSPORTS, Bench, Server, Trial
from bench.service import Service

ENVIRON = {
    "ARKLOOP_ALLOWED_NETWORKS": "127.0.0.0/8",
    "ARKLOOP_MCP_STDIO": "1",
    # The program notes its calls in a folder that only this user may enter.
    "ARKLOOP_MCP_STDIO_USER": pwd.getpwuid(os.geteuid()).pw_name,
    "ARKLOOP_FAULTS": "1",
    "ARKLOOP_LEASE_SECONDS": "6",
    "ARKLOOP_HEARTBEAT_SECONDS": "0.5",
    "ARKLOOP_SWEEP_SECONDS": "0.3",
    "ARKLOOP_WORKER_NICENESS": "0",  # the trials compute beside it
}


def main() -> int:
    options = _options()
    began, trials = time.monotonic(), list[Trial]()
    rounds = -(-options.trials // ((RUNS + 1) * len(TRANSPORTS)))
    for transport in TRANSPORTS:
        environ = {**ENVIRON, "ARKLOOP_ENCRYPTION_KEY": secrets.token_hex(32)}
        with (
            tempfile.TemporaryDirectory(prefix="arkloop-mcp-") as folder,
            Service(environ=environ) as service,
            Server(Path(folder), transport) as server,
        ):
            bench = Bench(service, server)
            for number in range(rounds):
                point = options.points[number % len(options.points)]
                played = bench.round(point, options.seed + number)
                trials += played
                for trial in played:
                    for fault in trial.faults:
                        print(f"{transport}, round {number}, {point}: {fault}", flush=True)
    for point in options.points:
        there = [trial for trial in trials if trial.point == point]
        unknown = sum(trial.unknown for trial in there)
        failed = sum(
            not output.startswith(("Echo: ", "Long running"))
            for trial in there
            for outputs in trial.outputs.values()
            for output in outputs
        )
        print(
            f"{point:24} {len(there):4} trials: {failed:3} calls failed,"
            f" {unknown:3} of them reported as unknown"
        )
    faults = sum(bool(trial.faults) for trial in trials)
    print(f"{len(trials)} trials, {faults} with faults, {time.monotonic() - began:.0f} s")
    return int(faults > 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", nargs="*", default=POINTS, help="some of them alone")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
