"""The progress that the calls of a turn report: of each the newest, a few times per second."""

import math
import threading
import time

from arkloop.shared.events.types import ToolProgress
from arkloop.worker.contract.context import RunContext

#: Between two events of one call.
INTERVAL_SECONDS = 0.5
#: Of what a tool says of its progress.
MAX_MESSAGE_CHARACTERS = 500
#: A number below this is written as an integer if it is one.
MAX_WHOLE = 2**53


class TurnProgress:
    """Calls report here, each in its own thread; the run's thread writes the events.

    So no event of a call can follow its result.
    """

    def __init__(self) -> None:
        self.changed = threading.Event()  # wakes the run's thread
        self._lock = threading.Lock()
        self._latest: dict[str, ToolProgress] = {}
        self._due_at: dict[str, float] = {}
        self._ended: set[str] = set()

    def report(
        self,
        tool_call_id: str,
        progress: float,
        total: float | None = None,
        message: str | None = None,
    ) -> None:
        """Take over what a call reports; what is not a finite number is ignored."""
        if not all(map(math.isfinite, (progress, total or 0.0))):
            return
        text = message[:MAX_MESSAGE_CHARACTERS] if message else None
        whole = None if total is None else _short(total)
        with self._lock:
            if tool_call_id in self._ended:
                return
            self._latest[tool_call_id] = ToolProgress(tool_call_id, _short(progress), whole, text)
        self.changed.set()

    def write(self, context: RunContext) -> None:
        """Write the events that are due."""
        now = time.monotonic()
        with self._lock:
            due = [key for key in self._latest if self._due_at.get(key, now) <= now]
            events = [self._latest.pop(key) for key in due]
            self._due_at.update(dict.fromkeys(due, now + INTERVAL_SECONDS))
        if events:
            context.emit(*events)

    def seconds_left(self) -> float | None:
        """Return the time until the next event is due; None: there is none."""
        with self._lock:
            due_at = [self._due_at.get(key, 0.0) for key in self._latest]
        return max(0.0, min(due_at) - time.monotonic()) if due_at else None

    def end(self, context: RunContext, tool_call_id: str) -> None:
        """Write what the call has reported last: its result comes next."""
        with self._lock:
            self._ended.add(tool_call_id)
            last = self._latest.pop(tool_call_id, None)
        if last is not None:
            context.emit(last)


def _short(number: float) -> float:
    return int(number) if abs(number) < MAX_WHOLE and float(number).is_integer() else number
