"""The memory that clients hold, counted and bounded."""

from collections.abc import Callable
from uuid import uuid4

import pytest

from arkloop.api.streaming import held_pages
from arkloop.api.streaming.held_pages import HeldPages
from arkloop.api.streaming.stream_pages import Page
from arkloop.api.streaming.watch import Watch
from arkloop.shared.actors import Actor


@pytest.fixture
def watch() -> Callable[[], Watch]:
    reader = Actor(org_id=uuid4(), user_id=uuid4(), role="owner", permissions=frozenset())
    return lambda: Watch(uuid4(), reader)


def page(size: int) -> Page:
    return Page(b"x" * size, 1, 1, False)


def test_a_page_counts_once_until_its_last_holder_has_taken_it(
    watch: Callable[[], Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many clients stand at the same place."""
    monkeypatch.setattr(held_pages, "MAX_HELD_BYTES", 100)
    held, first, second, shared = HeldPages(), watch(), watch(), page(60)
    held.add(first, shared)
    held.add(second, shared)
    assert not held.are_too_many

    held.remove(first)
    held.add(first, page(60))
    assert held.are_too_many
    held.remove(second)
    held.remove(second)
    assert not held.are_too_many


def test_those_who_hold_a_page_for_the_longest_time_are_cut_until_the_rest_fits(
    watch: Callable[[], Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is cut while everything fits, nor for a page that was given just now."""
    monkeypatch.setattr(held_pages, "MAX_HELD_BYTES", 100)
    held, watches = HeldPages(), [watch() for _ in range(3)]
    for one in watches:
        held.add(one, page(45))
    held.cut_stalled()
    assert [False] * 3 == [one.ended for one in watches]

    monkeypatch.setattr(held_pages, "STALLED_SECONDS", 0)
    held.cut_stalled()
    assert [True, False, False] == [one.ended for one in watches]
    assert not held.are_too_many
