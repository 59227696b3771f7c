"""The ids of a turn's calls, unique in the run; some servers restart them in each turn.

A person's reply to one call must never be taken for a reply to another.
"""

import itertools
from collections.abc import Iterable
from dataclasses import replace

from arkloop.shared.events.plain import clean
from arkloop.worker.contract.messages import ToolCall

#: Beyond it an id would not fit into an index of the ledger.
MAX_CALL_ID_CHARACTERS = 256


class CallIds:
    """Ids for the calls of one try of a turn, by position; once given, an id stays."""

    def __init__(self, turn: int, taken: Iterable[str]) -> None:
        self._turn = turn
        self._taken = set(taken)
        self._given: dict[int, str] = {}

    def id_of(self, position: int, vendors: str) -> str:
        """Return the vendor's id if it is unique in the run, else one of our own."""
        if (own := self._given.get(position)) is None:
            own, numbers = clean(vendors), itertools.count(position + 1)
            while not 0 < len(own) <= MAX_CALL_ID_CHARACTERS or own in self._taken:
                own = f"call_{self._turn + 1}_{next(numbers)}"
            self._given[position] = own
            self._taken.add(own)
        return own

    def name(self, calls: Iterable[ToolCall]) -> tuple[ToolCall, ...]:
        """Return the turn's calls under their ids."""
        return tuple(
            replace(call, id=self.id_of(position, call.id), name=clean(call.name))
            for position, call in enumerate(calls)
        )
