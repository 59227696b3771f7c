"""The exploration of the model: what is explored, and how."""

from dataclasses import dataclass

from arkloop.shared.runs.thread_queue import OnBusy
from chaos.model import promises
from chaos.model.busy_thread import Thread
from chaos.model.effects import Table
from chaos.model.explorer import Exploration, Search
from chaos.model.processes import Model, is_request
from chaos.model.steps import Bounds

#: Rules for what the model lacks: the deletion of a thread, and a step without offered messages.
OUT_OF_REACH = frozenset(
    {
        "due in a thread that is gone",
        "end in a thread that is gone",
        "step alone",
    }
)


@dataclass(frozen=True, slots=True)
class Scope:
    """The bounds of one exploration."""

    bounds: Bounds
    max_waiting: int = 3

    def __str__(self) -> str:
        bounds = self.bounds
        first, second = bounds.requests
        values = "all" if len(bounds.on_busy) == len(OnBusy) else ", ".join(bounds.on_busy)
        extras = [
            f"{first} + {second} requests",
            f"on_busy: {values}",
            f"at most {self.max_waiting} wait",
            *(["a crash"] * bounds.crashes),
            *(["a wait for input"] * bounds.parks),
            *(["not_before"] * bounds.has_times),
            *(["revoked keys"] * bounds.has_revocations),
        ]
        return "; ".join(extras)


def _scope(
    first: int,
    second: int,
    *on_busy: OnBusy,
    crashes: int = 0,
    parks: int = 0,
    times: bool = False,
    revocations: bool = False,
    max_waiting: int = 3,
) -> Scope:
    values = on_busy or tuple(OnBusy)
    bounds = Bounds((first, second), crashes, parks, values, times, revocations)
    return Scope(bounds, max_waiting)


#: What takes a second or two.
SHORT = (
    _scope(1, 1, crashes=1, parks=1, times=True),
    _scope(2, 1, OnBusy.ENQUEUE, OnBusy.STEER, max_waiting=1),
)
WHOLE = (
    _scope(2, 1, crashes=1),
    _scope(2, 1, parks=1, times=True, revocations=True),
    _scope(2, 1, crashes=1, parks=1, times=True, max_waiting=2),
    _scope(3, 1, OnBusy.ENQUEUE, OnBusy.MERGE, OnBusy.INTERRUPT, revocations=True),
    _scope(2, 2, OnBusy.STEER, OnBusy.ROLLBACK, OnBusy.MERGE, crashes=1),
)


def explore(table: Table, bounds: Bounds) -> Exploration[Thread]:
    """Search every interleaving within the bounds; `table.used` collects the rules that apply."""
    model = Model(table, bounds)
    of_states = promises.of_states(table.max_waiting)
    return Search(
        model.initial(),
        model.moves,
        of_states=of_states,
        of_moves=promises.OF_MOVES,
        is_done=promises.is_over,
        is_request=is_request,
    ).run()
