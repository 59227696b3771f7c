"""The usage that a server reports, read by the price library's own extractors.

Vendors count differently: xAI's output tokens exclude reasoning on chat completions, Anthropic's
input tokens exclude the cache. The library knows this by the server's address; an address that it
does not know is read as the API's own vendor.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from genai_prices.types import UsageExtractor

from arkloop.shared.catalog import prices
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.usage import Usage

#: By API: whose extractor is used for unknown servers, with its name, and the library's names of
#: the form at other vendors, the first that a vendor has. `default` need not be Anthropic's form:
#: OpenRouter's is that of responses, by which the cache would be lost.
_APIS = {
    "chat": ("openai", "chat", ("chat", "default")),
    "responses": ("openai", "responses", ("responses",)),
    "messages": ("anthropic", "default", ("anthropic",)),
}
#: Where servers report cached tokens other than in `prompt_tokens_details`: Kimi, DeepSeek.
_CACHED = ("cached_tokens", "prompt_cache_hit_tokens")
#: Google's Gemini API and Vertex AI: thinking is output in their bills, and in a chat completion's
#: usage a part of the total alone. Totals of other servers say nothing.
_GOOGLE = ".googleapis.com"


class UsageReader:
    """Reads what one route's server reports; `api` is chat, responses or messages."""

    def __init__(self, route: Route, api: str) -> None:
        vendor, own, names = _APIS[api]
        known = prices.usage_extractors(route.provider, route.address)
        found = [_first(known, names), _first(prices.usage_extractors(vendor, None), (own,))]
        self._extractors = [extractor for extractor in found if extractor is not None]
        host = urlsplit(route.address or "").hostname or ""
        self._has_thinking = api == "messages"
        self._counts_total = api == "chat" and host.endswith(_GOOGLE)

    def read(self, reported: Any, speed: Any = None) -> Usage | None:
        """Return the usage; None where it is missing or cannot be read.

        `speed` is how fast the call was processed, as the server reports it, if it does.
        """
        if not isinstance(reported, Mapping):
            return None
        usage = _completed(reported)
        if self._counts_total:
            usage = _with_thinking(usage)
        for extractor in self._extractors:
            try:
                _, found = extractor.extract({"usage": usage})
            except ValueError:
                continue  # it has another form
            reasoning = int(found.reported_value("output_reasoning_tokens"))
            for_longer = int(found.reported_value("cache_write_1h_tokens"))
            return Usage(
                input_tokens=int(found.reported_value("input_tokens")),
                output_tokens=int(found.reported_value("output_tokens")),
                cache_read_tokens=int(found.reported_value("cache_read_tokens")),
                cache_write_tokens=int(found.reported_value("cache_write_tokens")),
                cache_write_1h_tokens=for_longer or _for_twelve_hours(usage),
                reasoning_tokens=reasoning or (_thinking(usage) if self._has_thinking else 0),
                speed=speed if isinstance(speed, str) else "",
            )
        return None


def _first(extractors: list[UsageExtractor], names: tuple[str, ...]) -> UsageExtractor | None:
    by_name = {extractor.api_flavor: extractor for extractor in extractors}
    return next((by_name[name] for name in names if name in by_name), None)


def _completed(reported: Mapping[str, Any]) -> dict[str, Any]:
    """Return the usage in the form that the extractors read.

    They require an output, which servers leave out or set to null as long as there is none.
    """
    usage = {name: value for name, value in reported.items() if value is not None}
    usage.setdefault("completion_tokens" if "prompt_tokens" in usage else "output_tokens", 0)
    details = usage.get("prompt_tokens_details")
    details = dict(details) if isinstance(details, Mapping) else {}
    for name in _CACHED:
        if name in usage and not details.get("cached_tokens"):
            details["cached_tokens"] = usage[name]
            usage["prompt_tokens_details"] = details
    return usage


def _for_twelve_hours(usage: Mapping[str, Any]) -> int:
    """Read OpenAI's cache writes for 12 hours, which the library does not know."""
    details: Any = usage.get("input_tokens_details") or usage.get("prompt_tokens_details")
    writes = details.get("cache_write_tokens_details") if isinstance(details, Mapping) else None
    tokens = writes.get("ttl_12h_tokens") if isinstance(writes, Mapping) else None
    return tokens if isinstance(tokens, int) else 0


def _thinking(usage: Mapping[str, Any]) -> int:
    """Read Claude's thinking, which the library knows at Anthropic's own server alone."""
    details = usage.get("output_tokens_details")
    tokens = details.get("thinking_tokens") if isinstance(details, Mapping) else None
    return tokens if isinstance(tokens, int) else 0


def _with_thinking(usage: dict[str, Any]) -> dict[str, Any]:
    """Count tokens that only the total has as output, and as reasoning if none is reported."""
    total, prompt = usage.get("total_tokens"), usage.get("prompt_tokens")
    completion = usage.get("completion_tokens")
    if not (isinstance(total, int) and isinstance(prompt, int) and isinstance(completion, int)):
        return usage
    if (thinking := total - prompt - completion) <= 0:
        return usage
    details = usage.get("completion_tokens_details")
    details = dict(details) if isinstance(details, Mapping) else {}
    details["reasoning_tokens"] = details.get("reasoning_tokens") or thinking
    completed = {"completion_tokens": completion + thinking, "completion_tokens_details": details}
    return {**usage, **completed}
