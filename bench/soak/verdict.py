"""The verdict on a soak: what grew from its second third to its last."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.figure import percentile

TOTAL = "total "
#: From this duration on growth is judged.
JUDGED_MINUTES = 10.0
#: A machine that others use, too, leaves this part of the requests without a connection in time.
MOST_UNAVAILABLE = 0.001
#: In a soak that is not judged one busy moment is a large part of its few requests.
MOST_UNAVAILABLE_IF_SHORT = 0.02
FEW_UNAVAILABLE = 5

#: How much the median of the last third may be above that of the second, by the begin of the name:
#: a part of it, and an absolute value, which is there for numbers that are small.
TOLERANCES: Mapping[str, tuple[float, float]] = {
    "memory of": (0.03, 2.0),
    "files of": (0.02, 3.0),
    "Redis memory": (0.05, 2.0),
    "Redis connections": (0.05, 3.0),
    "Redis keys": (0.05, 50.0),
    "Postgres connections": (0.05, 3.0),
    "metrics": (0.02, 2.0),
    "rows of runs": (0.05, 0.0),
    "rows of run_events": (0.05, 0.0),
    "rows of webhook_deliveries": (0.05, 0.0),
    "bytes of a row of": (0.10, 0.0),
    "CPU of": (0.10, 0.1),
    "WAL": (0.10, 0.0),
    "p99 of": (0.25, 5.0),
}
#: Tables that are smaller say nothing: some pages more are a large part of them.
BIG_MIB = 2.0


@dataclass(frozen=True, slots=True)
class Trend:
    """The medians of the second and of the last third of the samples, and what is allowed."""

    name: str
    before: float
    after: float
    tolerance: tuple[float, float] | None

    @property
    def has_grown(self) -> bool:
        """True if it is beyond its tolerance; what has none may grow."""
        if self.tolerance is None:
            return False
        part, value = self.tolerance
        return self.after > self.before * (1 + part) + value

    def line(self) -> str:
        """Return it for people."""
        change = (self.after / self.before - 1) * 100 if self.before else 0.0
        allowed = (
            "-" if self.tolerance is None else f"{self.tolerance[0]:.0%} + {self.tolerance[1]:g}"
        )
        return (
            f"{'GROWN' if self.has_grown else '':5} {self.name:44} {self.before:12.2f}"
            f" {self.after:12.2f} {change:+7.1f} %  {allowed}"
        )


def most_unavailable(requests: int, minutes: float) -> float:
    """Return how many of the requests may be unavailable in a soak of this duration."""
    if minutes >= JUDGED_MINUTES:
        return MOST_UNAVAILABLE * requests
    return max(FEW_UNAVAILABLE, MOST_UNAVAILABLE_IF_SHORT * requests)


def times(latencies: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the percentiles of seconds, in milliseconds.

    Of an interval without any there is none: 0 would lower the median of the others.
    """
    return {
        f"p{part} of {what}, ms": percentile(values, part / 100) * 1000
        for what, values in latencies.items()
        if values
        for part in (50, 99)
    }


def per_run(earlier: Mapping[str, float], later: Mapping[str, float]) -> dict[str, float]:
    """Return the later sample with totals replaced by their growth for each run, in the unit's
    thousandth, and with the bytes of a row of each big table.
    """
    runs = max(1.0, later["total runs"] - earlier["total runs"])
    found: dict[str, float] = {}
    for name, value in later.items():
        if not name.startswith(TOTAL):
            found[name] = value
        elif name in earlier and name != "total runs":
            what, _, unit = name.removeprefix(TOTAL).rpartition(", ")
            small = {"s": "ms", "MiB": "KiB"}[unit]
            factor = 1000 if small == "ms" else 1024
            found[f"{what} of a run, {small}"] = (value - earlier[name]) * factor / runs
    for name, value in later.items():
        if name.startswith("size of ") and value >= BIG_MIB:
            table = name.removeprefix("size of ").removesuffix(", MiB")
            found[f"bytes of a row of {table}"] = (
                value * 2**20 / max(1.0, later[f"rows of {table}"])
            )
    return found


def trends(samples: Sequence[Mapping[str, float]]) -> list[Trend]:
    """Compare the thirds; a number that a sample lacks counts in the others."""
    third = len(samples) // 3
    second, last = samples[third : 2 * third], samples[len(samples) - third :]
    names = sorted({name for sample in second for name in sample})
    found = []
    for name in names:
        values = [[one[name] for one in part if name in one] for part in (second, last)]
        if all(values):
            before, after = map(statistics.median, values)
            found.append(Trend(name, before, after, _tolerance(name)))
    return found


def unmatched(found: Sequence[Trend]) -> list[str]:
    """Return the begins of `TOLERANCES` that no trend has: their growth would not be seen."""
    return [begin for begin in TOLERANCES if not any(one.name.startswith(begin) for one in found)]


def _tolerance(name: str) -> tuple[float, float] | None:
    fitting = (allowed for begin, allowed in TOLERANCES.items() if name.startswith(begin))
    return next(fitting, None)
