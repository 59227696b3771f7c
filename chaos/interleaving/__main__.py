"""Play random interleavings on the real system: `python -m chaos.interleaving [--count 100000]`.

Two clients, a worker and the sweep call the service's own functions over sessions of their own, in
one thread for each interleaving, and stop before each statement. Its seed decides the order. Exit
status 1 if an invariant was broken, or a step is none that the table has.
"""

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

from chaos.interleaving.play import Played
from chaos.interleaving.sums import PER_DATABASE, Sum, caught_by, play_all
from chaos.model.bugs import BUGS

#: Interleavings in which a planted bug must show.
TRIES = 600


def _play_bugs(tries: int) -> int:
    bugs = [bug for bug in BUGS if bug.spoil is not None]
    missed = 0
    for bug in bugs:
        how = caught_by(bug, tries)
        missed += not how
        print(f"{'caught' if how else 'MISSED'}  {bug.name}: {how[:150]}", flush=True)
    print(f"{len(bugs) - missed} of {len(bugs)} bugs caught on the real system")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos.interleaving", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=60, help="begin none after this time")
    parser.add_argument("--bugs", action="store_true", help="play with each bug of the table")
    options = parser.parse_args()
    if options.bugs:
        return int(_play_bugs(min(options.count, TRIES)) > 0)
    began = time.monotonic()
    last = options.seed + options.count
    size = min(PER_DATABASE, -(-options.count // options.processes))
    parts = [range(first, min(first + size, last)) for first in range(options.seed, last, size)]
    total = Sum()
    # Without a limit of tasks for each process: Python 3.11 hangs once the first has reached it.
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(play_all, part) for part in parts]
        for future in as_completed(futures):
            if future.cancelled():
                continue
            total.merge(future.result())
            seconds = time.monotonic() - began
            print(f"{seconds:5.0f} s, {total.counts['interleavings'] / seconds:.0f}/s: {total}")
            sys.stdout.flush()
            if seconds > options.minutes * 60:
                for other in futures:
                    other.cancel()
    for played in total.faulty:
        _show(played)
    return int(total.counts["faulty"] > 0)


def _show(played: Played) -> None:
    print(f"seed {played.seed}:")
    for line in (*played.faults, *played.order):
        print(f"  {line}")


if __name__ == "__main__":
    sys.exit(main())
