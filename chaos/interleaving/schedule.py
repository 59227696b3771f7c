"""A random schedule: at each moment one actor goes from its stop to its next one."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos.interleaving.actor import FREES_LOCKS, LATE, PAUSE, ROLLBACK, STATEMENT, Actor, Hangs

#: The chance of a crash at each stop, while one may still happen: an interleaving has some 40.
CRASHES = 0.02


@dataclass(slots=True)
class Schedule:
    """The order of one interleaving, decided by the dice alone.

    `crashes` is the number of actors that may be lost; `after` is called after each step that may
    have committed something, with what its actor was doing, and whether another one may have, too.
    """

    dice: random.Random
    crashes: int
    on_crash: Callable[[Actor], None]
    after: Callable[[Any, bool], None]
    steps: list[str] = field(default_factory=list)
    blocked: int = 0  # times that an actor waited for another one

    def play(self, actors: Sequence[Actor]) -> None:
        """Take the actors from stop to stop until their tasks are done.

        Raises:
            Hangs: all of them wait for locks.
        """
        # Some more often than others: else long sequences of one are too seldom.
        favours = {actor.name: self.dice.choice((1, 1, 6)) for actor in actors}
        while True:
            ready = [actor for actor in actors if not actor.is_done and not actor.is_blocked]
            if not ready:
                if all(actor.is_done for actor in actors):
                    return
                self._wait(actors)
                continue
            weights = [
                favours[actor.name] * (0.05 if actor.at == PAUSE else 1.0) for actor in ready
            ]
            actor = self.dice.choices(ready, weights)[0]
            self._step(actor, actors)

    def _wait(self, actors: Sequence[Actor]) -> None:
        """Wait until a lock is free. Postgres ends a deadlock by an error of one of the actors."""
        began = time.monotonic()
        while all(actor.is_blocked or actor.is_done for actor in actors):
            if time.monotonic() > began + LATE:
                raise Hangs("all actors wait for locks")
            for actor in actors:
                if actor.is_blocked:
                    actor.go()

    def _step(self, actor: Actor, actors: Sequence[Actor]) -> None:
        at, doing = actor.at, actor.does
        crash = self.crashes > 0 and self.dice.random() < CRASHES
        self.steps.append(f"{actor.name} {actor.does}: {'crash' if crash else at}")
        actor.go(crash=crash)
        self.blocked += actor.is_blocked
        if crash:
            self.crashes -= 1
            self.on_crash(actor)
        if not (at in FREES_LOCKS or crash or actor.is_done):
            return
        waiting = [other for other in actors if other.is_blocked and other is not actor]
        if at != ROLLBACK:
            self.after(doing, any(other.at == STATEMENT for other in waiting))
        for other in waiting:
            self.steps.append(f"{other.name} {other.does}: waits")
            other.go()
