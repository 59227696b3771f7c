"""The Celery tasks: an id goes in, nothing comes back."""

import logging
from collections.abc import Callable
from uuid import UUID

from celery import Celery

from arkloop.shared import fault_points
from arkloop.shared.errors import Unavailable
from arkloop.shared.outage_log import reason_of
from arkloop.shared.storage import queue
from arkloop.worker.attempt import execution
from arkloop.worker.mcp import discovery
from arkloop.worker.process.process import WorkerProcess

log = logging.getLogger(__name__)


def register(celery: Celery, process: Callable[[], WorkerProcess]) -> None:
    """Register them. `process` is called inside them, hence after any fork."""

    @celery.task(name=queue.EXECUTE)
    def execute(run_id: str) -> None:
        execution.execute_in_turn(process(), UUID(run_id), by_message=True)
        fault_points.reach("worker.task_done")

    @celery.task(name=queue.DISCOVER)
    def discover(config_id: str) -> None:
        try:
            discovery.discover(process().connections, process().mcp, UUID(config_id))
        except Unavailable as error:
            # The first run that needs the server's tools asks for them.
            log.warning(
                "listing the tools of MCP server %s skipped: %s", config_id, reason_of(error)
            )
