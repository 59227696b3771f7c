"""Results of reads that are used again for a moment; of callers at the same time one reads."""

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from arkloop.shared.errors import Unavailable

Name = TypeVar("Name", bound=Hashable)
Value = TypeVar("Value")


@dataclass(slots=True, eq=False)
class _Reading:
    """A read that several callers wait for."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    failure: BaseException | None = None


class RecentReads(Generic[Name, Value]):
    """Values by name, each at most `seconds` old; None is never kept."""

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds = seconds
        self._most = most
        self._kept: dict[Name, tuple[float, Value]] = {}
        self._reading: dict[Name, _Reading] = {}
        self._forgotten = 0

    def get(self, name: Name, read: Callable[[], Value], *, waits: bool = True) -> Value:
        """Return the kept value, or else what `read` returns: to the first caller, if each `waits`.

        Raises:
            Unavailable: `read` has raised it, for this caller or for the one it waited for.
        """
        until, known = self._kept.get(name, (0.0, None))
        if known is not None and time.monotonic() < until:
            return known
        if not waits:
            return self.read(name, read)
        reading = self._reading.setdefault(name, _Reading())
        with reading.lock:
            # Else each of them would wait for a connection in vain, one after the other.
            if reading.failure is not None:
                raise Unavailable() from reading.failure
            try:
                return self.get(name, read, waits=False)
            except Unavailable as error:
                reading.failure = error.__cause__ or error
                raise
            finally:
                self._reading.pop(name, None)

    def read(self, name: Name, read: Callable[[], Value]) -> Value:
        """Return what `read` returns, and keep it from when the read began."""
        began, forgotten = time.monotonic(), self._forgotten
        value = read()
        if value is None:
            self._kept.pop(name, None)
        elif forgotten == self._forgotten:  # else what was changed meanwhile may not be in it
            if len(self._kept) >= self._most:
                self._kept.clear()
            self._kept[name] = (began + self._seconds, value)
        return value

    def forget(self, *names: Name) -> None:
        """Read these anew, all without a name: they were changed through this process."""
        self._forgotten += 1
        for name in names or list(self._kept):
            self._kept.pop(name, None)
