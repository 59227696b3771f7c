"""The verdict on what receivers got: was an event lost, out of order, or not to be recognized?"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

#: A run and the number of its event.
Place = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A request, as its receiver has written it down, with what the receiver responded."""

    kind: str
    id: str
    is_genuine: bool
    run_id: str | None
    seq: int | None
    sent_for: str | None  # the time of the event
    at: float
    is_confirmed: bool

    @property
    def place(self) -> Place:
        return str(self.run_id), int(self.seq or 0)

    @property
    def delay(self) -> float:
        """Seconds since the event."""
        return self.at - datetime.fromisoformat(str(self.sent_for)).timestamp()


@dataclass(slots=True)
class Verdict:
    """The figures of one receiver; `faults` are what must never happen."""

    events: int = 0
    attempts: int = 0
    confirmed: int = 0
    duplicates: int = 0
    lost: int = 0
    order_violations: int = 0
    faults: list[str] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)


def judge(expected: Iterable[Place], arrivals: Iterable[Mapping[str, Any]]) -> Verdict:
    """Compare the events of a receiver with what has arrived there."""
    verdict = Verdict()
    found = sorted((Arrival(**one) for one in arrivals), key=lambda one: one.at)
    verdict.attempts = len(found)
    forged = [one for one in found if not one.is_genuine]
    if forged:
        verdict.faults.append(f"{len(forged)} requests without a valid signature")
    genuine = [one for one in found if one.is_genuine]
    ids: dict[Place, set[str]] = defaultdict(set)
    places: dict[str, set[Place]] = defaultdict(set)
    confirmed_at: dict[Place, float] = {}
    first_at: dict[Place, float] = {}
    for one in genuine:
        ids[one.place].add(one.id)
        places[one.id].add(one.place)
        first_at.setdefault(one.place, one.at)
        if one.is_confirmed:
            verdict.confirmed += 1
            if one.place not in confirmed_at:
                confirmed_at[one.place] = one.at
                verdict.delays.append(one.delay)
    for place, several in ids.items():
        if len(several) > 1:
            verdict.faults.append(f"{len(several)} ids of one event: {place}")
    for id_, several_places in places.items():
        if len(several_places) > 1:
            verdict.faults.append(f"{len(several_places)} events under one id: {id_}")
    wanted = set(expected)
    verdict.events = len(wanted)
    verdict.duplicates = verdict.confirmed - len(confirmed_at)
    lost = wanted - confirmed_at.keys()
    verdict.lost = len(lost)
    verdict.faults += [f"lost: {place}" for place in sorted(lost)]
    verdict.faults += [f"nobody's event: {place}" for place in sorted(ids.keys() - wanted)]
    for before, after in _neighbours(wanted):
        if first_at.get(after, 0.0) and first_at[after] < confirmed_at.get(before, float("inf")):
            verdict.order_violations += 1
            verdict.faults.append(f"out of order: {after} came before {before} was confirmed")
    return verdict


def untried(
    created: int, verdicts: Mapping[str, Verdict], kills: Mapping[str, int], must_kill: str | None
) -> list[str]:
    """Return what did not happen, so that the verdicts do not mean that it works.

    `must_kill` is the kind of kills without which nothing is shown, if any.
    """
    found = [] if created else ["no run was created"]
    found += [f"no events for {kind}" for kind, verdict in verdicts.items() if not verdict.events]
    if must_kill is not None and not kills.get(must_kill):
        found.append(f"nothing was killed: {must_kill}")
    return found


def _neighbours(places: Iterable[Place]) -> Iterable[tuple[Place, Place]]:
    """Yield each event with the next one of its run."""
    ordered = sorted(places)
    for before, after in itertools.pairwise(ordered):
        if before[0] == after[0]:
            yield before, after
