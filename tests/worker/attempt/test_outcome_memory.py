"""The memory of attempts that end without an outcome."""

import contextlib
import errno
import gc
import weakref
from collections.abc import Callable, Iterator

import pytest

from arkloop.shared.errors import Unavailable
from arkloop.worker.attempt.outcome import outcome_of


class Large:
    """An object that only the frame of an attempt refers to."""


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """Leave cycles of references alone."""
    gc.disable()
    yield
    gc.enable()


def abandoned(reason: Callable[[], Exception]) -> weakref.ref[Large]:
    """Abandon an attempt that the reason ends; return its memory."""
    memory: list[weakref.ref[Large]] = []

    def attempt() -> None:
        large = Large()
        memory.append(weakref.ref(large))
        raise reason()

    try:
        attempt()
    except Exception as error:
        with contextlib.suppress(MemoryError, Unavailable):
            outcome_of(error)
    return memory[0]


def wrapped(lack: Exception) -> Exception:
    error = RuntimeError("of a framework")
    error.__cause__ = lack
    return error


@pytest.mark.parametrize(
    "reason",
    [
        MemoryError,
        Unavailable,
        lambda: wrapped(MemoryError()),
        lambda: wrapped(OSError(errno.EMFILE, "none is left")),
    ],
    ids=["memory", "outage", "memory behind another", "file behind another"],
)
def test_an_abandoned_attempt_frees_its_memory(reason: Callable[[], Exception]) -> None:
    """The next run of the process may need it before garbage is collected."""
    assert abandoned(reason)() is None
