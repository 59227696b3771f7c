"""The numbers of a metric while a test looks at it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from arkloop.shared.metrics import Metric


@contextmanager
def counted(metric: Metric) -> Iterator[dict[tuple[str, ...], list[float]]]:
    """Yield the cells of each series that this process counts during the block, by its labels."""
    seen: dict[tuple[str, ...], list[float]] = {}

    def room(_name: str, labels: tuple[str, ...], count: int) -> tuple[list[float], int]:
        seen[labels] = [0.0] * count
        return seen[labels], 0

    metric.enable(room, threading.Lock())
    try:
        yield seen
    finally:
        metric.disable()
