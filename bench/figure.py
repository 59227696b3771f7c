"""The result of a benchmark: numbers, their unit and targets, and the limit of the same run."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The result of the machine without the service: `value` in the figure's unit, for its number
    `of`.
    """

    name: str
    of: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A row of the table.

    `numbers` by name (`p50`, `p99`, `rate`, …), all in `unit`. `at_most` and `at_least` are targets
    for some of them, or for the `ratio` to the limit. `scale` says how much of what it was measured
    with, for the charts of how cost grows: figures of one `name` are one line there. `is_promise`
    is for what does not depend on the machine, such as that nothing is lost.
    """

    name: str
    unit: str
    numbers: Mapping[str, float]
    count: int
    at_most: Mapping[str, float] = field(default_factory=dict)
    at_least: Mapping[str, float] = field(default_factory=dict)
    limit: Limit | None = None
    scale: tuple[str, float] | None = None  # ("streams", 2000)
    note: str = ""
    is_promise: bool = False

    @property
    def missed(self) -> list[str]:
        """The numbers that miss their target."""
        numbers = {**self.numbers, "ratio": self.ratio or 0.0}
        over = [name for name, limit in self.at_most.items() if numbers[name] > limit]
        return over + [name for name, limit in self.at_least.items() if numbers[name] < limit]

    @property
    def ratio(self) -> float | None:
        """The multiple of the limit."""
        if self.limit is None or not self.limit.value:
            return None
        return self.numbers[self.limit.of] / self.limit.value

    def row(self) -> dict[str, Any]:
        """Return it as JSON."""
        limit = self.limit and {
            "name": self.limit.name,
            "of": self.limit.of,
            "value": self.limit.value,
            "ratio": self.ratio,
        }
        return {
            "figure": self.name,
            "unit": self.unit,
            "numbers": dict(self.numbers),
            "count": self.count,
            "at_most": dict(self.at_most),
            "at_least": dict(self.at_least),
            "missed": self.missed,
            "limit": limit,
            "scale": self.scale,
            "note": self.note,
        }


def percentile(values: Iterable[float], part: float) -> float:
    """Return the value that this part of them is below; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0
