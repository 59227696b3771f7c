"""Prove that the checker can fail: `python -m chaos.mutation [NAME …] [--seed 1]`.

A NAME is that of a mutant or of a scenario. The unbroken code plays each scenario
first and must show nothing; then each mutant must show what it is to be caught by.
Exit status 1 if the one or the other is not so.
"""

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from chaos.mutation.mutants import MUTANTS
from chaos.mutation.planting import Mutant, copy, plant
from chaos.mutation.playing import Shown, in_order, played
from chaos.mutation.scenarios import BY_NAME
from chaos.system.stack import ROOT

UNBROKEN = "(unbroken)"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of a mutant, or of the unbroken code, in a scenario; both lists are of
    invariants.
    """

    name: str
    scenario: str
    seed: int
    caught_by: list[str]
    found: list[str]
    is_good: bool  # the unbroken code is clean, the mutant was caught
    seconds: float
    report: str
    folder: Path

    @property
    def word(self) -> str:
        if not self.caught_by:
            return "CLEAN" if self.is_good else "NOT CLEAN"
        return "CAUGHT" if self.is_good else "MISSED"


def run(mutants: Collection[Mutant], pool: Executor, root: Path, seed: int) -> Iterator[Verdict]:
    """Yield a verdict for each scenario that is used, then one for each mutant."""
    code = copy(ROOT, root / "code")  # all of them come of one state of it
    used = {mutant.scenario for mutant in mutants}
    unbroken = {
        name: (root / name, pool.submit(played, name, seed, root / name / "play", code))
        for name in BY_NAME
        if name in used
    }
    broken = []
    for mutant in mutants:
        folder = root / mutant.name.replace(" ", "-")
        source = plant(mutant, code, folder / "source")
        shown = pool.submit(played, mutant.scenario, seed, folder / "play", source)
        broken.append((mutant, folder, shown))
    for name, (folder, shown) in unbroken.items():
        yield _of_unbroken(name, seed, folder, shown.result())
    for mutant, folder, shown in broken:
        _, without = unbroken[mutant.scenario]
        yield _of_mutant(mutant, seed, folder, shown.result(), without.result())


def _of_unbroken(name: str, seed: int, folder: Path, shown: Shown) -> Verdict:
    """Judge the unbroken code: without a violation, or a catch in this scenario proves nothing."""
    return Verdict(
        name=UNBROKEN,
        scenario=name,
        seed=seed,
        caught_by=[],
        found=shown.found,
        is_good=not shown.report,
        seconds=shown.seconds,
        report=shown.report,
        folder=folder,
    )


def _of_mutant(mutant: Mutant, seed: int, folder: Path, shown: Shown, without: Shown) -> Verdict:
    """Judge a mutant; what the unbroken code shows, too, is no catch."""
    return Verdict(
        name=mutant.name,
        scenario=mutant.scenario,
        seed=seed,
        caught_by=in_order(mutant.caught_by),
        found=shown.found,
        is_good=bool(mutant.caught_by & {*shown.found} - {*without.found}),
        seconds=shown.seconds,
        report=shown.report,
        folder=folder,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos.mutation", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=2, help="plays at the same time")
    parser.add_argument("--keep", action="store_true", help="keep all folders")
    parser.add_argument("--results", type=Path, help="append one JSON line for each line shown")
    args = parser.parse_args()
    known = {name for mutant in MUTANTS for name in (mutant.name, mutant.scenario)}
    if unknown := [name for name in args.names if name not in known]:
        parser.error(f"there is no {', '.join(unknown)}; there is {', '.join(sorted(known))}")
    chosen = [
        mutant
        for mutant in MUTANTS
        if not args.names or mutant.name in args.names or mutant.scenario in args.names
    ]
    root = Path(tempfile.mkdtemp(prefix="arkloop-mutants-"))
    began = time.monotonic()
    bad = caught = 0
    # A process for each: Alembic, which prepares their databases, knows one at a time.
    with ProcessPoolExecutor(args.at_once, multiprocessing.get_context("spawn")) as pool:
        for verdict in run(chosen, pool, root, args.seed):
            _show(verdict)
            bad += not verdict.is_good
            caught += bool(verdict.caught_by) and verdict.is_good
            if args.results is not None:
                with args.results.open("a") as file:
                    file.write(json.dumps(asdict(verdict), default=str) + "\n")
            if verdict.is_good and not args.keep:
                shutil.rmtree(verdict.folder)
    print(f"{caught} of {len(chosen)} caught, {time.monotonic() - began:.0f} s")
    if bad or args.keep:
        print(f"journals and logs: {root}")
    else:
        shutil.rmtree(root)
    return 1 if bad else 0


def _show(verdict: Verdict) -> None:
    found = " ".join(verdict.found) or "nothing"
    wanted = f"{' '.join(verdict.caught_by)}: " if verdict.caught_by else ""
    print(
        f"{verdict.word:9} {verdict.seconds:3.0f} s  {verdict.scenario:21}"
        f" {verdict.name:47} {wanted}{found}",
        flush=True,
    )
    if not verdict.is_good and verdict.report:
        print(verdict.report, flush=True)


if __name__ == "__main__":
    sys.exit(main())
