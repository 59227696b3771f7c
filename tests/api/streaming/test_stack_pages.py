"""The memory of the Python stacks of greenlets that wait."""

from collections.abc import Callable

import gevent
import psutil
from gevent.event import Event

from arkloop.api.streaming.stack_pages import gives_back_its_stack

COUNT, DEPTH = 500, 100


def deep(left: int = DEPTH) -> int:
    return deep(left - 1) if left else 0


def memory_of_each(view: Callable[[], int]) -> float:
    """Return the bytes of a greenlet that waits after the view has returned."""
    end = Event()

    def request() -> None:
        view()
        end.wait()

    process = psutil.Process()
    before = process.memory_full_info().uss
    greenlets = [gevent.spawn(request) for _ in range(COUNT)]
    gevent.sleep(0)
    grown: int = process.memory_full_info().uss - before
    end.set()
    gevent.joinall(greenlets)
    return grown / COUNT


def test_a_stream_does_not_keep_the_stack_of_its_start() -> None:
    """A greenlet that waits keeps the pages of the deep calls before it, or else only one."""
    memory_of_each(deep)  # what the first greenlets of a process need

    kept, given_back = memory_of_each(deep), memory_of_each(gives_back_its_stack(deep))

    assert 0 < given_back < kept / 2


def test_a_view_is_called_as_before() -> None:
    """Arguments, results and the name of the view stay what they are."""

    @gives_back_its_stack
    def view(first: str, *, second: str) -> str:
        """Return both."""
        return first + second

    assert ("ab", "view", "Return both.") == (view("a", second="b"), view.__name__, view.__doc__)
