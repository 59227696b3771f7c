"""The threads of a hub."""

import logging
import threading

import pytest

from arkloop.api.streaming import hub_threads
from arkloop.shared.errors import Unavailable
from arkloop.shared.storage import signals


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
        hub_threads.start("hub_", [look], closed.is_set)
        try:
            assert repeated.wait(5)
        finally:
            closed.set()

    assert ["hub_look", "hub_look"] == calls[:2]
    # Threads of other tests may log at the same time.
    assert any("hub_look" in record.getMessage() for record in caplog.records)
