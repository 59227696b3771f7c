"""Providers: one module per vendor, each with `build(route, faults) -> Provider`."""

from collections.abc import Iterator
from importlib import import_module
from typing import Protocol, cast

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


def load(route: Route, *, faults: bool) -> Provider:
    """The provider of a route; `faults` allows scripts to end the process.

    Raises:
        ProviderError: this worker does not know the provider.
    """
    if route.provider not in PROVIDERS:
        raise ProviderError("invalid_request", f"There is no provider {route.provider!r}.")
    module = import_module(f"worker.providers.{route.provider}_provider")
    return cast(Provider, module.build(route, faults=faults))
