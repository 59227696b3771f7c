"""The metrics of a process: what is counted, and where.

Until `enable` is called, counting does nothing. Labels have few values each, whatever orgs do: no
ids of orgs, users or runs, no names that they choose.
"""

from bisect import bisect_left
from collections.abc import Callable, MutableSequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

#: Where the numbers of a series are: in this sequence, from this index on.
Cells = tuple["MutableSequence[float] | memoryview[Any]", int]

#: Makes room for a series of a metric: its name, the values of its labels, its number of cells.
#: There may be a number in them already, which is continued.
Room = Callable[[str, tuple[str, ...], int], Cells]

#: Seconds, from a commit to a model's slow turn.
_SHORT = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_LONG = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)

#: Combinations of labels that a process counts of one metric: those of later ones are `other`, but
#: for the last of several labels, whose values are the service's own.
MAX_SERIES = 500


@dataclass(slots=True, eq=False)
class Metric:
    """A counter, a gauge that is moved up and down, or a histogram; with its labels' names.

    A series of a histogram has cells for the sum, for each bucket, and for what is beyond; of
    others it has one.
    """

    kind: Literal["Counter", "Gauge", "Histogram"]
    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    _room: Room | None = None
    _lock: AbstractContextManager[Any] | None = None
    _add: dict[tuple[str, ...], Callable[[float], None]] = field(default_factory=dict)

    def add(self, amount: float, *labels: str) -> None:
        """Count the amount, or observe it, under these values of the labels."""
        if self._room is not None:
            (self._add.get(labels) or self._child(labels))(amount)

    @property
    def cells(self) -> int:
        """The number of cells of a series."""
        return 2 + len(self.buckets) if self.kind == "Histogram" else 1

    def _child(self, labels: tuple[str, ...]) -> Callable[[float], None]:
        if len(self._add) >= MAX_SERIES:
            # Clients can use up all combinations of routes, and must not hide a 500 by it.
            labels = ("other",) * max(1, len(labels) - 1) + labels[1:][-1:]
        assert self._room is not None and self._lock is not None
        with self._lock:
            if labels not in self._add:
                cells, first = self._room(self.name, labels, self.cells)
                if self.kind == "Gauge":
                    cells[first] = 0.0  # it was of a process that is gone
                self._add[labels] = (
                    _observer(cells, first, self.buckets, self._lock)
                    if self.kind == "Histogram"
                    else _adder(cells, first, self._lock)
                )
            return self._add[labels]

    def enable(self, room: Room, lock: AbstractContextManager[Any]) -> None:
        """Count from now on, in cells of that room; each change holds the lock."""
        self._add.clear()
        self._room, self._lock = room, lock
        if not self.labels:
            self._child(())  # it is known to be zero

    def disable(self) -> None:
        """Count no more."""
        self._room = None


def _adder(cells: Any, at: int, lock: AbstractContextManager[Any]) -> Callable[[float], None]:
    def add(amount: float) -> None:
        with lock:
            cells[at] += amount

    return add


def _observer(
    cells: Any, first: int, buckets: tuple[float, ...], lock: AbstractContextManager[Any]
) -> Callable[[float], None]:
    def observe(amount: float) -> None:
        at = first + 1 + bisect_left(buckets, amount)
        with lock:
            cells[first] += amount
            cells[at] += 1

    return observe


HTTP_REQUESTS = Metric(
    *("Counter", "arkloop_http_requests", "Requests, by the template of their route."),
    ("method", "route", "status"),
)
HTTP_SECONDS = Metric(
    *("Histogram", "arkloop_http_request_seconds", "Until a response begins, also of a stream."),
    *(("route",), _SHORT),
)
STREAMS = Metric("Gauge", "arkloop_open_streams", "Streams of runs and threads that are open.")
POOL_IN_USE = Metric("Gauge", "arkloop_database_connections_in_use", "Connections in use.")
POOL_TIMEOUTS = Metric(
    *("Counter", "arkloop_database_connection_timeouts", "Callers for whom none became free.")
)
NOTIFICATIONS_LOST = Metric(
    *("Counter", "arkloop_notifications_lost", "Messages that Redis or the broker did not take."),
    ("kind",),
)
SWEEPS = Metric("Histogram", "arkloop_sweep_seconds", "Sweeps, by their duration.", (), _SHORT)
RUNS_RECOVERED = Metric(
    "Counter", "arkloop_runs_recovered", "Runs that were taken from lost workers of the service."
)
LEASES_LOST = Metric(
    "Counter", "arkloop_leases_lost", "Runs that a worker abandoned: its lease was in doubt."
)
SLOTS_IN_USE = Metric("Gauge", "arkloop_worker_slots_in_use", "Runs that workers execute now.")
RUN_WAIT = Metric(
    *("Histogram", "arkloop_run_wait_seconds", "From the queue to a worker, or the first event."),
    *((), _LONG),
)
RUN_FIRST_TEXT = Metric(
    *("Histogram", "arkloop_run_first_text_seconds", "From a claim to the first piece of text."),
    *((), _LONG),
)
RUNS_ENDED = Metric(
    *("Counter", "arkloop_runs_ended", "Ends of runs, with the code of failures."),
    ("outcome", "code"),
)
EVENT_LAG = Metric(
    *("Histogram", "arkloop_event_commit_seconds", "From the writing of events to their commit."),
    *((), _SHORT),
)
EVENTS = Metric("Counter", "arkloop_events", "Events that workers have committed.")
MODEL_CALLS = Metric(
    *("Counter", "arkloop_model_calls", "Tries of model calls; `outcome` is ok or an error code."),
    ("route", "outcome"),
)
MODEL_SECONDS = Metric(
    *("Histogram", "arkloop_model_call_seconds", "Duration of model calls that succeeded."),
    *(("route",), _LONG),
)
MODEL_TOKENS = Metric(
    "Counter",
    "arkloop_model_tokens",
    "Tokens that models have read and written.",
    ("route", "kind"),
)
MODEL_COST = Metric("Counter", "arkloop_model_cost_usd", "What model calls cost.", ("route",))
TOOL_CALLS = Metric(
    "Counter", "arkloop_tool_calls", "Tool calls; `outcome` is ok or error.", ("outcome",)
)
SPANS_DROPPED = Metric(
    "Counter", "arkloop_spans_dropped", "Spans that no collector has taken; their traces have gaps."
)
WEBHOOK_ATTEMPTS = Metric(
    *("Counter", "arkloop_webhook_attempts", "Attempts; `outcome` is a class of status, or lost."),
    ("outcome",),
)


def all_metrics() -> list[Metric]:
    """Return every metric of this module."""
    return [value for value in globals().values() if isinstance(value, Metric)]
