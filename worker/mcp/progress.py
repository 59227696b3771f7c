"""The progress that a server reports of a call: it extends the call's time, and is passed on."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

#: Of what a server says of its progress.
MAX_MESSAGE_CHARACTERS = 500
#: What a server reports in between is replaced by what it reports last.
INTERVAL_SECONDS = 0.25


def reduce(params: dict[str, Any] | None) -> None:
    """Leave of a progress notification what is used; nothing if it is not a finite number."""
    if not isinstance(params, dict):
        return
    if (progress := _number(params.get("progress"))) is None:
        params.clear()
        return
    params["progress"] = progress
    if (total := _number(params.pop("total", None))) is not None:
        params["total"] = total
    message = params.pop("message", None)
    if isinstance(message, str) and message:
        params["message"] = message[:MAX_MESSAGE_CHARACTERS]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


class CallProgress:
    """The progress of one call, as the sidecar hears it.

    Each notification gives the call another `seconds`, up to `max_seconds` from its beginning.
    """

    def __init__(
        self, seconds: float, max_seconds: float, send: Callable[[Mapping[str, Any]], None]
    ) -> None:
        """Call `send` with the newest progress, a few times per second."""
        self.seconds, self.max_seconds = seconds, max_seconds
        self.ends_at = time.monotonic() + max_seconds
        self._send = send
        self._sent_at = float("-inf")
        self._timer: asyncio.TimerHandle | None = None
        self._latest: dict[str, Any] = {}
        self._timeout: asyncio.Timeout | None = None
        self._paused_at: float | None = None
        self._given_up: str | None = None

    def extends(self, timeout: asyncio.Timeout) -> None:
        """Let progress extend this time limit from now on."""
        self._timeout = timeout

    async def report(self, progress: float, total: float | None, message: str | None) -> None:
        """Take over a notification."""
        now = time.monotonic()
        if self._paused_at is None:
            self._extend(now)
        self._latest = {"progress": progress, "total": total, "message": message}
        if self._timer is None:
            wait = max(0.0, self._sent_at + INTERVAL_SECONDS - now)
            self._timer = asyncio.get_running_loop().call_later(wait, self._pass_on)

    def pause(self) -> None:
        """Stop the clock: a person is asked."""
        self._paused_at = time.monotonic()
        self._reschedule(None)

    def resume(self) -> None:
        """Let the clock run again, from `seconds` on."""
        now = time.monotonic()
        if self._paused_at is not None:
            self.ends_at += now - self._paused_at
        self._paused_at = None
        self._extend(now)

    def give_up(self, why: str) -> None:
        """Let the time of the call end now; the model reads `why`."""
        self._reschedule(0.0)
        self._given_up = why

    def timeout_message(self) -> str:
        """Return, for the model, which time limit the call has reached, or why it was given up."""
        if self._given_up is not None:
            return self._given_up
        if not self._latest:
            return f"The server did not respond within {self.seconds:g} s."
        if time.monotonic() < self.ends_at:
            return f"The server reported no progress for {self.seconds:g} s, and no result."
        return f"The call did not end within {self.max_seconds:g} s."

    def close(self) -> None:
        """Pass on what was reported last: the result comes next."""
        if self._timer is not None:
            self._timer.cancel()
            self._pass_on()

    def _extend(self, now: float) -> None:
        self._reschedule(max(0.0, min(now + self.seconds, self.ends_at) - now))

    def _reschedule(self, seconds: float | None) -> None:
        if self._timeout is None or self._timeout.expired() or self._given_up is not None:
            return
        when = None if seconds is None else asyncio.get_running_loop().time() + seconds
        self._timeout.reschedule(when)

    def _pass_on(self) -> None:
        self._timer = None
        self._sent_at = time.monotonic()
        self._send(self._latest)
