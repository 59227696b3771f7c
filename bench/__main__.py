"""The use of resources by the service and how it grows, next to its targets and the limits of the
same run.

    .venv/bin/python -m bench [--only NAME …] [--short] [--json FILE] [--plots FOLDER]

Each figure is printed as soon as it is known, all of them in a table at the end. Exit status 1: a
target was missed, or a benchmark broke. With `--short` all of them run with few of everything:
that shows that they work, so only what must never happen is judged.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import table
from bench.figure import Figure
from bench.groups import BY_NAME, GROUPS, Group
from bench.machine import commit, load, machine

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    options = _options()
    chosen = [group for group in GROUPS if not options.only or group.name in options.only]
    began = time.monotonic()
    about: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "short": options.short,
        "machine": machine(),
    }
    _say(json.dumps(about, ensure_ascii=False))
    found: dict[str, Sequence[Figure]] = {}
    broken: list[str] = []
    for group in chosen:
        figures, is_whole = _run(group, short=options.short)
        found[group.name] = figures
        if not is_whole:
            broken.append(group.name)
    about |= {"seconds": round(time.monotonic() - began), "load_at_the_end": load()}
    rows = [{"group": name, **one.row()} for name, figures in found.items() for one in figures]
    _write(about | {"broken": broken, "rows": rows}, options.json, options.plots)
    print(table.table(found))
    print()
    print(_summary(about))
    missed = [one.name for figures in found.values() for one in figures if one.missed]
    for name in broken:
        print(f"BROKEN: {name}")
    for name in missed:
        print(f"MISSED: {name}")
    return 1 if missed or broken else 0


def _options() -> argparse.Namespace:
    groups = "\n".join(f"  {group.name:10} {group.measures}" for group in GROUPS)
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog=f"groups:\n{groups}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=sorted(BY_NAME), metavar="NAME")
    parser.add_argument("--short", action="store_true", help="few of everything, in 4 minutes")
    parser.add_argument("--json", type=Path, default=RESULTS / "results.json", metavar="FILE")
    parser.add_argument("--plots", type=Path, default=RESULTS, metavar="FOLDER")
    return parser.parse_args()


def _run(group: Group, *, short: bool) -> tuple[list[Figure], bool]:
    """Measure the figures to the end, or to a failure."""
    _say(f"\n{group.name}: {group.measures}")
    began = time.monotonic()
    figures: list[Figure] = []
    is_whole = True
    try:
        for figure in group.run(short):
            if short and not figure.is_promise:
                figure = replace(figure, at_most={}, at_least={})
            figures.append(figure)
            _say(table.line(figure))
    except Exception:
        # The others are still worth knowing.
        _say(traceback.format_exc())
        is_whole = False
    _say(f"{group.name}: {time.monotonic() - began:.0f} s")
    return figures, is_whole


def _write(results: dict[str, Any], file: Path, folder: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    # Half a second and many megabytes that nothing that is measured shall bear.
    from bench import plots

    for path in plots.draw(results["rows"], folder):
        _say(str(path))


def _summary(about: dict[str, Any]) -> str:
    on = about["machine"]
    return (
        f"{on['cores']} × {on['cpu']}, {on['memory_gib']} GiB, {on['kernel']}; "
        f"Python {on['python']}, Postgres {on['postgres']}, Redis {on['redis']}\n"
        f"commit {about['commit'] or '-'}, {about['date']}, {about['seconds']} s; "
        f"load {on['load']} at the begin, {about['load_at_the_end']} at the end"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
