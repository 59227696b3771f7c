"""What a model's tokens cost, in USD per million, and what is known of the well-known models.

The figures are those of the library `genai-prices`, as it was released: it is
never asked to fetch newer ones.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Self

from shared.events import Usage

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice

_MILLION = Decimal(1_000_000)
#: Where the SDKs connect to when a route names no server.
VENDOR_URLS = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Cache reads and writes are part of the input tokens, and billed at their own prices.

    The highest of `tiers` that a call gets into replaces all four prices.
    """

    input: Decimal = Decimal(0)
    output: Decimal = Decimal(0)
    cache_read: Decimal = Decimal(0)
    cache_write: Decimal = Decimal(0)
    tiers: tuple[Tier, ...] = ()  # ascending

    @classmethod
    def of(
        cls,
        *,
        input: Decimal,
        output: Decimal,
        cache_read: Decimal | None = None,
        cache_write: Decimal | None = None,
    ) -> Self:
        """Prices of which those of the cache, where nobody gave them, are those of input."""
        return cls(
            input=input,
            output=output,
            cache_read=input if cache_read is None else cache_read,
            cache_write=input if cache_write is None else cache_write,
        )

    def cost(self, usage: Usage) -> Decimal:
        """USD of one call, rounded to 8 decimals. A sum of several calls has no tier."""
        prices = self._reached(usage.input_tokens)[-1]
        fresh = usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens
        total = (
            fresh * prices.input
            + usage.cache_read_tokens * prices.cache_read
            + usage.cache_write_tokens * prices.cache_write
            + usage.output_tokens * prices.output
        )
        return round(total / _MILLION, 8)

    def at_most(self, usage: Usage) -> Decimal:
        """USD: what a call of so many tokens, or of fewer, costs at the dearest."""
        reached = self._reached(usage.input_tokens)
        input_price = max(max(p.input, p.cache_read, p.cache_write) for p in reached)
        output_price = max(p.output for p in reached)
        total = usage.input_tokens * input_price + usage.output_tokens * output_price
        return round(total / _MILLION, 8)

    def _reached(self, input_tokens: int) -> "list[Prices | Tier]":
        return [self, *(tier for tier in self.tiers if input_tokens > tier.above_input_tokens)]


def known(provider: str, model: str, base_url: str | None) -> Prices | None:
    """What the price library says of a model, today.

    None where it does not know the server or the model, and where the price
    depends on more than tokens: on the time of day, or on the number of calls.
    """
    found = _find(provider, model, base_url)
    if found is None or not _is_of_tokens(found):
        return None
    price = found.get_prices(datetime.now(UTC))
    if price.input_mtok is None or price.output_mtok is None:
        return None
    if any(getattr(price, name) is not None for name in _NOT_BY_TOKEN):
        return None
    base = _at(price, 0)
    return Prices(
        input=base.input,
        output=base.output,
        cache_read=base.cache_read,
        cache_write=base.cache_write,
        tiers=tuple(_at(price, start) for start in _starts(price)),
    )


def context_tokens(provider: str, model: str, base_url: str | None) -> int | None:
    """How many tokens a call of the model can have, where the price library knows it."""
    found = _find(provider, model, base_url)
    return found.context_window if found else None


def prepare() -> None:
    """Load the price library, before there is anything that would have to wait for it."""
    known("openai", "gpt-4o-mini", None)


def _find(provider: str, model: str, base_url: str | None) -> "ModelInfo | None":
    url = base_url or VENDOR_URLS.get(provider)
    if url is None or not url.startswith("https://"):
        return None
    # A tenth of a second and 30 MB, that a process without such routes does without.
    from genai_prices.data_snapshot import get_snapshot

    try:
        server, found = get_snapshot().find_provider_model(model, None, None, url)
    except LookupError:
        return None
    # The patterns are beginnings, of https://api.openai.com.example.org too; some end in a dot.
    pattern = rf"(?:{server.api_pattern})(?:$|(?=[/:?])|(?<=[./]))"
    return found if re.match(pattern, url) else None


def _is_of_tokens(model: "ModelInfo") -> bool:
    from genai_prices.types import TimeOfDateConstraint

    conditions = model.prices if isinstance(model.prices, list) else []
    return not any(isinstance(c.constraint, TimeOfDateConstraint) for c in conditions)


def _starts(price: "ModelPrice") -> list[int]:
    """The input tokens above which some price changes, ascending."""
    names = ("input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok")
    tiers = [getattr(getattr(price, name), "tiers", ()) for name in names]
    return sorted({tier.start for some in tiers for tier in some})


def _at(price: "ModelPrice", start: int) -> Tier:
    """The prices of a call just above `start` input tokens."""

    def at(name: str) -> Decimal | None:
        value = getattr(price, name)
        if value is None or isinstance(value, Decimal):
            return value
        reached = [tier.price for tier in value.tiers if start and tier.start <= start]
        return Decimal(reached[-1] if reached else value.base)

    full = at("input_mtok") or Decimal(0)
    read, write = at("cache_read_mtok"), at("cache_write_mtok")
    return Tier(
        above_input_tokens=start,
        input=full,
        output=at("output_mtok") or Decimal(0),
        cache_read=full if read is None else read,
        cache_write=full if write is None else write,
    )
