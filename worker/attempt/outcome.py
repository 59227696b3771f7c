"""The outcome of an attempt, as a value that `Recorder` writes."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from arkloop.shared import machine
from arkloop.shared.errors import Unavailable
from arkloop.shared.events.types import RunError
from arkloop.worker.agent.loop import Answer
from arkloop.worker.contract.outcomes import (
    CancelRequested,
    DeadlineExceeded,
    RunFailure,
    ShuttingDown,
    WaitForInput,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Completed:
    """The model has given its final answer."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Waiting:
    """A person must answer before the run continues."""

    request: WaitForInput


@dataclass(frozen=True, slots=True)
class HandedOff:
    """The hand-over to another worker, since this process is shutting down."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The run fails with `error`; `cause` is for the log alone."""

    error: RunError
    cause: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The cancellation by the user `by_user_id`; if None, the run's row has user and cause."""

    by_user_id: UUID | None = None


Outcome = Completed | Waiting | HandedOff | Failed | Cancelled

#: What log lines and spans call them.
NAMES: Mapping[type[Outcome], str] = {
    Completed: "completed",
    Waiting: "waiting",
    HandedOff: "handed_off",
    Failed: "failed",
    Cancelled: "cancelled",
}
#: An attempt without an outcome: another worker has the run, or will have it.
ABANDONED = "abandoned"


def outcome_of(reason: BaseException) -> Outcome:
    """Return the outcome of an attempt that `reason`, a `StopRun` or an error, has ended.

    Raises:
        Unavailable, MemoryError: what this process lacks is no outcome; the run is abandoned, and
            recovered later.
    """
    match reason:
        case Unavailable() | MemoryError():
            try:
                raise reason
            finally:
                del reason  # else it keeps the attempt's memory until garbage is collected
        case WaitForInput():
            return Waiting(reason)
        case ShuttingDown():
            return HandedOff()
        case CancelRequested():
            return Cancelled(reason.by_user_id)
        case DeadlineExceeded():
            message = f"The run took longer than {reason.timeout_seconds:g} s."
            return Failed(RunError("run.timeout", message, True))
        case RunFailure():
            return Failed(reason.as_error(), reason)
    machine.raise_shortage(reason)
    log.error("internal error while executing run", exc_info=reason)
    message = "Internal error while executing the run; see the server logs."
    return Failed(RunError("worker.crashed", message, True), reason)
