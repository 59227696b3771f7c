"""Native threads for calls that would stop every greenlet of a process."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

from gevent import monkey
from gevent.threadpool import ThreadPool

T = TypeVar("T")


class NativeThreads:
    """A pool of at most `count` native threads, started at the first call that needs one."""

    def __init__(self, count: int) -> None:
        self._count = count

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call the function in a native thread where threads are greenlets, else here."""
        if monkey.is_module_patched("threading"):
            result: T = self._pool.apply(function, args)
            return result
        return function(*args)

    @cached_property
    def _pool(self) -> ThreadPool:
        return ThreadPool(self._count)
