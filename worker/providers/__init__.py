"""Providers: one module per vendor, each with `build(route, faults) -> Provider`."""

from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any, Protocol, cast

from shared.events import Usage
from shared.model_routes import PROVIDERS, Route
from worker.messages import Chunk, ModelRequest
from worker.outcomes import ProviderError
from worker.stop_signal import StopSignal


class Provider(Protocol):
    """Made for one run, closed at its end."""

    def stream(self, request: ModelRequest, stop: StopSignal) -> Iterator[Chunk]:
        """Call the model; the last chunk is a `TurnEnd`.

        Raises:
            ProviderError: with its kind; retries are the caller's.
        """

    def estimate(self, request: ModelRequest, output: str) -> Usage:
        """The usage of a call whose provider did not report it; `source` is `estimated`."""

    def close(self) -> None:
        """Let go of connections."""


def prepare(routes: Iterable[Route]) -> None:
    """Import what these routes need, before there are runs.

    While an SDK is imported, for a third of a second, every run of the process stands still.
    """
    for provider in sorted({route.provider for route in routes}):
        _module(provider)


def load(route: Route, *, faults: bool) -> Provider:
    """The provider of a route; `faults` allows scripts to end the process.

    Raises:
        ProviderError: this worker does not know the provider.
    """
    if route.provider not in PROVIDERS:
        raise ProviderError("invalid_request", f"There is no provider {route.provider!r}.")
    return cast(Provider, _module(route.provider).build(route, faults=faults))


def _module(provider: str) -> Any:
    return import_module(f"worker.providers.{provider}_provider")
