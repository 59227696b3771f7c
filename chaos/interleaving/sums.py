"""The sums of many interleavings, played one after the other in a database of their own."""

import gc
from collections import Counter
from collections.abc import Iterator

from chaos.interleaving.play import Crew, Play, Played, planted
from chaos.interleaving.world import World, database
from chaos.model.bugs import Bug

#: Interleavings of a database, which takes seconds to start, and those after which it is emptied:
#: large tables would be slower.
PER_DATABASE, UNTIL_EMPTIED = 1_000, 250
SHOWN = 3


def play(seeds: range) -> Iterator[Played]:
    """Play the interleavings of these seeds in a database of their own."""
    with database() as connections, connections.reading() as sql:
        crew = Crew(World.make(connections), sql)
        gc.freeze()
        try:
            for number, seed in enumerate(seeds, 1):
                yield Play(crew, seed).run()
                if number % UNTIL_EMPTIED == 0:
                    crew.world.empty()
        finally:
            crew.close()


class Sum:
    """The sums of many interleavings."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.rules: set[str] = set()
        self.faulty: list[Played] = []

    def add(self, played: Played) -> None:
        self.counts += Counter(
            interleavings=1,
            steps=played.steps,
            compared=played.compared,
            blocked=played.blocked,
            crashed=played.crashed,
            accepted=played.accepted,
            faulty=bool(played.faults),
        )
        self.rules |= played.rules
        if played.faults and len(self.faulty) < SHOWN:
            self.faulty.append(played)

    def merge(self, other: "Sum") -> None:
        self.counts += other.counts
        self.rules |= other.rules
        self.faulty = [*self.faulty, *other.faulty][:SHOWN]

    def __str__(self) -> str:
        of = self.counts
        return (
            f"{of['interleavings']:,} interleavings, {of['steps']:,} steps,"
            f" {of['compared']:,} changes compared with {len(self.rules)} rules of the table,"
            f" {of['blocked']:,} waits for locks, {of['crashed']:,} crashes,"
            f" {of['accepted']:,} messages: {of['faulty']} broken"
        )


def caught_by(bug: Bug, tries: int) -> str:
    """Play with a bug of the table in the service until it is caught; returns how."""
    with planted(bug):
        for number, played in enumerate(play(range(1, tries + 1)), 1):
            if played.faults:
                return f"interleaving {number}: {played.faults[0]}"
    return ""


def play_all(seeds: range) -> Sum:
    """Sum up the interleavings of these seeds."""
    total = Sum()
    for played in play(seeds):
        total.add(played)
    return total
