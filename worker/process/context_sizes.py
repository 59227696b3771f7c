"""Context sizes of models that are not configured: asked for, or learned from refusals.

Remembered in Redis for all workers, and in this process for a moment.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import redis

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.keys import CONTEXT_TTL_SECONDS

#: How long this process goes by what it has found, also that nothing was found.
FRESH_SECONDS = 300.0
MAX_REMEMBERED = 10_000

Ask = Callable[[Route], int | None]


class ContextSizes:
    """The sizes that a process knows; its methods are called by many threads."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._fresh: dict[str, tuple[float, int | None]] = {}  # by what was asked for

    def complete(self, route: Route, ask: Ask | None) -> Route:
        """Return the route with the size of its context, as far as it is known.

        `ask` asks its server; it is called where neither route nor Redis has a size (None: that has
        to wait for another run). A server that no request reaches, since the route's key is lost,
        is not asked.
        """
        if route.provider == "scripted" or route.has_lost_key:
            return route
        what = _about(route)
        until, size = self._fresh.get(f"{route.id} {what}", (0.0, None))
        if time.monotonic() > until:
            size = self._stored(route.id, what)
            if size is None and route.context_tokens is None:
                if ask is None:
                    return route
                if (size := ask(route)) is not None:
                    self.learn(route, size)
            self._remember(route, size)
        known = [tokens for tokens in (route.context_tokens, size) if tokens is not None]
        return replace(route, context_tokens=min(known, default=None))

    def learner(self, routes: Iterable[Route]) -> Callable[[Route, int], None]:
        """Return `learn` for a run that knows these routes as `complete` has returned them."""
        configured = {route.id: route for route in routes}
        return lambda route, context_tokens: self.learn(configured[route.id], context_tokens)

    def learn(self, route: Route, context_tokens: int) -> None:
        """Remember that the route, as it is configured, has no larger context than this."""
        self._remember(route, context_tokens)
        key, value = self._key(route.id), f"{_about(route)} {context_tokens}"
        try:
            self._connections.ask_redis(
                lambda server: server.set(key, value, ex=CONTEXT_TTL_SECONDS)
            )
        except redis.RedisError:
            return

    def _stored(self, route_id: str, what: str) -> int | None:
        key = self._key(route_id)
        try:
            stored = self._connections.ask_redis(lambda server: server.get(key))
        except redis.RedisError:
            return None
        # The route may have had another model, another server or another setting then.
        about, _, size = str(stored or "").rpartition(" ")
        return int(size) if about == what and size.isdecimal() else None

    def _remember(self, route: Route, size: int | None) -> None:
        if len(self._fresh) >= MAX_REMEMBERED:
            self._fresh.clear()
        key = f"{route.id} {_about(route)}"
        self._fresh[key] = (time.monotonic() + FRESH_SECONDS, size)

    def _key(self, route_id: str) -> str:
        return self._connections.keys.route_context(route_id)


def _about(route: Route) -> str:
    """Return what a size was found for; a new setting of the route's own makes it outdated."""
    about = f"{route.server} {route.model}"
    return about if route.context_tokens is None else f"{about} {route.context_tokens}"
