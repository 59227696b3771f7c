"""Routes: which provider and model a run uses, and what its tokens cost.

Built in are those whose settings are there; `ARKLOOP_ROUTES` names a YAML file
with more. The file's form is in `docs/configuration.md`.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import yaml

from shared.config import InvalidSettings, Settings
from shared.errors import RouteNotFound
from shared.events import Usage
from shared.personas import Persona

ROUTE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
PROVIDERS = ("openai", "scripted")
#: Without a persona's or a run's own choice, the first of these that is there.
DEFAULT_ORDER = ("openai", "anthropic", "local", "scripted")

_MILLION = Decimal(1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Prices are USD per million tokens; cache reads are billed at their own price."""

    id: str
    provider: str
    model: str
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    input_price: Decimal = Decimal(0)
    output_price: Decimal = Decimal(0)
    cache_read_price: Decimal = Decimal(0)
    max_output_tokens: int | None = None  # of one model call, where the persona sets none

    def cost(self, usage: Usage) -> Decimal:
        """USD, rounded to 8 decimals; cache reads are part of the input tokens."""
        fresh = usage.input_tokens - usage.cache_read_tokens
        total = (
            fresh * self.input_price
            + usage.cache_read_tokens * self.cache_read_price
            + usage.output_tokens * self.output_price
        )
        return round(total / _MILLION, 8)


Routes = Mapping[str, Route]


def load(settings: Settings) -> Routes:
    """All routes by id.

    Raises:
        InvalidSettings: the routes file is missing or wrong; every problem is named.
    """
    routes = {}
    if settings.openai_api_key:
        routes["openai"] = Route(
            id="openai",
            provider="openai",
            model=settings.openai_model,
            base_url=settings.openai_base_url,
            api_key=settings.openai_api_key,
        )
    if settings.local_base_url:
        routes["local"] = Route(
            id="local",
            provider="openai",
            model=settings.local_model,
            base_url=settings.local_base_url,
            api_key="local",
            # A small model that loses the thread would babble until its context is full.
            max_output_tokens=256,
        )
    if settings.scripted:
        routes["scripted"] = Route(
            id="scripted",
            provider="scripted",
            model="scripted-1",
            input_price=Decimal(1),
            output_price=Decimal(2),
            cache_read_price=Decimal("0.1"),
        )
    if settings.routes_file:
        routes.update(_from_file(Path(settings.routes_file)))
    return routes


def choose(routes: Routes, route_id: str | None, persona: Persona) -> Route:
    """The run's route: its own, else the persona's, else the default.

    Raises:
        RouteNotFound
    """
    wanted = route_id or persona.route_id
    if wanted is None:
        wanted = next((name for name in DEFAULT_ORDER if name in routes), None) or next(
            iter(routes), None
        )
    if wanted is None:
        raise RouteNotFound(route_id=["No route is configured on this server."])
    if wanted not in routes:
        raise RouteNotFound(route_id=[f"There is no route {wanted!r}."])
    return routes[wanted]


_FIELDS = {"id", "provider", "model", "base_url", "api_key_variable", "prices", "max_output_tokens"}
_PRICES = {"input", "output", "cache_read"}


def _from_file(path: Path) -> dict[str, Route]:
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidSettings(f"ARKLOOP_ROUTES: {path}: {error}") from error
    entries = document.get("routes") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise InvalidSettings(f"ARKLOOP_ROUTES: {path}: expected a list under `routes:`")
    routes: dict[str, Route] = {}
    problems: list[str] = []
    for number, entry in enumerate(entries, 1):
        where = f"ARKLOOP_ROUTES: {path}: route {number}"
        try:
            route = _route(entry)
        except ValueError as error:
            problems.append(f"{where}: {error}")
            continue
        if route.id in routes:
            problems.append(f"{where}: the id {route.id!r} is there twice")
        routes[route.id] = route
    if problems:
        raise InvalidSettings("\n".join(problems))
    return routes


def _route(entry: Any) -> Route:
    if not isinstance(entry, dict):
        raise ValueError("must be a mapping")
    if unknown := set(entry) - _FIELDS:
        raise ValueError(f"unknown fields: {', '.join(sorted(map(str, unknown)))}")
    for name in ("id", "provider", "model"):
        if not isinstance(entry.get(name), str):
            raise ValueError(f"`{name}` is needed, as text")
    if not ROUTE_ID.fullmatch(entry["id"]):
        raise ValueError(f"`id` must match {ROUTE_ID.pattern}")
    if entry["provider"] not in PROVIDERS:
        raise ValueError(f"`provider` must be one of {', '.join(PROVIDERS)}")
    api_key = None
    if variable := entry.get("api_key_variable"):
        api_key = os.environ.get(str(variable))  # noqa: TID251 - the file names the variable
        if not api_key:
            raise ValueError(f"the variable {variable} is not set")
    prices = entry.get("prices") or {}
    if not isinstance(prices, dict) or set(prices) - _PRICES:
        raise ValueError(f"`prices` may have {', '.join(sorted(_PRICES))}")
    most = entry.get("max_output_tokens")
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise ValueError("`max_output_tokens` must be a positive integer")
    return Route(
        id=entry["id"],
        provider=entry["provider"],
        model=entry["model"],
        base_url=entry.get("base_url"),
        api_key=api_key,
        max_output_tokens=most,
        input_price=_price(prices.get("input", 0)),
        output_price=_price(prices.get("output", 0)),
        cache_read_price=_price(prices.get("cache_read", prices.get("input", 0))),
    )


def _price(value: Any) -> Decimal:
    try:
        price = Decimal(str(value))
    except InvalidOperation:
        price = Decimal(-1)
    if not price.is_finite() or price < 0:
        raise ValueError(f"{value!r} is not a price in USD per million tokens")
    return price
