"""The prices of a model's tokens, in USD per million, and the figures of well-known models.

The figures are those of the library `genai-prices`, as it was released: it is
never asked to fetch newer ones.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Self

from arkloop.shared.events.usage import Usage

if TYPE_CHECKING:
    from genai_prices.types import (
        ModelInfo,
        ModelPrice,
        Provider,
        TimeOfDateConstraint,
        UsageExtractor,
    )

_MILLION = Decimal(1_000_000)
#: Where the SDKs connect to when a route names no server.
VENDOR_URLS = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}
#: The fields by which a request orders faster or cheaper processing: Anthropic's, and OpenAI's.
SPEED_FIELDS = ("speed", "service_tier")
_SATURDAY = 5  # as `weekday` counts
#: The price of OpenAI's cache writes for 12 hours, as a multiple of the 30-minute price, which is
#: the only one that the library has: https://developers.openai.com/api/docs/models/gpt-6.2-sol.
_TWELVE_HOURS = 2
#: The end of the ids of OpenRouter's free models. Their entries have no price, but nor have those
#: of some models that are not free.
_FREE = ":free"
#: Charged besides what `Usage` counts, on every call.
_NOT_BY_TOKEN = ("requests_kcount", "output_reasoning_mtok", "output_citation_mtok")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """Prices of a whole call that has more input tokens than `above_input_tokens`."""

    above_input_tokens: int
    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal
    cache_write_1h: Decimal | None = None  # for 12 hours at OpenAI; None: as `cache_write`


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """The prices of a part of each weekday, from `start` up to `end` in UTC, also over midnight."""

    start: time
    end: time
    prices: "Prices"

    def contains(self, at: time) -> bool:
        if self.end <= self.start:
            return at >= self.start or at < self.end
        return self.start <= at < self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Cache reads and writes are part of the input tokens, and billed at their own prices.

    The highest of `tiers` that a call gets into replaces all prices; so do the prices of the speed
    at which the vendor has processed it, and `hours` that contain the time at which the call ends,
    from Monday to Friday. The library has no days for them; only DeepSeek has such hours
    (https://api-docs.deepseek.com/quick_start/pricing).
    """

    input: Decimal = Decimal(0)
    output: Decimal = Decimal(0)
    cache_read: Decimal = Decimal(0)
    cache_write: Decimal = Decimal(0)
    cache_write_1h: Decimal | None = None  # for 12 hours at OpenAI; None: as `cache_write`
    tiers: tuple[Tier, ...] = ()  # ascending
    hours: tuple[Hours, ...] = ()
    speeds: Mapping[str, "Prices"] = field(default_factory=dict, hash=False)  # as `Usage.speed`

    @classmethod
    def of(
        cls,
        *,
        input: Decimal,
        output: Decimal,
        cache_read: Decimal | None = None,
        cache_write: Decimal | None = None,
    ) -> Self:
        """Build prices; cache prices that are not given are those of input."""
        return cls(
            input=input,
            output=output,
            cache_read=input if cache_read is None else cache_read,
            cache_write=input if cache_write is None else cache_write,
        )

    def cost(self, usage: Usage, at: datetime | None = None) -> Decimal:
        """Compute the USD of one call that ended `at` this time, or now, rounded to 8 decimals.

        A sum of several calls has no tier and no hour.
        """
        end = (at or datetime.now(UTC)).astimezone(UTC)
        # In UTC: DeepSeek's hours are on the same day there as in Beijing.
        hours = self.hours if end.weekday() < _SATURDAY else ()
        by_hour = next((h.prices for h in hours if h.contains(end.time())), self)
        in_force = self.speeds.get(usage.speed, by_hour)
        prices = in_force._reached(usage.input_tokens)[-1]
        fresh = usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens
        total = (
            fresh * prices.input
            + usage.cache_read_tokens * prices.cache_read
            + (usage.cache_write_tokens - usage.cache_write_1h_tokens) * prices.cache_write
            + usage.cache_write_1h_tokens * _for_longer(prices)
            + usage.output_tokens * prices.output
        )
        return round(total / _MILLION, 8)

    def at_most(self, usage: Usage) -> Decimal:
        """Compute the highest USD that a call with at most these tokens can cost.

        Its input may be written to the cache, or for longer, only if `usage` has such tokens. The
        vendor may process it at the usual speed instead of the one in `usage`.
        """
        possible = [self, *(hours.prices for hours in self.hours)]
        possible.append(self.speeds.get(usage.speed, self))
        reached = [p for prices in possible for p in prices._reached(usage.input_tokens)]
        input_price = max(max(p.input, p.cache_read) for p in reached)
        if usage.cache_write_tokens:
            input_price = max(input_price, *(p.cache_write for p in reached))
        if usage.cache_write_1h_tokens:
            input_price = max(input_price, *(_for_longer(p) for p in reached))
        output_price = max(p.output for p in reached)
        total = usage.input_tokens * input_price + usage.output_tokens * output_price
        return round(total / _MILLION, 8)

    def _reached(self, input_tokens: int) -> "list[Prices | Tier]":
        return [self, *(tier for tier in self.tiers if input_tokens > tier.above_input_tokens)]


def _for_longer(prices: Prices | Tier) -> Decimal:
    return prices.cache_write if prices.cache_write_1h is None else prices.cache_write_1h


def known(
    provider: str, model: str, base_url: str | None, day: date | None = None
) -> Prices | None:
    """Look up a model's prices of a day in UTC, or of today, in the price library.

    They are the lowest if the hour matters. None where it does not know the server or the model,
    and where the price depends on more than tokens, time and speed: on the number of calls.
    """
    server = _server(provider, base_url)
    found = _find(server, model)
    if server is None or found is None:
        return None
    from genai_prices.types import ModelPrice

    is_openai = server.id == "openai"
    at = datetime.combine(day or datetime.now(UTC), time(), UTC)
    starts = _starts_of_hours(found, at)
    if found.id.endswith(_FREE) and found.get_prices(at) == ModelPrice():
        return Prices()
    if not starts:
        standard = _prices_of(found.get_prices(at), is_openai=is_openai)
        return standard and replace(standard, speeds=_speeds(found, at, is_openai=is_openai))
    hours: list[Hours] = []
    for start, end in zip(starts, [*starts[1:], starts[0]], strict=True):
        prices = _prices_of(found.get_prices(start), is_openai=is_openai)
        if prices is None:
            return None
        hours.append(Hours(start=start.time(), end=end.time(), prices=prices))
    lowest = min((h.prices for h in hours), key=lambda prices: prices.input)
    return replace(lowest, hours=tuple(h for h in hours if h.prices != lowest))


def _speeds(model: "ModelInfo", at: datetime, *, is_openai: bool) -> dict[str, Prices]:
    """Return the prices of all speeds that the library has for the model at this time."""
    conditions = [variant.when for variant in model.price_variants or ()]
    orders = [(name, when[name]) for when in conditions for name in SPEED_FIELDS if name in when]
    found = {
        speed: _prices_of(model.get_prices(at, {name: speed}), is_openai=is_openai)
        for name, speed in orders
    }
    return {speed: prices for speed, prices in found.items() if prices is not None}


def _prices_of(price: "ModelPrice", *, is_openai: bool) -> Prices | None:
    if price.input_mtok is None or price.output_mtok is None:
        return None
    if any(getattr(price, name) is not None for name in _NOT_BY_TOKEN):
        return None
    base = _at(price, 0, is_openai=is_openai)
    return Prices(
        input=base.input,
        output=base.output,
        cache_read=base.cache_read,
        cache_write=base.cache_write,
        cache_write_1h=base.cache_write_1h,
        tiers=tuple(_at(price, start, is_openai=is_openai) for start in _starts(price)),
    )


def usage_extractors(provider: str, base_url: str | None) -> "list[UsageExtractor]":
    """Return the price library's extractors for the usage that a server reports; may be empty."""
    server = _server(provider, base_url)
    return list(server.extractors or ()) if server else []


def context_tokens(provider: str, model: str, base_url: str | None) -> int | None:
    """Return the model's context window in tokens, if the price library has it."""
    found = _find(_server(provider, base_url), model)
    return found.context_window if found else None


def prepare() -> None:
    """Load the price library, before there is anything that would have to wait for it."""
    known("openai", "gpt-4o-mini", None)


def _find(server: "Provider | None", model: str) -> "ModelInfo | None":
    if server is None:
        return None
    from genai_prices.data_snapshot import get_snapshot

    try:
        return get_snapshot().find_provider_model(model, server, None, None)[1]
    except LookupError:
        return None


def _server(provider: str, base_url: str | None) -> "Provider | None":
    """Return the library's entry of the server at this address."""
    url = base_url or VENDOR_URLS.get(provider)
    if url is None or not url.startswith("https://"):
        return None
    # A tenth of a second and 30 MB, that a process without such routes does without.
    from genai_prices.data_snapshot import get_snapshot

    try:
        server = get_snapshot().find_provider(None, None, url)
    except LookupError:
        return None
    # The patterns are beginnings, of https://api.openai.com.example.org too; some end in a dot.
    pattern = rf"(?:{server.api_pattern})(?:$|(?=[/:?])|(?<=[./]))"
    return server if re.match(pattern, url) else None


def _starts_of_hours(model: "ModelInfo", at: datetime) -> list[datetime]:
    """Return the times at which the price changes on this day, ascending; empty without any."""
    from genai_prices.types import TimeOfDateConstraint

    conditions = model.prices if isinstance(model.prices, list) else []
    found = [c.constraint for c in conditions if isinstance(c.constraint, TimeOfDateConstraint)]
    edges = {edge for constraint in found for edge in _edges(constraint, at)}
    return sorted(edges, key=lambda edge: edge.time())


def _edges(constraint: "TimeOfDateConstraint", at: datetime) -> list[datetime]:
    """Return the two times of a constraint on the day of `at`; without a zone they are UTC."""
    times = (constraint.start_time, constraint.end_time)
    utc = [datetime.combine(at, t, t.tzinfo or UTC).astimezone(UTC).time() for t in times]
    return [datetime.combine(at, t, UTC) for t in utc]


def _starts(price: "ModelPrice") -> list[int]:
    """Return the input tokens above which some price changes, ascending."""
    names = ("input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok")
    tiers = [getattr(getattr(price, name), "tiers", ()) for name in names]
    return sorted({tier.start for some in tiers for tier in some})


def _at(price: "ModelPrice", start: int, *, is_openai: bool) -> Tier:
    """Return the prices of a call just above `start` input tokens."""

    def at(name: str) -> Decimal | None:
        value = getattr(price, name)
        if value is None or isinstance(value, Decimal):
            return value
        reached = [tier.price for tier in value.tiers if start and tier.start <= start]
        return Decimal(reached[-1] if reached else value.base)

    full = at("input_mtok") or Decimal(0)
    read, write, for_longer = (at(f"cache_{name}_mtok") for name in ("read", "write", "write_1h"))
    if is_openai and write is not None and for_longer is None:
        for_longer = _TWELVE_HOURS * write
    return Tier(
        above_input_tokens=start,
        input=full,
        output=at("output_mtok") or Decimal(0),
        cache_read=full if read is None else read,
        cache_write=full if write is None else write,
        cache_write_1h=for_longer,
    )
