"""Lists, replay and forgetting on a long history: how much they cost as it grows.

Writes runs and ten times as many events into the real service by COPY, then asks a real web
process over HTTP, with one client. Beside each list stands the bare SQL of the same page.

    .venv/bin/python -m bench.history [--runs 1000000] [--forget 100000] [--json]
"""

import argparse
import json
import sys
from collections.abc import Iterator

import psycopg

from bench.figure import Figure
from bench.history import forgetting, replays
from bench.history.lists import COUNT, Lists
from bench.history.seeding import History, seed
from bench.machine import machine
from bench.service import Service
from bench.table import line

#: Nothing is to be swept while lists are measured.
ENVIRON = {"ARKLOOP_SWEEP_SECONDS": "86400"}


def history(service: Service, *, runs: int) -> History:
    """Write it behind the service's org."""
    written = seed(service.postgres.url, service.owner.org_id, runs=runs, long_run_events=0)
    with psycopg.connect(service.postgres.url.replace("+psycopg", "", 1), autocommit=True) as sql:
        sql.execute("CHECKPOINT")  # else that of the load continues into what is measured
    return written


def measure(*, runs: int = 1_000_000, forget: int = 0, count: int = COUNT) -> Iterator[Figure]:
    """Measure all figures at this scale; the oldest `forget` runs are deleted at the end."""
    with Service(web=1, workers=0, environ=ENVIRON) as service:
        written = history(service, runs=runs)
        lists = Lists(service, written, count)
        try:
            yield from lists.measure()
        finally:
            lists.close()
        yield from replays.measure(service, written)
        if forget:
            yield from forgetting.measure(service, written, forget)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--forget", type=int, default=0, help="number of the oldest runs")
    parser.add_argument("--count", type=int, default=COUNT, help="requests for each figure")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures: list[Figure] = []
    for figure in measure(runs=options.runs, forget=options.forget, count=options.count):
        figures.append(figure)
        print(line(figure), file=sys.stderr if options.json else sys.stdout, flush=True)
    if options.json:
        print(json.dumps({**machine(), "rows": [figure.row() for figure in figures]}))
    return 1 if any(figure.missed for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
