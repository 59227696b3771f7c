"""A service of which one web server falls silent while a worker's heartbeat waits there."""

import threading
import time
from typing import Any

#: A heartbeat waits for a third of it, and a silent one is given up after a sixth more: of a short
#: lease less than a second would be left for a busy machine.
LEASE_SECONDS = 24


class SilentHeartbeats:
    """The second heartbeat gets no response; the others get that of `news`, as late as they ask."""

    def __init__(self, news: dict[str, Any]) -> None:
        self.is_over = threading.Event()
        self.heard: list[float] = []
        self._news = news

    def respond(self, body: dict[str, Any]) -> dict[str, Any]:
        """Respond to a heartbeat."""
        self.heard.append(time.monotonic())
        is_silent = len(self.heard) == 2
        self.is_over.wait(60 if is_silent else body["wait_seconds"])
        return self._news

    @property
    def unheard_seconds(self) -> float:
        """The time between the heartbeats before and after the silent one."""
        return self.heard[2] - self.heard[0]
