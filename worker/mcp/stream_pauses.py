"""Pauses before a session's stream of notifications is opened again, which has ended or failed."""

import asyncio

import anyio
from mcp.client.auth import OAuthClientProvider

#: Between two attempts, whatever pause the server asks for.
REOPEN_SECONDS = 1.0
#: Between attempts that the server refuses, at most: each pause is twice as long as the last one.
MAX_REOPEN_SECONDS = 30.0


class StreamPauses:
    """The pauses of one session. With OAuth a new token ends one that follows a refusal."""

    def __init__(self, oauth: OAuthClientProvider | None) -> None:
        self._oauth = oauth
        self._next_at = 0.0
        self._pause = REOPEN_SECONDS
        self._token: str | None = None  # of the last attempt
        self._is_refused = False
        #: Set before each POST: it may have a new token, and its server may ask in the stream.
        self.has_posted = asyncio.Event()

    async def wait(self) -> None:
        """Wait until the next attempt, which begins then; an expired token is replaced first."""
        while (seconds := self._seconds_left()) != 0:
            self.has_posted.clear()
            with anyio.move_on_after(seconds):
                await self.has_posted.wait()
        self._token, self._is_refused = self._current_token(), False
        self._next_at = anyio.current_time() + REOPEN_SECONDS

    def lengthen(self) -> None:
        """Begin a longer pause than the last one: the server has refused the stream."""
        self._is_refused = True
        self._next_at = anyio.current_time() + self._pause
        self._pause = min(2 * self._pause, MAX_REOPEN_SECONDS)

    def reset(self) -> None:
        """Begin with short pauses again: the server has opened the stream."""
        self._pause = REOPEN_SECONDS

    def _seconds_left(self) -> float | None:
        """Return for how long no attempt is made; None if only a new token ends that."""
        context = None if self._oauth is None else self._oauth.context
        if context is not None and context.current_tokens and not context.is_token_valid():
            return None
        if self._is_refused and self._current_token() != self._token:
            return 0.0
        return max(0.0, self._next_at - anyio.current_time())

    def _current_token(self) -> str | None:
        tokens = None if self._oauth is None else self._oauth.context.current_tokens
        return None if tokens is None else tokens.access_token
