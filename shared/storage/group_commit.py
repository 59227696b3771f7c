"""A group commit: items that many threads write at the same time go to Postgres together.

Otherwise each run would claim, load and end in transactions of its own, and 200 of them would wait
for ten connections. Here the first that comes writes at once, alone; callers that come meanwhile
wait, and then one of them writes for all.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from arkloop.shared.errors import Unavailable

MAX_ITEMS = 100
#: Characters, about: items that are larger together are not written together.
MAX_SIZE = 1024 * 1024
#: Characters, about: a larger item is written by its own caller, and no other one waits for it.
LARGE_SIZE = 64 * 1024

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class _Turn(Generic[Item, Answer]):
    """A caller's item, and its result."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.is_done = False
        self.answer: Answer
        self.error: Exception | None = None
        self._woken = threading.Lock()
        self._woken.acquire()

    def wait(self) -> None:
        """Wait until another caller has written the item, or it is this caller's turn to write."""
        self._woken.acquire()

    def wake(self) -> None:
        self._woken.release()


class GroupCommit(Generic[Item, Answer]):
    """Call it with an item; it returns what `commit` answers for this one.

    `commit` gets one item or more and answers each, in order. Where it fails with more than one,
    each is tried alone: one that cannot be written must not take the others along.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Item]], Sequence[Answer]],
        size: Callable[[Item], int] = lambda _item: 0,
    ) -> None:
        self._commit = commit
        self._size = size
        self._lock = threading.Lock()
        self._is_committing = False
        self._pending: list[_Turn[Item, Answer]] = []

    def __call__(self, item: Item) -> Answer:
        """Commit the item. Raises: what `commit` raises for it."""
        if self._size(item) > LARGE_SIZE:
            return self._commit([item])[0]
        turn: _Turn[Item, Answer] = _Turn(item)
        with self._lock:
            self._pending.append(turn)
            must_wait, self._is_committing = self._is_committing, True
        if must_wait:
            turn.wait()
        if not turn.is_done:
            self._write_group()
        if turn.error is not None:
            raise turn.error
        return turn.answer

    def _write_group(self) -> None:
        """Write the first pending item and those behind it, then hand the turn to the next caller.

        Not by a lock on the commit: a caller coming just then would overtake those who wait for it.
        """
        group = self._take()
        try:
            self._write(group)
        finally:
            with self._lock:
                following = self._pending[:1]
                self._is_committing = bool(following)
            for turn in (*group[1:], *following):
                turn.wake()

    def _take(self) -> list[_Turn[Item, Answer]]:
        with self._lock:
            size = count = 0
            for turn in self._pending[:MAX_ITEMS]:
                size += self._size(turn.item)
                if count and size > MAX_SIZE:
                    break
                count += 1
            group, self._pending = self._pending[:count], self._pending[count:]
        return group

    def _write(self, group: list[_Turn[Item, Answer]]) -> None:
        try:
            answers = self._commit([turn.item for turn in group])
            for turn, answer in zip(group, answers, strict=True):
                turn.answer = answer
        except Exception as error:
            if len(group) > 1 and not isinstance(error, Unavailable):
                for turn in group:
                    self._write([turn])
                return
            for turn in group:
                turn.error = error
        except BaseException:
            # This thread is being ended; the others know no more than that it is not written.
            for turn in group:
                turn.error = Unavailable()
            raise
        finally:
            for turn in group:
                turn.is_done = True
