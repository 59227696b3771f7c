"""The parts of a run that protocols show as runs of their own: one up to each wait for a client."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from arkloop.shared.events import event_log
from arkloop.shared.events.stored_events import StoredEvent

Data = Mapping[str, Any]


class RunPart(NamedTuple):
    """The part of a run that follows its `first`-th wait.

    `asked` is the data of the request that it ends with, which is the run's `waits`-th; empty where
    it ends, so far, without one.
    """

    first: int
    waits: int
    asked: Data


def find_part(
    waits: Iterable[StoredEvent],
    last_seq: int,
    asks_client: Callable[[Data], bool],
    is_meant: Callable[[int, Data], bool] = lambda *_: False,
) -> RunPart:
    """Return the first part with a request that is meant, by its event's number and data; else the
    last part, which ends with a request that is still open.

    `waits` and `last_seq` are what `event_log.waits` returns: the other events of a run, of which
    there may be very many, are not read, let alone for each wait.
    """
    first = 0
    for number, event in enumerate(waits, 1):
        data = event_log.data_of(event.payload)
        if not asks_client(data):
            continue
        if event.seq == last_seq or is_meant(event.seq, data):
            return RunPart(first, number, data)
        first = number
    return RunPart(first, first, {})
