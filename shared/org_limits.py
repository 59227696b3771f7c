"""The limits of an org and of each of its API keys, and its weight in the turns of queued runs."""

from dataclasses import dataclass, fields
from typing import Self

from arkloop.shared.config import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class OrgLimits:
    """Limits of the org itself, or else those of the settings. 0 is no limit."""

    org_requests_per_minute: int = 0
    key_requests_per_minute: int = 0
    org_concurrent_runs: int = 0
    key_concurrent_runs: int = 0
    org_queued_runs: int = 0
    org_streams: int = 0
    key_streams: int = 0
    weight: int = 1  # runs that it starts in each round of turns

    @classmethod
    def of_settings(cls, settings: Settings) -> Self:
        """Return what an org has for which nothing else is set."""
        return cls(**{name: getattr(settings, name) for name in LIMITS})

    @property
    def limit_runs(self) -> bool:
        """True if any of them is a limit on runs."""
        return bool(self.org_concurrent_runs or self.key_concurrent_runs or self.org_queued_runs)


WEIGHT = "weight"
#: The names of the limits: those of the settings, of columns and of options of the command line.
LIMITS = tuple(one.name for one in fields(OrgLimits) if one.name != WEIGHT)
#: The highest values of a limit and of the weight, which the table enforces.
MOST, MOST_WEIGHT = 999_999_999, 100
