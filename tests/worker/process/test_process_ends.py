"""The end of a process, whose runs others resume."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from arkloop.shared.catalog import model_routes
from arkloop.shared.config import Settings
from arkloop.worker.mcp import Cancelled
from arkloop.worker.process.process import WorkerProcess
from tests.worker.mcp.rotating_mcp_server import rotating
from tests.worker.mcp.test_oauth_refreshes import done


@pytest.mark.processes
def test_tokens_are_stored_before_the_process_is_closed(settings: Settings) -> None:
    """The attempts of webhooks may take until then, and what runs after that is killed."""
    refreshing, answered = threading.Event(), threading.Event()

    def refresh() -> None:
        refreshing.set()
        answered.wait(60)

    there = replace(settings, allowed_networks=("127.0.0.0/8",))
    process = WorkerProcess(there, model_routes.load(there))
    try:
        with rotating(done, 3600) as person, ThreadPoolExecutor(1) as thread:
            assert person.grant is not None
            person.grant = {**person.grant, "expires_at": 1.0}
            person.on_refresh = refresh
            asked = thread.submit(process.mcp.tools, person.server, access=person)
            assert refreshing.wait(60)
            process.drain()
            try:
                with pytest.raises(TimeoutError):
                    asked.result(1.0)
            finally:
                answered.set()
            with pytest.raises(Cancelled):
                asked.result(60)
            assert person.has_newest
    finally:
        process.close()
