"""Routes: which provider and model a run uses, and what its tokens cost.

Built in are those whose settings are there; `ARKLOOP_ROUTES` names a YAML file
with more. The file's form is in `docs/reference/configuration.md`.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import yaml

from arkloop.shared import addresses, plugins
from arkloop.shared.catalog import model_settings, platforms, prices
from arkloop.shared.catalog.prices import VENDOR_URLS, Prices
from arkloop.shared.config import InvalidSettings, Settings
from arkloop.shared.events.usage import Usage

ROUTE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
#: Each is a module of `worker/providers`; plugins add others.
PROVIDERS = plugins.BUILTIN["providers"]
#: The beginning of the id under which the costs of an agent worker are counted; no `ROUTE_ID`.
OF_AGENT = "agent/"
#: OpenAI's two APIs; most compatible servers have only the second.
APIS = ("responses", "chat")
#: What a model may accept besides text.
ATTACHMENTS = ("image", "file")
#: Reasoning models are silent for minutes, and every call that is given up is billed.
FIRST_BYTE_SECONDS = 600
IDLE_SECONDS = 120
MAX_SILENT_SECONDS = 3_600
#: Without a persona's or a run's own choice, the first of these that is there.
DEFAULT_ORDER = ("openai", "anthropic", "local", "scripted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A model, where it is called, and its limits.

    `prices` is None where nobody knows them: such a run costs 0 and is refused under a budget.
    """

    id: str
    provider: str
    model: str
    base_url: str | None = None
    api: str | None = None  # one of `APIS`, with `provider` openai alone; None: `effective_api`
    platform: str | None = None  # one of `platforms.PLATFORMS`; None: the vendor, or a server
    region: str | None = None
    project_id: str | None = None
    api_version: str | None = None
    api_key: str | None = field(default=None, repr=False)  # or credentials, as a JSON object
    has_lost_key: bool = False  # it cannot be decrypted: the route must not be called without it
    prices: Prices | None = None
    has_library_prices: bool = False  # of one day: see `priced_on`
    max_output_tokens: int | None = None  # of one model call, where the persona sets none
    context_tokens: int | None = None  # of one call, input and output together
    first_byte_seconds: float = FIRST_BYTE_SECONDS  # until the response's body begins
    idle_seconds: float = IDLE_SECONDS  # between two parts of it
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    accepts: tuple[str, ...] = ATTACHMENTS
    model_settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    is_of_org: bool = False  # an org made it: it must not reach the operator's network
    is_default: bool = False
    priority: int | None = None  # the lower comes first; None: never a fallback

    @property
    def group(self) -> str:
        """The route in metrics: its id, or `own:<provider>` for all routes of orgs."""
        return f"own:{self.provider}" if self.is_of_org else self.id

    @property
    def address(self) -> str | None:
        """The address that is called; None for a provider without one."""
        at_platform = platforms.address(self.platform, self.region)
        return self.base_url or at_platform or VENDOR_URLS.get(self.provider)

    @property
    def is_at_openai(self) -> bool:
        """True if it is called at OpenAI itself, regional addresses included."""
        host = urlsplit(self.base_url or VENDOR_URLS["openai"]).hostname or ""
        return self.provider == "openai" and f".{host}".endswith(".api.openai.com")

    @property
    def is_at_anthropic(self) -> bool:
        """True if it is called at Anthropic itself or on a platform."""
        own_host = urlsplit(VENDOR_URLS["anthropic"]).hostname
        is_own = urlsplit(self.address or "").hostname == own_host
        return self.provider == "anthropic" and (is_own or self.platform is not None)

    @property
    def effective_api(self) -> str | None:
        """The one of `APIS` that is called; None for providers other than openai."""
        if self.provider != "openai":
            return None
        is_openais = self.is_at_openai or self.platform == "azure"
        return self.api or ("responses" if is_openais else "chat")

    @property
    def server(self) -> str:
        """A mark of where it is called, which does not give the address away.

        A server's two APIs cannot read each other's provider state, so their marks differ.
        """
        where = self.base_url or ""
        if self.platform is not None:
            where += f" {self.platform} {self.region}"
        if self.effective_api == "responses":
            where += " responses"
        return hashlib.sha256(where.encode()).hexdigest()[:12]

    def cost(self, usage: Usage) -> Decimal:
        """Compute the cost in USD, rounded to 8 decimals."""
        return self.prices.cost(usage) if self.prices else Decimal(0)


Routes = Mapping[str, Route]


def is_of_org(route_id: str) -> bool:
    """Return whether the org itself pays for calls by this route: no server route has such an id.

    It is that of a model of the org, a UUID, or stands for the calls of an agent worker.
    """
    if route_id.startswith(OF_AGENT):
        return True
    try:
        UUID(route_id)
    except ValueError:
        return False
    return True


def load(settings: Settings) -> Routes:
    """Load all routes, by id.

    Raises:
        InvalidSettings: the routes file is missing or wrong; every problem is named.
    """
    routes = {}
    for vendor, model, base_url, api_key in (
        ("openai", settings.openai_model, settings.openai_base_url, settings.openai_api_key),
        (
            "anthropic",
            settings.anthropic_model,
            settings.anthropic_base_url,
            settings.anthropic_api_key,
        ),
    ):
        if api_key:
            routes[vendor] = with_known_figures(
                Route(id=vendor, provider=vendor, model=model, base_url=base_url, api_key=api_key)
            )
    if settings.local_base_url:
        routes["local"] = Route(
            id="local",
            provider="openai",
            model=settings.local_model,
            base_url=settings.local_base_url,
            api_key="local",
            prices=Prices(),
            # A small model that loses the thread would babble until its context is full.
            max_output_tokens=256,
            context_tokens=settings.local_context_tokens,
        )
    if settings.scripted:
        routes["scripted"] = Route(
            id="scripted",
            provider="scripted",
            model="scripted-1",
            prices=Prices(
                input=Decimal(1),
                output=Decimal(2),
                cache_read=Decimal("0.1"),
                cache_write=Decimal(1),
            ),
        )
    if settings.routes_file:
        routes.update(_from_file(Path(settings.routes_file)))
    return routes


def default_id(routes: Routes) -> str | None:
    """Return the id of the default route, None if there is no route."""
    return next((name for name in DEFAULT_ORDER if name in routes), next(iter(routes), None))


def with_known_figures(route: Route) -> Route:
    """Complete the route with the price library's prices and context, where it has none itself."""
    about = (route.provider, route.model, route.address)
    found = None if route.prices else prices.known(*about)
    return replace(
        route,
        prices=route.prices or found,
        has_library_prices=found is not None,
        context_tokens=route.context_tokens or prices.context_tokens(*about),
    )


def priced_on(routes: Routes, day: date) -> Routes:
    """Return the routes with what the price library has for this day, in UTC: some prices end."""
    return {id_: _priced_on(route, day) for id_, route in routes.items()}


def _priced_on(route: Route, day: date) -> Route:
    if not route.has_library_prices:
        return route
    found = prices.known(route.provider, route.model, route.address, day)
    return replace(route, prices=found)


_NUMBERS = {
    "max_output_tokens": 1,
    "context_tokens": 1,
    "requests_per_minute": 1,
    "tokens_per_minute": 1,
    "priority": 0,
}
#: Seconds of silence, with their defaults.
_SECONDS = {"first_byte_seconds": FIRST_BYTE_SECONDS, "idle_seconds": IDLE_SECONDS}
_FIELDS = {
    "id",
    "provider",
    "model",
    "base_url",
    "api",
    "platform",
    *platforms.OPTIONS,
    "api_key_variable",
    "accepts",
    "model_settings",
    "prices",
    *_NUMBERS,
    *_SECONDS,
}
_PRICES = {"input", "output", "cache_read", "cache_write"}
_DEAREST = Decimal(1_000_000)


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
            problems.append(f"{where}: duplicate id {route.id!r}")
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
            raise ValueError(f"`{name}` is required and must be a string")
    base_url = entry.get("base_url")
    is_usable = isinstance(base_url, str) and addresses.is_usable(base_url, rest=".*")
    if base_url is not None and not is_usable:
        raise ValueError("`base_url` must be an address such as https://llm.example.com/v1")
    if not ROUTE_ID.fullmatch(entry["id"]):
        raise ValueError(f"`id` must match {ROUTE_ID.pattern}")
    if is_of_org(entry["id"]):
        raise ValueError(
            "`id` must not be a UUID: UUIDs are the ids of models that organizations add"
        )
    known = (*PROVIDERS, *plugins.names("providers"))
    if entry["provider"] not in known:
        raise ValueError(f"`provider` must be one of {', '.join(known)}")
    if (api := entry.get("api")) is not None:
        if api not in APIS:
            raise ValueError(f"`api` must be one of {', '.join(APIS)}")
        if entry["provider"] != "openai":
            raise ValueError("`api` is for `provider: openai` only")
    api_key = None
    if variable := entry.get("api_key_variable"):
        value = os.environ.get(str(variable), "")  # noqa: TID251 - the file names the variable
        api_key = value.strip()  # it may come from a file that ends with a newline
        if not api_key:
            raise ValueError(f"the environment variable {variable} is not set")
        is_ours = entry["provider"] in PROVIDERS and not api_key.startswith("{")  # Google's objects
        if is_ours and not (api_key.isascii() and api_key.isprintable()):  # a header carries it
            raise ValueError(f"the environment variable {variable} has characters that no key has")
    of_platform = _platform(entry, api_key)
    for name, least in _NUMBERS.items():
        number = entry.get(name)
        if number is not None and (type(number) is not int or number < least):
            raise ValueError(f"`{name}` must be an integer of at least {least}")
    numbers: dict[str, Any] = {name: entry.get(name) for name in _NUMBERS}
    for name, default in _SECONDS.items():
        seconds = entry.get(name)
        if seconds is None:
            seconds = default
        if type(seconds) is not int or not 1 <= seconds <= MAX_SILENT_SECONDS:
            raise ValueError(f"`{name}` must be an integer from 1 to {MAX_SILENT_SECONDS}")
        numbers[name] = seconds
    return with_known_figures(
        Route(
            id=entry["id"],
            provider=entry["provider"],
            model=entry["model"],
            base_url=base_url,
            api=api,
            api_key=api_key,
            **of_platform,
            accepts=_accepts(entry.get("accepts")),
            model_settings=_model_settings(entry.get("model_settings")),
            prices=_prices(entry.get("prices")),
            **numbers,
        )
    )


def _platform(entry: Mapping[str, Any], secret: str | None) -> dict[str, Any]:
    """Return the fields of a route's platform."""
    fields = {name: entry.get(name) for name in ("platform", *platforms.OPTIONS)}
    for name, value in fields.items():
        if value is not None and not isinstance(value, str):
            raise ValueError(f"`{name}` must be a string")
    platform = fields["platform"]
    if platform is not None and platform not in platforms.PLATFORMS:
        raise ValueError(f"`platform` must be one of {', '.join(platforms.PLATFORMS)}")
    options = {name: fields[name] for name in platforms.OPTIONS}
    problems = platforms.problems(
        entry["provider"], platform, {**options, "base_url": entry.get("base_url")}
    )
    if problems:
        raise ValueError("; ".join(f"`{name}` {why}" for name, why in problems.items()))
    if platform is not None:
        if secret is None:
            raise ValueError(f"`api_key_variable` is required for {platform}")
        try:
            platforms.check_secret(platform, secret)
        except ValueError as error:
            raise ValueError(f"`api_key_variable`: {error}") from None
    return fields


def _accepts(given: Any) -> tuple[str, ...]:
    if given is None:
        return ATTACHMENTS
    if not isinstance(given, list) or not set(map(str, given)) <= set(ATTACHMENTS):
        raise ValueError(f"`accepts` must be a list with any of {', '.join(ATTACHMENTS)}")
    return tuple(given)


def _model_settings(given: Any) -> Mapping[str, Any]:
    try:
        return model_settings.read({} if given is None else given)
    except ValueError as error:
        raise ValueError(f"`model_settings`: {error}") from None


def _prices(given: Any) -> Prices | None:
    if given is None:
        return None
    if not isinstance(given, dict) or set(given) - _PRICES:
        raise ValueError(f"`prices` may only contain {', '.join(sorted(_PRICES))}")
    if not {"input", "output"} <= set(given):
        raise ValueError("`prices` requires `input` and `output`; 0 means free")
    return Prices.of(**{name: _price(price) for name, price in given.items()})


def _price(value: Any) -> Decimal:
    try:
        price = Decimal(str(value))
    except InvalidOperation:
        price = Decimal(-1)
    if not price.is_finite() or not 0 <= price <= _DEAREST:
        raise ValueError(f"{value!r} is not a price in USD per million tokens")
    return price
