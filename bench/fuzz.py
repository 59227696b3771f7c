"""Fuzz a service of its own with schemathesis, by the description that the service serves.

    .venv/bin/python -m bench.fuzz [--short] [--requests 20000] [--seed 1]

All checks of schemathesis, in all its phases, stateful ones included: no 5xx, and no status,
header, content type or body that the description lacks. Rounds with further seeds follow until the
requests are made; `scripts/install-fuzz` installs schemathesis. Exit status 1: a check failed, or
the seconds were over before.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from bench.service import Service

ROOT = Path(__file__).parents[1]
SCHEMATHESIS = ROOT / ".cache" / "fuzz" / "bin" / "schemathesis"
CONFIG = Path(__file__).with_name("fuzz.toml")
_REQUESTS = re.compile(r"([0-9,]+) generated")


def main() -> int:
    options = _options()
    deadline = time.monotonic() + options.seconds
    made, number, failed = 0, options.seed, False
    with Service(web=1, workers=1, environ={"ARKLOOP_REGISTRATION": "open"}) as service:
        while made < (1 if options.short else options.requests) and not failed:
            left = deadline - time.monotonic()
            if left < 1:
                print(f"only {made} requests in {options.seconds} s")
                return 1
            output, status = _round(service, number, int(left), options)
            failed = status != 0
            found = _REQUESTS.search(output)
            made += int(found[1].replace(",", "")) if found else 0
            number += 1
        faults = service.log("web").count("request failed")
    print(f"{made} requests in {number - options.seed} rounds, {faults} faults logged")
    return int(failed or faults > 0)


def _round(
    service: Service, seed: int, seconds: int, options: argparse.Namespace
) -> tuple[str, int]:
    command = [
        *(str(SCHEMATHESIS), "--config-file", str(CONFIG)),
        *("run", f"{service.urls[0]}/openapi.json", "--seed", str(seed)),
        *(
            "--max-examples",
            "1" if options.short else str(options.examples),
            "--continue-on-failure",
            "--no-color",
        ),
        *(("--phases", "fuzzing") if options.short else ()),
        *("--header", f"Authorization: Bearer {service.api_key}"),
    ]
    environ = {**os.environ, "SCHEMATHESIS_HOOKS": "scripts.fuzz_hooks", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, timeout=seconds + 60, cwd=ROOT, env=environ
    )
    sys.stdout.write(done.stdout)
    return done.stdout, done.returncode


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--examples", type=int, default=40)
    parser.add_argument("--seconds", type=int, default=1200)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
