"""Play scenarios and tell what they showed: `python -m chaos [--seed 1] [--only NAME …]`.

Exit status 1 if any invariant was violated. The folder of a scenario that failed is kept.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from chaos.scenarios import BY_NAME, SCENARIOS
from chaos.trial import Outcome, play
from chaos.verdict.checker import report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--seed", type=int, nargs="+", default=[1])
    parser.add_argument("--only", nargs="+", choices=sorted(BY_NAME), metavar="NAME")
    parser.add_argument("--short", action="store_true", help="what CI plays, in two minutes")
    parser.add_argument("--keep", action="store_true", help="keep the folder in any case")
    parser.add_argument("--results", type=Path, help="append one JSON line for each scenario")
    args = parser.parse_args()
    chosen = [BY_NAME[name] for name in args.only or [s.name for s in SCENARIOS]]
    if args.short and not args.only:
        chosen = [scenario for scenario in chosen if scenario.in_short_cut]
    root = Path(tempfile.mkdtemp(prefix="arkloop-chaos-"))
    began = time.monotonic()
    failed = 0
    print(f"{'scenario':20} {'seed':>4} {'s':>4} {'runs':>5} {'events':>7} {'again':>6}  what")
    for seed in args.seed:
        for scenario in chosen:
            if lack := scenario.needs():
                print(f"{scenario.name:20} {seed:4}  not played: {lack}", flush=True)
                continue
            folder = root / f"{scenario.name}-{seed}"
            outcome = play(scenario, seed, folder, short=args.short)
            _show(outcome)
            failed += bool(outcome.violations)
            if args.results is not None:
                with args.results.open("a") as file:
                    file.write(json.dumps(asdict(outcome), default=str) + "\n")
            if not outcome.violations and not args.keep:
                shutil.rmtree(folder)
    print(f"{failed} of {len(chosen) * len(args.seed)} failed, {time.monotonic() - began:.0f} s")
    if failed or args.keep:
        print(f"journals and logs: {root}")
    else:
        shutil.rmtree(root)
    return 1 if failed else 0


def _show(outcome: Outcome) -> None:
    summary = outcome.summary
    notes = ", ".join(f"{count} {what}" for what, count in outcome.notes.items())
    verdict = f"{len(outcome.violations)} VIOLATIONS" if outcome.violations else "ok"
    print(
        f"{outcome.scenario:20} {outcome.seed:4} {outcome.seconds:4.0f}"
        f" {summary['accepted']:5} {summary['events']:7} {summary['reconnects']:6}"
        f"  {verdict}; {notes}",
        flush=True,
    )
    if outcome.violations:
        print(report(outcome.violations), flush=True)


if __name__ == "__main__":
    sys.exit(main())
