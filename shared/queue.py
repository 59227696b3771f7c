"""The Celery app and its one task by name: run ids go in, nothing comes back.

The message is a hint: the row in `runs` is the truth, and the sweep sends
again what nobody claimed. So: early acks, no results, no retries of Celery's.
"""

from uuid import UUID

from celery import Celery

from shared.config import Settings

EXECUTE = "runs.execute"


def make_celery(settings: Settings, *, concurrency: int = 10) -> Celery:
    """The app for producers and for workers; `concurrency` sizes the broker's pool."""
    celery = Celery("arkloop", broker=settings.broker_url, set_as_current=False)
    celery.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # kombu's default pool of 10 loses acks at 20 greenlets, and without a
        # socket time-out a publish hangs for ever on a frozen Redis.
        broker_pool_limit=max(10, concurrency // 10),
        broker_transport_options={
            "max_connections": max(20, 2 * concurrency),
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
        },
        timezone="UTC",
        enable_utc=True,
    )
    return celery


def enqueue(celery: Celery, run_id: UUID) -> None:
    """Tell the workers that a run is queued.

    Raises:
        kombu.exceptions.OperationalError: the broker is out of reach; the sweep
            will send the run again.
    """
    celery.send_task(EXECUTE, args=[str(run_id)], ignore_result=True, retry=False)


def length(celery: Celery) -> int:
    """How many messages wait in the broker.

    Raises:
        kombu.exceptions.OperationalError: the broker is out of reach.
    """
    with celery.pool.acquire(block=True) as connection:
        return int(connection.default_channel.client.llen(celery.conf.task_default_queue))
