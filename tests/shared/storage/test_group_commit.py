"""The group commit: concurrent items are written together, and each gets its own result."""

import threading
from collections.abc import Sequence

import pytest

from arkloop.shared.errors import Unavailable
from arkloop.shared.storage import group_commit
from arkloop.shared.storage.group_commit import GroupCommit
from tests.waiting import eventually, in_parallel


class Held:
    """A commit that doubles numbers; it waits for `go`, and notes what came together."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.go = threading.Event()

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.groups.append(list(numbers))
        self.go.wait(60)
        return [number * 2 for number in numbers]


def test_one_alone_is_written_at_once() -> None:
    """A lone item is written at once, without waiting for a group."""
    commit = Held()
    commit.go.set()

    assert 14 == GroupCommit(commit)(7)
    assert [[7]] == commit.groups


def test_whoever_comes_during_a_commit_goes_with_the_next_one() -> None:
    """Two commits for twenty callers, and each has the answer to its own item."""
    commit = Held()
    double = GroupCommit(commit)
    first_answer: list[int] = []
    answers: list[int] = []
    first = threading.Thread(target=lambda: first_answer.append(double(0)))
    first.start()
    eventually(lambda: commit.groups == [[0]])
    others = threading.Thread(target=lambda: answers.extend(in_parallel(20, lambda i: double(i))))
    others.start()
    eventually(lambda: len(double._pending) == 20)

    commit.go.set()
    first.join(60)
    others.join(60)

    # Apart: the first caller's thread may be the last one to continue.
    assert ([0], [2 * i for i in range(20)]) == (first_answer, answers)
    assert [1, 20] == [len(group) for group in commit.groups]


def test_nobody_waits_for_a_large_item() -> None:
    """It is written by its own caller, outside of the turns of the others."""
    large = group_commit.LARGE_SIZE + 1
    is_written = threading.Event()

    def commit(numbers: Sequence[int]) -> list[int]:
        if large in numbers:
            assert [large] == numbers
            is_written.wait(60)
        return [number * 2 for number in numbers]

    double = GroupCommit(commit, size=lambda number: number)
    answers: list[int] = []
    writing = threading.Thread(target=lambda: answers.append(double(large)))
    writing.start()

    assert [2 * i for i in range(20)] == in_parallel(20, lambda i: double(i))
    assert [] == answers

    is_written.set()
    writing.join(60)
    assert [2 * large] == answers


def test_a_group_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group is limited by number and size; one item of any size is written alone."""
    monkeypatch.setattr(group_commit, "MAX_SIZE", 10)
    commit = Held()
    write = GroupCommit(commit, size=lambda number: number)
    first = threading.Thread(target=lambda: write(1))
    first.start()
    eventually(lambda: commit.groups == [[1]])
    sizes = [6, 3, 2, 99, 1]
    others = []
    for number, size in enumerate(sizes, 1):
        others.append(threading.Thread(target=write, args=[size]))
        others[-1].start()
        eventually(lambda number=number: len(write._pending) == number)

    commit.go.set()
    for thread in (first, *others):
        thread.join(60)

    assert [[1], [6, 3], [2], [99], [1]] == commit.groups


def test_one_that_cannot_be_written_does_not_take_the_others_along() -> None:
    """Its caller gets its error; the rest is written one by one."""
    entered, released = threading.Event(), threading.Event()

    def commit(numbers: Sequence[int]) -> list[int]:
        if list(numbers) == [0]:
            entered.set()
            released.wait(60)
        if 13 in numbers:
            raise ValueError("thirteen")
        return list(numbers)

    write = GroupCommit(commit)
    first = threading.Thread(target=lambda: write(0))
    first.start()
    assert entered.wait(60)
    outcomes: list[object] = []

    def one(number: int) -> object:
        try:
            return write(number + 10)
        except ValueError as error:
            return error

    others = threading.Thread(target=lambda: outcomes.extend(in_parallel(5, one)))
    others.start()
    eventually(lambda: len(write._pending) == 5)
    released.set()
    first.join(60)
    others.join(60)

    assert [10, 11, 12, 14] == [outcome for outcome in outcomes if isinstance(outcome, int)]
    assert "thirteen" == str(outcomes[3])


def test_an_outage_is_everybodys() -> None:
    """It is not tried again for each of them: every caller decides for itself."""
    tries: list[int] = []
    released = threading.Event()

    def commit(numbers: Sequence[int]) -> list[int]:
        tries.append(len(numbers))
        if len(tries) == 1:
            released.wait(60)
            return list(numbers)
        raise Unavailable()

    write = GroupCommit(commit)
    first = threading.Thread(target=lambda: write(0))
    first.start()
    eventually(lambda: tries == [1])
    failures: list[bool] = []

    def one(number: int) -> bool:
        with pytest.raises(Unavailable):
            write(number)
        return True

    others = threading.Thread(target=lambda: failures.extend(in_parallel(4, one)))
    others.start()
    eventually(lambda: len(write._pending) == 4)
    released.set()
    first.join(60)
    others.join(60)

    assert [True] * 4 == failures
    assert [1, 4] == tries
