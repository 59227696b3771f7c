"""The routes of a run, in the order in which they are tried."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

from shared.catalog.model_routes import Route
from worker.providers import Provider

#: The provider of a route.
Connect = Callable[[Route], Provider]


class RouteChain:
    """The chain of a run's routes, one in use at a time; providers are made when they are needed.

    A route that was left is not tried again in this attempt.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        connect: Connect,
        dropped: Mapping[str, Collection[str]] = MappingProxyType({}),
    ) -> None:
        """Create the chain; `dropped` are the settings that routes refused earlier, by route id."""
        self._routes = list(routes)
        self._connect = connect
        self._provider: Provider | None = None
        self._dropped = {route_id: set(names) for route_id, names in dropped.items()}

    @property
    def route(self) -> Route:
        return self._routes[0]

    @property
    def provider(self) -> Provider:
        """Raises: ProviderError: this worker cannot use the route."""
        if self._provider is None:
            self._provider = self._connect(self.route)
        return self._provider

    @property
    def context_tokens(self) -> int | None:
        """The largest context of the routes that are left; None: one of them is not known."""
        known = [route.context_tokens for route in self._routes if route.context_tokens is not None]
        return max(known) if len(known) == len(self._routes) else None

    @property
    def has_next(self) -> bool:
        return len(self._routes) > 1

    @property
    def dropped_settings(self) -> Collection[str]:
        """The model settings that the route does not support, as far as it is known."""
        return self._dropped.get(self.route.id, set())

    def drop_settings(self, names: Iterable[str]) -> list[str]:
        """Drop settings for the rest of the run; return those that were not dropped before."""
        dropped = self._dropped.setdefault(self.route.id, set())
        new = sorted(set(names) - dropped)
        dropped.update(new)
        return new

    def advance(self) -> Route:
        """Leave the route for the next one, which is returned."""
        self.close()
        del self._routes[0]
        return self.route

    def close(self) -> None:
        """Close connections."""
        if self._provider is not None:
            self._provider.close()
            self._provider = None
