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
import tempfile
import time
from pathlib import Path

from bench.service import Service

ROOT = Path(__file__).parents[1]
SCHEMATHESIS = ROOT / ".cache" / "fuzz" / "bin" / "schemathesis"
CONFIG = Path(__file__).with_name("fuzz.toml")
#: The number of requests in the report of schemathesis.
_REQUESTS = re.compile(r"([0-9,]+) generated")


def main() -> int:
    options = _options()
    deadline = time.monotonic() + options.seconds
    made, rounds, failed = 0, 0, False
    wanted = 1 if options.short else options.requests
    with tempfile.TemporaryDirectory() as folder:
        environ = {"ARKLOOP_REGISTRATION": "open", "ARKLOOP_FILES_DIR": f"{folder}/files"}
        with Service(web=1, workers=1, environ=environ) as service:
            while made < wanted and not failed and time.monotonic() < deadline:
                output, status = _round(service, Path(folder), options, rounds)
                failed = failed or status != 0
                made += _count(output)
                rounds += 1
            faults = service.log("web").count("request failed")
    print(f"{made} requests in {rounds} rounds, {faults} faults logged")
    return int(failed or faults > 0 or made < wanted)


def _count(output: str) -> int:
    found = _REQUESTS.search(output)
    return int(found[1].replace(",", "")) if found else 0


def _round(
    service: Service, folder: Path, options: argparse.Namespace, number: int
) -> tuple[str, int]:
    """Run schemathesis once; what it says is shown as it comes."""
    command = [
        *(str(SCHEMATHESIS), "--config-file", str(CONFIG)),
        *("run", f"{service.urls[0]}/openapi.json", "--seed", str(options.seed + number)),
        *("--max-examples", "1" if options.short else str(options.examples)),
        *(("--phases", "fuzzing") if options.short else ()),
        *("--continue-on-failure", "--no-color"),
        *("--header", f"Authorization: Bearer {service.api_key}"),
    ]
    hooks = {"SCHEMATHESIS_HOOKS": "scripts.fuzz_hooks", "PYTHONPATH": str(ROOT)}
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=folder, env={**os.environ, **hooks}
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return "".join(lines), process.returncode


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--examples", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=1_800)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
