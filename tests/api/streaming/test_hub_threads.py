"""The threads of a hub."""

import logging
import threading
from collections.abc import Callable

import pytest

from arkloop.api.streaming import hub_threads
from arkloop.shared.errors import Unavailable
from arkloop.shared.storage import signals
from tests.waiting import eventually


def listen(closed: threading.Event) -> None:
    """Listen until the hub is closed."""
    closed.wait(5)


@pytest.mark.parametrize("error", [Unavailable(), OSError("gone"), ValueError("wrong")])
def test_a_task_that_fails_is_repeated(
    error: Exception, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any error of a task is logged with the name of its thread, and its thread stays."""
    monkeypatch.setattr(signals, "RECONNECT_SECONDS", 0.01)
    repeated, closed = threading.Event(), threading.Event()
    calls = []

    def look() -> None:
        calls.append(threading.current_thread().name)
        if len(calls) == 1:
            raise error
        repeated.set()
        closed.wait(5)

    with caplog.at_level(logging.WARNING):
        hub_threads.start("hub_", lambda _works: listen(closed), [look], closed.is_set)
        try:
            assert repeated.wait(60)
        finally:
            closed.set()

    assert ["hub_look", "hub_look"] == calls[:2]
    # Threads of other tests may log at the same time.
    assert any("hub_look" in record.getMessage() for record in caplog.records)


def test_an_outage_is_not_logged_by_each_attempt(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first failure has a line, and the first success, which the listener itself reports."""
    monkeypatch.setattr(signals, "RECONNECT_SECONDS", 0.01)
    closed = threading.Event()
    attempts = []

    def hear(works: Callable[[], None]) -> None:
        attempts.append(1)
        if len(attempts) < 5:
            raise Unavailable() from OSError("Redis is gone")
        works()
        closed.wait(5)

    def lines() -> list[str]:
        # Threads of other tests may log at the same time.
        found = [record.getMessage() for record in caplog.records]
        return [line for line in found if line.startswith("hub_hear")]

    with caplog.at_level(logging.INFO):
        hub_threads.start("hub_", hear, [], closed.is_set)
        try:
            eventually(lambda: len(lines()) > 1)
        finally:
            closed.set()

    first, over = lines()
    assert "hub_hear: Redis is gone" == first
    assert over.startswith("hub_hear works again after")
    assert "failures: 4" in over
