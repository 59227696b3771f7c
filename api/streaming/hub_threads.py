"""The threads of a hub: each repeats one task until the hub is closed."""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial

import redis

from arkloop.shared.errors import Unavailable
from arkloop.shared.outage_log import OutageLog, reason_of
from arkloop.shared.storage import signals

log = logging.getLogger(__name__)


def start(
    hub: str,
    listen: Callable[[Callable[[], None]], None],
    tasks: Iterable[Callable[[], None]],
    is_closed: Callable[[], bool],
) -> None:
    """Start a thread for each task, which waits by itself where it has nothing to do.

    A task that fails is logged with the name of the hub, and repeated after a pause. `listen` is
    one that does not return while it works: it calls what it is given when it begins to.
    """
    for task in (listen, *tasks):
        name = f"{hub}{task.__name__}"
        outage = OutageLog(log, name)
        step = partial(listen, outage.worked) if task is listen else task
        threading.Thread(
            target=_repeat, args=(name, step, is_closed, outage), name=name, daemon=True
        ).start()


def _repeat(
    name: str, task: Callable[[], None], is_closed: Callable[[], bool], outage: OutageLog
) -> None:
    while not is_closed():
        try:
            task()
            outage.worked()
        except (redis.RedisError, Unavailable, OSError) as error:
            if not is_closed():
                outage.failed("%s: %s", name, reason_of(error))
            time.sleep(signals.RECONNECT_SECONDS)
        except Exception:
            log.exception("%s failed", name)
            time.sleep(signals.RECONNECT_SECONDS)
