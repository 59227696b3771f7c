"""The threads of a hub: each repeats one task until the hub is closed."""

import logging
import threading
import time
from collections.abc import Callable, Iterable

import redis

from arkloop.shared.errors import Unavailable
from arkloop.shared.outage_log import reason_of
from arkloop.shared.storage import signals

log = logging.getLogger(__name__)


def start(hub: str, tasks: Iterable[Callable[[], None]], is_closed: Callable[[], bool]) -> None:
    """Start a thread for each task, which waits by itself where it has nothing to do.

    A task that fails is logged with the name of the hub, and repeated after a pause.
    """
    for task in tasks:
        name = f"{hub}{task.__name__}"
        threading.Thread(
            target=_repeat, args=(name, task, is_closed), name=name, daemon=True
        ).start()


def _repeat(name: str, task: Callable[[], None], is_closed: Callable[[], bool]) -> None:
    while not is_closed():
        try:
            task()
        except (redis.RedisError, Unavailable, OSError) as error:
            if not is_closed():
                log.warning("%s: %s", name, reason_of(error))
            time.sleep(signals.RECONNECT_SECONDS)
        except Exception:
            log.exception("%s failed", name)
            time.sleep(signals.RECONNECT_SECONDS)
