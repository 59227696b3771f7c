"""The routes of a run, in the order in which they are tried."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from arkloop.shared.catalog import model_settings
from arkloop.shared.catalog.model_routes import Route
from arkloop.worker.contract.attachments import Attachment
from arkloop.worker.contract.messages import AssistantMessage, ModelRequest
from arkloop.worker.providers import Provider

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
        learned: Callable[[Route, int], None] = lambda _route, _tokens: None,
    ) -> None:
        """Create the chain; `dropped` are the settings that routes refused earlier, by route id.

        Call `learned` with the size of a context that is to be remembered beyond the run.
        """
        self._routes = list(routes)
        self._connect = connect
        self._provider: Provider | None = None
        self._learned = learned
        self._dropped = {route_id: set(names) for route_id, names in dropped.items()}
        self._refused_attachments: dict[str, set[Attachment]] = {}
        self._most_output: dict[str, int] = {}
        self._leaves_others = False

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
    def windows(self) -> list[int]:
        """The contexts of the routes that are left; 0: not known."""
        return [route.context_tokens or 0 for route in self._routes]

    @property
    def has_next(self) -> bool:
        return len(self._routes) > 1

    @property
    def is_replaceable(self) -> bool:
        """True if the run has a route after this one, also where this chain leaves it out."""
        return self.has_next or self._leaves_others

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

    def supported(self, request: ModelRequest) -> ModelRequest:
        """Return the request without the settings that the route does not support.

        Where the server does not support `tool_choice: none`, a step has only the tools that the
        conversation calls, which some vendors require.
        """
        settings = model_settings.without(request.settings, self.dropped_settings)
        choices = (request.settings.get("tool_choice"), settings.get("tool_choice"))
        if choices != ("none", None) or request.answer_only:
            return replace(request, settings=settings)
        turns = (message for message in request.messages if isinstance(message, AssistantMessage))
        called = {call.name for turn in turns for call in turn.tool_calls}
        tools = [tool for tool in request.tools if tool.name in called]
        return replace(request, settings=settings, tools=tools)

    @property
    def refused_attachments(self) -> set[Attachment]:
        """The attachments that the route's calls leave out for the rest of the attempt."""
        return self._refused_attachments.setdefault(self.route.id, set())

    def lower_output(self, tokens: int) -> None:
        """Take note that the route's model refuses a higher output limit, for the whole attempt."""
        self._most_output[self.route.id] = tokens

    def allowed(self, request: ModelRequest) -> ModelRequest:
        """Return the request with an output limit that the route's model does not refuse."""
        most = self.output_limit(request.max_output_tokens)
        return replace(request, max_output_tokens=most)

    def output_limit(self, limit: int | None) -> int | None:
        """Return the limit, or the most that the route's model allows, if that is lower."""
        most = self._most_output.get(self.route.id)
        return limit if most is None else min(limit or most, most)

    @property
    def has_larger(self) -> bool:
        """True if a later route has a larger context, or one whose size is not known."""
        return any(map(self._is_larger, self._routes[1:]))

    def _is_larger(self, other: Route) -> bool:
        known, size = self.route.context_tokens, other.context_tokens
        return size is None or (known is not None and size > known)

    def learn(self, context_tokens: int, *, is_of_model: bool) -> Route:
        """Take note that requests on the route must be no larger than this; return the route.

        `is_of_model`: the size is that of the model's context, and not of one run's requests.
        """
        known = self.route.context_tokens
        tokens = min(context_tokens, known or context_tokens)
        if is_of_model and tokens != known:
            self._learned(self.route, tokens)
        self._routes[0] = replace(self.route, context_tokens=tokens)
        return self.route

    def alone(self) -> "RouteChain":
        """Return a chain of the route in use without the later ones.

        It shares the provider, and what the route has refused.
        """
        provider = self.provider
        alone = RouteChain(self._routes[:1], lambda _route: provider)
        alone._dropped = self._dropped
        alone._refused_attachments = self._refused_attachments
        alone._most_output = self._most_output
        alone._leaves_others = self.is_replaceable
        return alone

    def advance(self, *, to_larger: bool = False) -> Route:
        """Leave the route for the next one, or the next with a larger context; return it."""
        self.close()
        is_next = [not to_larger or self._is_larger(route) for route in self._routes[1:]]
        del self._routes[: 1 + is_next.index(True)]
        return self.route

    def close(self) -> None:
        """Close connections."""
        if self._provider is not None:
            self._provider.close()
            self._provider = None
