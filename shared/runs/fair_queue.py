"""The order in which runs of a long queue start: round robin by org, then end user, then thread.
In each round an org starts as many runs as its weight.

A message for a worker says that there is one more run to execute. While the queue is short, that is
the run that it names. While it is long, the worker executes the run whose turn it is instead: each
message still starts one run, so that no slot stays empty.

Turns go round in the order of ids; those of one org in a round follow each other. A process
remembers only whose turn was last, and asks Postgres who is next: no process keeps a queue, and
none is waited for. What one process has had its turn in is no matter to the others, so that each
org with queued runs has its turn in each of them.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from arkloop.shared.storage.arrays import TextArray, plain_array
from arkloop.shared.storage.sql_files import statement

#: What was chosen is claimed within this time, or not at all; until then it is not chosen again.
CLAIM_SECONDS = 2.0
#: Orgs of which a process remembers which end user was last.
MAX_REMEMBERED = 10_000
_ORGS = statement(__package__, "fair_orgs")
_RUNS = statement(__package__, "fair_runs")
_PLACE = statement(__package__, "place_in_queue")


class Place(NamedTuple):
    """The place of a queued run, if it gets the last turn of each round."""

    position: int  # among the queued runs of its org, from 1 on
    ahead: int  # runs of all orgs that start before it


def place_of(sql: Connection, run_id: UUID) -> Place | None:
    """Return the run's place; None if it is not queued for the service's workers."""
    row = sql.exec_driver_sql(_PLACE, {"run_id": run_id}).one_or_none()
    return None if row is None else Place(row.position, row.ahead)


class _Visit(NamedTuple):
    """The turns of an org in one round; `ready` is its number of queued runs, up to the weight."""

    org_id: UUID
    weight: int
    ready: int


class _Choice(NamedTuple):
    """A run that was chosen for a turn of its org; `until` is on the monotonic clock."""

    until: float
    org_id: UUID


class _Found(NamedTuple):
    """A queued run; `number` is the step of its org that it is for, None if it was named."""

    number: int | None
    org_id: UUID
    end_user: str
    id: UUID


class FairQueue:
    """The turns of a worker process. One caller at a time."""

    def __init__(self) -> None:
        self._last_org_id: UUID | None = None
        self._begun = 0  # turns that it has had in its round
        self._last_end_users: dict[UUID, str] = {}
        self._chosen: dict[UUID, _Choice] = {}

    def choose(
        self, sql: Connection, named: Sequence[UUID], lost: Sequence[UUID] = ()
    ) -> list[UUID]:
        """Return for each of the runs, which messages name, the one to execute instead.

        It may be the same. Another process may claim it first: `lost` are runs that were chosen
        before, and then were another's. Their orgs have these turns again.
        """
        owed = [self._chosen[one].org_id for one in lost if one in self._chosen]
        steps = {"steps": len(named), "from_org_id": self._last_org_id}
        visits = [_Visit(*row) for row in sql.exec_driver_sql(_ORGS, steps)]
        if not visits:
            return [*named]
        begun = self._begun if visits[0].org_id == self._last_org_id else 0
        numbered = [*islice(_turns(visits, begun), max(0, len(named) - len(owed)))]
        if numbered:
            self._last_org_id, self._begun = numbered[-1]
        turns = [*owed, *(org_id for org_id, _ in numbered)]
        weights = {visit.org_id: visit.weight for visit in visits}
        chosen: list[UUID] = []
        while turns:
            taken = self._take(sql, turns, [one for one in named if one not in chosen])
            chosen += [run_id for of_org in taken.values() for run_id in of_org]
            # Where an org had fewer runs than turns, others have them: no slot stays empty.
            left = [
                org_id
                for org_id, count in Counter(turns).items()
                if len(taken[org_id]) == count
                for _ in range(weights.get(org_id, 1))
            ]
            turns = [*islice(cycle(left), len(named) - len(chosen))]
        return _assigned(named, chosen)

    def _take(
        self, sql: Connection, turns: Sequence[UUID], named: Sequence[UUID]
    ) -> dict[UUID, list[UUID]]:
        """Choose a run of the org for each of these turns; return them by org."""
        as_good: dict[tuple[UUID, str], list[UUID]] = defaultdict(list)
        taken: dict[UUID, list[UUID]] = {org_id: [] for org_id in turns}
        for found in self._found(sql, turns, named):
            if found.number is None:
                as_good[found.org_id, found.end_user].append(found.id)
                continue
            self._last_end_users[found.org_id] = found.end_user
            # All processes find the same oldest runs; a named run is this one's alone.
            candidates = as_good[found.org_id, found.end_user]
            candidates.append(found.id)
            wanted = next((one for one in candidates if one not in self._chosen), None)
            if wanted is not None:
                taken[found.org_id].append(wanted)
                until = time.monotonic() + CLAIM_SECONDS
                self._chosen[wanted] = _Choice(until, found.org_id)
        return taken

    def _found(self, sql: Connection, turns: Sequence[UUID], named: Sequence[UUID]) -> list[_Found]:
        if len(self._last_end_users) > MAX_REMEMBERED:
            self._last_end_users.clear()
        steps = Counter(turns)
        now = time.monotonic()
        self._chosen = {one: choice for one, choice in self._chosen.items() if choice.until > now}
        rows = sql.exec_driver_sql(
            _RUNS,
            {
                "org_ids": plain_array(steps),
                "after_end_users": TextArray(self._last_end_users.get(org_id) for org_id in steps),
                "steps": plain_array(steps.values()),
                "own_ids": plain_array(named),
                "taken_ids": plain_array(self._chosen),
            },
        )
        return [_Found(*row) for row in rows]


def _turns(visits: Sequence[_Visit], begun: int) -> Iterator[tuple[UUID, int]]:
    """Yield the org of each turn, and which of its turns in the round that is, from 1 on.

    The first org has had `begun` of them already. Goes round again where orgs may have more runs
    than were counted, without an end.
    """
    first, *others = visits
    for number in range(begun, min(first.weight, begun + first.ready)):
        yield first.org_id, number + 1
    for visit in others:
        for number in range(visit.ready):
            yield visit.org_id, number + 1
    for visit in cycle(
        one for one in visits if one.ready == one.weight or (begun and one is first)
    ):
        for number in range(visit.weight):
            yield visit.org_id, number + 1


def _assigned(named: Sequence[UUID], chosen: Sequence[UUID]) -> list[UUID]:
    """Return the chosen runs in the order of those named; a run that is both keeps its place."""
    both = set(chosen) & set(named)
    others = iter([run_id for run_id in chosen if run_id not in both])
    return [run_id if run_id in both else next(others, run_id) for run_id in named]
