"""The one Celery task: a run id goes in, nothing comes back."""

from collections.abc import Callable
from uuid import UUID

from celery import Celery

from shared import fault_points, queue
from worker import execution
from worker.process import WorkerProcess


def register(celery: Celery, process: Callable[[], WorkerProcess]) -> None:
    """Register the task. `process` is called inside it, hence after any fork."""

    @celery.task(name=queue.EXECUTE)
    def execute(run_id: str) -> None:
        execution.execute(process(), UUID(run_id), by_message=True)
        fault_points.reach("worker.task_done")
