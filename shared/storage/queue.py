"""The queue of tasks for workers: ids go in, nothing comes back.

A message may be lost: see `celery_app`, which this module does not import. A process that only
enqueues starts faster without Celery, and is smaller.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import redis

from arkloop.shared.storage import task_messages
from arkloop.shared.storage.keys import Keys
from arkloop.shared.storage.outage import Outage

EXECUTE = "runs.execute"
DISCOVER = "mcp.discover"


def enqueue(broker: Any, keys: Keys, outage: Outage, task: str, ids: Sequence[UUID]) -> None:
    """Give the workers a task for each id, in one command: these runs are queued, say.

    `broker` is a Redis client.

    Raises:
        redis.exceptions.RedisError: the broker is out of reach, or was a moment ago; a worker will
            find the runs in Postgres.
    """
    if not outage.may_try():
        raise redis.ConnectionError("the broker was unavailable a moment ago")
    messages = [task_messages.message(task, id_) for id_ in ids]
    try:
        broker.lpush(f"{keys.installation}:{task_messages.QUEUE}", *messages)
    except redis.RedisError:
        outage.failed()
        # A server that was demoted keeps its connections, while its address leads to another one.
        broker.connection_pool.disconnect(inuse_connections=False)
        raise
    outage.answered()
