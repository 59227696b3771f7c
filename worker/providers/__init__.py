"""Providers: a module `<name>_provider.py` per vendor, with `build(route, *, faults, egress)`.

`docs/reference/providers.md` shows a whole one.
"""

import gc
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol, cast

import gevent
from gevent import monkey

from arkloop.shared import plugins
from arkloop.shared.catalog import prices
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.usage import Usage
from arkloop.shared.security.egress import Policy
from arkloop.worker.contract.messages import Chunk, ModelRequest
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers.output_modes import OutputMode

_loaded: dict[str, ModuleType] = {}
_importing = threading.Lock()


class Provider(Protocol):
    """Made for one run, closed at its end.

    `settings` names the model settings that it translates; requests contain no others.
    """

    @property
    def settings(self) -> Collection[str]: ...

    def output_mode(self, schema: Mapping[str, Any], *, has_tools: bool) -> OutputMode:
        """Return how the model is made to give output that fits the schema.

        `has_tools`: it can call tools before.
        """

    def stream(self, request: ModelRequest, stop: StopSignal) -> Iterator[Chunk]:
        """Call the model; the last chunk is a `TurnEnd`.

        Raises:
            ProviderError: with its kind; retries are the caller's.
        """

    def estimate(self, request: ModelRequest, output: str) -> Usage:
        """Estimate the usage of a call whose provider did not report it; `source` is `estimated`.

        Never more than `worst_case` says.
        """

    def worst_case(self, request: ModelRequest) -> Usage:
        """Return the most that one try of this call can use, whatever the model does.

        Raises:
            ValueError: nothing limits the output; the request needs `max_output_tokens`.
        """

    def close(self) -> None:
        """Close connections."""


def prepare(routes: Iterable[Route], *, also: Iterable[str] = ()) -> None:
    """Import what these routes need, and `also` these providers, before there are runs.

    The first run with a provider that is not prepared waits for the import of its SDK, for one to
    three seconds, in which the other runs of the process are slower.
    """
    needed = {route.provider for route in routes} | set(also)
    for provider in sorted(needed):
        _builder(provider)
    if needed - {"scripted"}:
        prices.prepare()  # usage is read by it, also where a server has no price


def load(route: Route, *, faults: bool, egress: Policy | None = None) -> Provider:
    """Load the provider of a route; `faults` allows scripts to end the process.

    `egress` says which addresses the routes of orgs may reach; without it, public ones.

    Raises:
        ProviderError: this worker does not know the provider; the route's address is refused.
    """
    checked = (egress or Policy()) if route.is_of_org else None
    return cast(Provider, _builder(route.provider)(route, faults=faults, egress=checked))


def _builder(provider: str) -> Any:
    """Return the function that makes a provider of this name. Raises: ProviderError."""
    of_plugins = plugins.load("providers")
    if provider in of_plugins:
        return of_plugins[provider]
    name = f"arkloop.worker.providers.{provider}_provider"
    try:
        return _imported(name).build
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise  # of what the module itself imports
        raise ProviderError("invalid_request", f"Unknown provider {provider!r}.") from error


def _imported(name: str) -> ModuleType:
    """Import a module, and leave what it makes out of every garbage collection."""
    if name not in _loaded:
        with _importing:
            if name not in _loaded:
                _loaded[name] = _import(name)
    return _loaded[name]


def _import(name: str) -> ModuleType:
    if not gc.isenabled():
        return import_module(name)
    gc.collect()  # what is garbage now would be left out, too, and stay
    gc.disable()  # walking through the objects of an SDK again and again takes longer than it does
    try:
        module = _import_beside_runs(name)
        gc.freeze()  # they stay: each full collection would stop all runs to walk through them
        return module
    finally:
        gc.enable()


def _import_beside_runs(name: str) -> ModuleType:
    """Import a module in a thread of its own, where runs are greenlets: an import is nothing but
    computing, and gives way to no greenlet, while threads take turns every few milliseconds.
    """
    if not monkey.is_module_patched("threading"):
        return import_module(name)
    found = gevent.get_hub().threadpool.apply(_module_or_error, (name,))
    if isinstance(found, Exception):
        raise found
    return cast(ModuleType, found)


def _module_or_error(name: str) -> ModuleType | Exception:
    """Return the module, or the error of its import: gevent prints what a thread raises."""
    try:
        return import_module(name)
    except Exception as error:
        return error
