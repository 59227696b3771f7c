"""Explore the model of a busy thread: `python -m chaos.model [--short]`.

Every interleaving of two clients, one worker, the sweep and one crash is visited, over the table
that the service executes; then each seeded bug must be caught by its invariant. Exit status 1 if
an invariant is broken, a bug is missed, or a rule of the table never applies.
"""

import argparse
import sys

from arkloop.shared.runs.thread_queue import RULES
from chaos.model.bugs import BUGS
from chaos.model.effects import Table
from chaos.model.exploration import OUT_OF_REACH, SHORT, WHOLE, explore


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos.model", description=__doc__)
    parser.add_argument("--short", action="store_true", help="less requests and faults at once")
    options = parser.parse_args()
    bad = 0
    used: set[str] = set()
    print("    states      moves    s  model")
    for scope in SHORT if options.short else (*SHORT, *WHOLE):
        table = Table(RULES, max_waiting=scope.max_waiting, used=used)
        result = explore(table, scope.bounds)
        print(f"{result.states:10,} {result.moves:10,} {result.seconds:4.0f}  {scope}", flush=True)
        if result.found is not None:
            bad += 1
            print(result.found)
    if unused := {rule.name for rule in RULES} - used - OUT_OF_REACH:
        bad += not options.short
        print(f"rules that never applied: {', '.join(sorted(unused))}")
    caught = 0
    for bug in BUGS:
        found = explore(bug.table(), bug.bounds).found
        is_caught = found is not None and found.invariant == bug.caught_by
        caught += is_caught
        how = f"{found.invariant}, {len(found.path)} moves" if found else "nothing"
        print(f"{'caught' if is_caught else 'MISSED'}  {bug.name}: {how}")
    print(f"{caught} of {len(BUGS)} bugs caught")
    return int(bad > 0 or caught < len(BUGS))


if __name__ == "__main__":
    sys.exit(main())
