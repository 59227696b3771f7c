"""A breadth-first search through every state of a model, for the shortest way to a broken promise.

A state is any hashable value. The search knows nothing of what the states mean. Two
states with the same hash of 64 bits count as one, so that millions of them fit into memory.
"""

import time
from array import array
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

State = TypeVar("State", bound=Hashable)

#: Returns what is wrong with a state, or None.
Invariant = Callable[[State], str | None]
#: Returns what is wrong with a move: the state before, its label, the state after.
InvariantOfMove = Callable[[State, str, State], str | None]
#: Returns label and state of each move that is possible.
Moves = Callable[[State], Iterable[tuple[str, State]]]

#: The invariants of the search itself: see `explore`.
STUCK = "no dead end"
HOPELESS = "progress"
_NONE = -1


class TooManyStates(Exception):
    """The model has more states than the search may visit."""


@dataclass(frozen=True, slots=True)
class Counterexample(Generic[State]):
    """A shortest path to a state that breaks an invariant: the moves, and where each leads."""

    invariant: str
    why: str
    path: Sequence[tuple[str, State]]

    def __str__(self) -> str:
        steps = [f"  {number:2} {label}" for number, (label, _) in enumerate(self.path, 1)]
        state = f"     {self.path[-1][1]}" if self.path else "     at once"
        return "\n".join([f"{self.invariant}: {self.why}", *steps, state])


@dataclass(frozen=True, slots=True)
class Exploration(Generic[State]):
    """The result of a search; it is complete unless it has found something."""

    states: int
    moves: int
    ends: int  # states without a move
    seconds: float
    found: Counterexample[State] | None


class Search(Generic[State]):
    """A search from one state on.

    Two invariants come with the search: a state without a move is done (`STUCK`), and from each
    state one that is done can be reached (`HOPELESS`), by moves that are no requests, since a
    client may make none.
    """

    def __init__(
        self,
        initial: State,
        moves: Moves[State],
        *,
        of_states: Mapping[str, Invariant[State]],
        of_moves: Mapping[str, InvariantOfMove[State]],
        is_done: Callable[[State], bool],
        is_request: Callable[[str], bool] = lambda _label: False,
        max_states: int = 50_000_000,
    ) -> None:
        self._initial = initial
        self._moves = moves
        self._of_states = of_states
        self._of_moves = of_moves
        self._is_done = is_done
        self._is_request = is_request
        self._max_states = max_states
        self._numbers: dict[int, int] = {}  # of states, by hash
        self._parents = array("q")
        self._choices = array("q")  # which of the parent's moves has led here
        self._done = bytearray()
        self._edges = (array("q"), array("q"))  # from, to: of moves that are no requests
        self._counted = self._ends = 0

    def run(self) -> Exploration[State]:
        """Search all states that can be reached, the nearest first, until one breaks an invariant.

        Raises:
            TooManyStates
        """
        began = time.monotonic()
        found = self._search()
        seconds = time.monotonic() - began
        return Exploration(len(self._parents), self._counted, self._ends, seconds, found)

    def _search(self) -> Counterexample[State] | None:
        waiting = deque([(self._initial, self._number(self._initial, _NONE, 0))])
        while waiting:
            state, number = waiting.popleft()
            for name, invariant in self._of_states.items():
                if why := invariant(state):
                    return Counterexample(name, why, self._path(number))
            choice = 0
            for choice, (label, after) in enumerate(self._moves(state), 1):
                for name, of_move in self._of_moves.items():
                    if why := of_move(state, label, after):
                        return Counterexample(name, why, [*self._path(number), (label, after)])
                known = len(self._parents)
                then = self._number(after, number, choice)
                if then == known:
                    waiting.append((after, then))
                if not self._is_request(label):
                    self._edges[0].append(number)
                    self._edges[1].append(then)
            self._counted += choice
            self._done[number] = self._is_done(state)
            if not choice:
                self._ends += 1
                if not self._done[number]:
                    return Counterexample(STUCK, "no move is possible", self._path(number))
        return self._without_hope()

    def _number(self, state: State, parent: int, choice: int) -> int:
        """Return the number of a state, a new one if it was not seen before."""
        number = self._numbers.setdefault(hash(state), len(self._parents))
        if number == len(self._parents):
            if number == self._max_states:
                raise TooManyStates(f"more than {number}")
            self._parents.append(parent)
            self._choices.append(choice)
            self._done.append(0)
        return number

    def _without_hope(self) -> Counterexample[State] | None:
        """Go back from all states that are done; what is not reached cannot reach them."""
        sources, targets = self._edges
        before: dict[int, list[int]] = {}
        for source, target in zip(sources, targets, strict=True):
            if not self._done[source]:
                before.setdefault(target, []).append(source)
        reached = self._done
        waiting = [number for number, is_done in enumerate(reached) if is_done]
        while waiting:
            for number in before.get(waiting.pop(), ()):
                if not reached[number]:
                    reached[number] = 1
                    waiting.append(number)
        if (number := reached.find(0)) == _NONE:
            return None
        return Counterexample(HOPELESS, "no end can be reached from here", self._path(number))

    def _path(self, number: int) -> list[tuple[str, State]]:
        """Take the moves again that have led to this state."""
        choices = []
        while self._parents[number] != _NONE:
            choices.append(self._choices[number])
            number = self._parents[number]
        path: list[tuple[str, State]] = []
        state = self._initial
        for choice in reversed(choices):
            path.append(list(self._moves(state))[choice - 1])
            state = path[-1][1]
        return path
