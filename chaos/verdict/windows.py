"""The times at which something was broken on purpose, or just before."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

#: The names of faults of Redis, or of the broker alone, begin so.
REDIS = ("redis", "broker")
#: A death is seen this much later than it happens, at most.
NOTICED_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Window:
    """A time from `begin` to `end`; infinite if it never ended."""

    name: str
    begin: float
    end: float

    @property
    def is_of_redis(self) -> bool:
        return self.name.startswith(REDIS)

    def meets(self, begin: float, end: float, grace: float) -> bool:
        return self.begin <= end and begin <= self.end + grace


def _at(record: Mapping[str, Any]) -> float:
    at = record.get("at")
    return float(at) if isinstance(at, int | float) else 0.0


@dataclass(frozen=True, slots=True)
class Windows:
    """Many windows, asked whether a time falls into one of them."""

    windows: tuple[Window, ...]

    @classmethod
    def of_faults(
        cls, faults: Iterable[Mapping[str, Any]], processes: Iterable[Mapping[str, Any]] = ()
    ) -> "Windows":
        """Begin and end of faults, paired by name; deaths of processes up to the next start."""
        found: list[Window] = []
        open_: dict[str, list[float]] = defaultdict(list)
        for record in faults:
            name, at = str(record.get("name")), _at(record)
            if record.get("phase") == "begin":
                open_[name].append(at)
            elif open_[name]:
                found.append(Window(name, open_[name].pop(0), at))
        died: dict[str, list[float]] = defaultdict(list)
        for record in processes:
            role, at = str(record.get("role")), _at(record)
            if record.get("what") == "died":
                died[role].append(at)
            elif record.get("what") == "started" and died[role]:
                found.append(Window(f"{role} died", died[role].pop(0) - NOTICED_SECONDS, at))
        for role, times in died.items():
            found += [Window(f"{role} died", at - NOTICED_SECONDS, math.inf) for at in times]
        for name, times in open_.items():
            found += [Window(name, at, math.inf) for at in times]
        return cls(tuple(sorted(found, key=lambda window: window.begin)))

    def meets(self, begin: float, end: float, grace: float = 0.0, name: str = "") -> bool:
        """Return whether a window with `name` in its name was open between the two times."""
        return any(w.meets(begin, end, grace) for w in self.windows if name in w.name)
