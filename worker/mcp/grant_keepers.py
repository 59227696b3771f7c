"""The requests of the worker that wait in a session with OAuth, and store its new grants.

Refresh tokens and codes may be for one use: none is used while no request waits, and a request does
not end, however it does, during a token request that is in progress.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from arkloop.worker.mcp import McpFailed
from arkloop.worker.mcp.failed_requests import NOT_AUTHORIZED
from arkloop.worker.mcp.grants import SETTLE_SECONDS
from arkloop.worker.mcp.open_calls import OpenCall

T = TypeVar("T")


class GrantKeepers:
    """The open calls of one session, each with the function that keeps the present grant."""

    def __init__(self) -> None:
        self._keepers: dict[OpenCall, Callable[[], None]] = {}
        self._ending: set[OpenCall] = set()  # they keep what is on its way, and nothing that begins
        self._is_settled = asyncio.Event()
        self._is_settled.set()

    @property
    def any_waits(self) -> bool:
        """True if a request waits; none does for a call that is held for a person's reply."""
        return any(not call.is_held for call in self._keepers.keys() - self._ending)

    def begin_token_request(self) -> None:
        """Note that a token request begins. Raises: McpFailed: no request waits any more."""
        if not self.any_waits:
            raise McpFailed(NOT_AUTHORIZED)
        self._is_settled.clear()

    def end_token_request(self) -> None:
        self._is_settled.set()

    def keep(self) -> None:
        """Keep a new grant at once: others that use the one before it would fail."""
        for keep in self._keepers.values():
            keep()

    async def during(
        self, call: OpenCall, keep: Callable[[], None], work: Coroutine[Any, Any, T]
    ) -> T:
        """Do the work of a request, which waits meanwhile."""
        self._keepers[call] = keep
        doing = asyncio.create_task(work)
        try:
            return await asyncio.shield(doing)
        finally:
            self._ending.add(call)
            settling = asyncio.create_task(self._settle())
            while not settling.done():
                # It may be cancelled, even twice: with its run, and then as its time is over.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({settling})
            del self._keepers[call]
            self._ending.discard(call)
            keep()
            doing.cancel()
            await asyncio.wait({doing})

    async def hold(self, call: OpenCall) -> None:
        """Let a call wait for a person, after the tokens that an earlier reply in it needs."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                await call.has_delivered.wait()
                call.is_held = True
                await self._is_settled.wait()
        call.is_held = True

    async def _settle(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_settled.wait(), SETTLE_SECONDS)
