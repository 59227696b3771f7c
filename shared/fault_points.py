"""Named places at which a process may be made to die: for tests of what survives it.

Armed only under `ARKLOOP_FAULTS=1`, by `ARKLOOP_FAULT_POINT=<name>:<nth>:<KILL|STOP>`:
the process sends itself SIGKILL, or SIGSTOP, when it reaches that place for the
nth time. Unarmed, a place is one comparison.
"""

import itertools
import os
import signal
from collections.abc import Iterator

from arkloop.shared.config import InvalidSettings, Settings

#: By name, in the order in which a run meets them.
POINTS = {
    "transaction.committed": "after a commit (of a new run, say), before its notifications",
    "worker.popped": "a task has come, its run is not claimed yet",
    "worker.claimed": "after the claim",
    "worker.input_consumed": "after the claim that took a person's answer",
    "worker.before_model": "before the model is called",
    "worker.mid_stream": "after a piece of the model's answer",
    "worker.after_model": "the model's turn is complete, nothing of its end is committed",
    "worker.committed": "events are committed, Redis does not have them yet",
    "worker.tool_begun": "the call stands in the ledger, the tool was not called yet",
    "worker.in_tool": "a tool has had its effect and has not returned",
    "worker.tool_returned": "the tool has returned, its result is not committed",
    "worker.before_park": "all calls but those made elsewhere are done, the run is not parked yet",
    "worker.parked": "the run waits, and no worker holds it",
    "api.results_stored": "results from outside are committed, no worker was notified yet",
    "worker.step_finished": "the results of a step are committed",
    "worker.before_end": "before the commit that ends the run",
    "worker.ended": "after that commit, before Redis has its events",
    "worker.task_done": "after everything",
    "worker.webhook_sent": "a receiver has responded to a webhook, which is not recorded yet",
}


class _Armed:
    def __init__(self, name: str, nth: int, number: signal.Signals) -> None:
        self.name = name
        self._nth = nth
        self._signal = number
        self._reached: Iterator[int] = itertools.count(1)

    def reach(self) -> None:
        if next(self._reached) == self._nth:
            os.kill(os.getpid(), self._signal)


_armed: _Armed | None = None


def arm(settings: Settings) -> None:
    """Arm what the settings name, if anything.

    Raises:
        InvalidSettings: no such place, or faults are not allowed here.
    """
    global _armed
    if settings.fault_point is None:
        _armed = None
        return
    name, _, rest = settings.fault_point.partition(":")
    nth, _, how = rest.partition(":")
    if not settings.faults:
        raise InvalidSettings("ARKLOOP_FAULT_POINT: works only with ARKLOOP_FAULTS=1")
    if name not in POINTS or not nth.isdecimal() or how not in ("KILL", "STOP"):
        raise InvalidSettings(
            f"ARKLOOP_FAULT_POINT: must be <name>:<nth>:<KILL|STOP>, is {settings.fault_point!r};"
            f" the names are {', '.join(POINTS)}"
        )
    _armed = _Armed(name, int(nth), signal.Signals[f"SIG{how}"])


def reach(name: str) -> None:
    """Report that this process has reached the point of that name."""
    if _armed is not None and _armed.name == name:
        _armed.reach()
