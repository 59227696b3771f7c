"""Questions that many ask at the same time are asked together, and nobody asks for the others."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from arkloop.api.streaming import lookups as module
from arkloop.api.streaming.lookups import Lookups
from arkloop.shared.errors import Unavailable
from tests.waiting import eventually


class Table:
    """A table whose reads are held up until the test lets them go."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.may_answer = threading.Semaphore(0)
        self.error: BaseException | None = None

    def read(self, keys: Sequence[int]) -> Mapping[int, int]:
        self.asked.append([*keys])
        assert self.may_answer.acquire(timeout=60)
        if self.error is not None:
            raise self.error
        return {key: key * key for key in keys if key}


class Questions(dict[int, Any]):
    """Open questions of which each caller looks for its own; `sought` counts the callers."""

    sought = 0

    def get(self, *key: Any) -> Any:
        self.sought += 1
        return super().get(*key)


class NoMoreThreads:
    """A process that may start no more threads."""

    def Thread(self, **_: object) -> threading.Thread:
        raise RuntimeError("can't start new thread")


class Asking:
    """A caller that asks in a thread of its own."""

    def __init__(self, lookups: Lookups[int, int], key: int) -> None:
        self.answer: int | None = -1
        self.error: BaseException | None = None
        self._lookups, self._key = lookups, key
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        try:
            self.answer = self._lookups.get(self._key)
        except BaseException as error:
            self.error = error

    @property
    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    def whole(self) -> int | None:
        self._thread.join(60)
        assert self.has_ended
        return self.answer


def test_what_is_asked_meanwhile_is_asked_together() -> None:
    """The first question goes alone; the others make one, each key once."""
    table = Table()
    lookups = Lookups[int, int]("test", table.read)
    lookups._asked = questions = Questions()
    first = Asking(lookups, 2)
    eventually(lambda: [[2]] == table.asked)
    others = [Asking(lookups, key) for key in (3, 0, 3, 2)]
    eventually(lambda: 5 == questions.sought)
    assert {3, 0, 2} == questions.keys()
    table.may_answer.release(2)

    assert 4 == first.whole()
    assert [9, None, 9, 4] == [other.whole() for other in others]
    assert [[2], {0, 2, 3}] == [table.asked[0], {*table.asked[1]}]
    assert 2 == len(table.asked)


def test_who_has_an_answer_does_not_ask_for_those_who_came_later() -> None:
    """Under a steady load a request would never end."""
    table = Table()
    lookups = Lookups[int, int]("test", table.read)
    first = Asking(lookups, 2)
    eventually(lambda: [[2]] == table.asked)
    later = Asking(lookups, 3)
    eventually(lambda: {3} == lookups._asked.keys())
    table.may_answer.release()

    assert 4 == first.whole()
    assert not later.has_ended
    table.may_answer.release()
    assert 9 == later.whole()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", [Unavailable(), ValueError("a fault"), SystemExit()])
def test_a_failure_is_everybodys_and_the_next_question_is_asked(error: BaseException) -> None:
    """A thread that is being ended while it asks for others leaves none of them waiting."""
    table = Table()
    lookups = Lookups[int, int]("test", table.read)
    lookups._asked = questions = Questions()
    first = Asking(lookups, 2)
    eventually(lambda: [[2]] == table.asked)
    others = [Asking(lookups, key) for key in (3, 4, 3)]
    eventually(lambda: 4 == questions.sought)
    table.may_answer.release()
    assert 4 == first.whole()
    eventually(lambda: 2 == len(table.asked))
    table.error = error
    table.may_answer.release()

    expected = RuntimeError if isinstance(error, ValueError) else Unavailable
    for other in others:
        other.whole()
        assert expected is type(other.error)
    table.error = None
    table.may_answer.release()
    assert 25 == lookups.get(5)
    eventually(lambda: all("test" != one.name for one in threading.enumerate()))


@pytest.mark.parametrize("error", [Unavailable(), SystemExit()])
def test_the_first_that_asks_has_the_failure_itself(error: BaseException) -> None:
    """The next question is asked all the same."""
    table = Table()
    lookups = Lookups[int, int]("test", table.read)
    table.error = error
    first = Asking(lookups, 2)
    eventually(lambda: [[2]] == table.asked)
    table.may_answer.release()
    first.whole()
    table.error = None
    table.may_answer.release()

    assert type(error) is type(first.error)
    assert 9 == lookups.get(3)


def test_where_no_thread_can_be_started_the_others_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are not left waiting, and the next question is asked."""
    table = Table()
    lookups = Lookups[int, int]("test", table.read)
    first = Asking(lookups, 2)
    eventually(lambda: [[2]] == table.asked)
    other = Asking(lookups, 3)
    eventually(lambda: {3} == lookups._asked.keys())
    monkeypatch.setattr(module, "threading", NoMoreThreads())
    table.may_answer.release(2)
    first.whole()
    other.whole()

    assert isinstance(first.error, RuntimeError)
    assert isinstance(other.error, Unavailable)
    assert 25 == lookups.get(5)


def test_as_many_keys_are_asked_at_once_as_may_be() -> None:
    """The others have their turn with the next read."""
    table = Table()
    lookups = Lookups[int, int]("test", table.read, at_once=2)
    first = Asking(lookups, 1)
    eventually(lambda: [[1]] == table.asked)
    others = [Asking(lookups, key) for key in (2, 3, 4)]
    eventually(lambda: 3 == len(lookups._asked))
    table.may_answer.release(3)

    assert [1, 4, 9, 16] == [one.whole() for one in (first, *others)]
    assert [1, 2, 1] == [len(keys) for keys in table.asked]
