"""Usage as vendors report it, each in the words of its own documentation."""

import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import UsageExtractor

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.prices import known
from arkloop.shared.events.usage import Usage
from arkloop.worker.contract.messages import TurnEnd
from arkloop.worker.providers.reported_usage import UsageReader
from tests.worker.providers.fake_vendor import (
    anthropic_stream,
    ask,
    delta,
    openai_stream,
    raw,
    vendor,
)

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[3]
OPENAI = {
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 60},
    "completion_tokens_details": {"reasoning_tokens": 15},
}


def read(base_url: str | None, reported: Any, api: str = "chat") -> Usage | None:
    provider = "anthropic" if api == "messages" else "openai"
    return UsageReader(Route(id="r", provider=provider, model="m", base_url=base_url), api).read(
        reported
    )


@pytest.mark.parametrize(
    ("base_url", "output_tokens"),
    [
        (None, 20),
        ("https://api.openai.com/v1", 20),
        ("https://openrouter.ai/api/v1", 20),
        ("http://127.0.0.1:8000/v1", 20),
        ("https://api.x.ai/v1", 35),
        ("https://api.x.ai.example.com/v1", 20),
    ],
)
def test_xai_reports_reasoning_besides_the_output(base_url: str | None, output_tokens: int) -> None:
    """Its 20 tokens are the text alone; elsewhere the 15 of reasoning are part of them."""
    expected = Usage(
        input_tokens=100, output_tokens=output_tokens, cache_read_tokens=60, reasoning_tokens=15
    )

    assert expected == read(base_url, OPENAI)


GOOGLE = "https://us-central1-aiplatform.googleapis.com/v1/projects/p/locations/l/endpoints/openapi"


@pytest.mark.parametrize(
    ("base_url", "reported", "output_tokens", "reasoning_tokens"),
    [
        (GOOGLE, {"total_tokens": 105}, 96, 93),
        # Where the output has the thinking already, the total adds nothing.
        (GOOGLE, {"completion_tokens": 96, "total_tokens": 105}, 96, 0),
        (GOOGLE, {"completion_tokens_details": {"reasoning_tokens": 9}, "total_tokens": 99}, 90, 9),
        (GOOGLE, {"completion_tokens": None, "total_tokens": 102}, 93, 93),
        # Totals that are missing, too low or no number.
        (GOOGLE, {}, 3, 0),
        (GOOGLE, {"total_tokens": 0}, 3, 0),
        (GOOGLE, {"total_tokens": "105"}, 3, 0),
        # Totals of other servers.
        ("https://api.openai.com/v1", {"total_tokens": 105}, 3, 0),
        ("https://googleapis.com.example.com/v1", {"total_tokens": 105}, 3, 0),
    ],
)  # fmt: skip
def test_google_reports_thinking_in_the_total_alone(
    base_url: str, reported: dict[str, Any], output_tokens: int, reasoning_tokens: int
) -> None:
    """The rest of the total is output, at Google alone."""
    expected = Usage(input_tokens=9, output_tokens=output_tokens, reasoning_tokens=reasoning_tokens)

    assert expected == read(base_url, {"prompt_tokens": 9, "completion_tokens": 3, **reported})


@pytest.mark.parametrize("name", ["cached_tokens", "prompt_cache_hit_tokens"])
@pytest.mark.parametrize("base_url", ["https://api.moonshot.ai/v1", "http://127.0.0.1:8000/v1"])
def test_cached_tokens_may_stand_beside_the_prompts(base_url: str, name: str) -> None:
    """Kimi's and DeepSeek's are no detail of the prompt; where both stand they are the same."""
    bare = {"prompt_tokens": 100, "completion_tokens": 20, name: 60}
    expected = Usage(input_tokens=100, output_tokens=20, cache_read_tokens=60)

    assert expected == read(base_url, bare)
    assert expected == read(base_url, {**bare, "prompt_tokens_details": {"cached_tokens": 60}})
    assert expected == read(base_url, {**bare, "prompt_tokens_details": None})


def test_kimi_reports_the_usage_in_the_last_choice() -> None:
    """It has no chunk for it, with or without `stream_options`."""
    last = delta(finish="stop")
    last["choices"][0]["usage"] = {"prompt_tokens": 9, "completion_tokens": 2, "cached_tokens": 4}

    with vendor(raw(openai_stream(delta(content="Hi"), last))) as fake:
        end = ask("openai", fake.url)[-1]

    assert TurnEnd("stop", (), Usage(input_tokens=9, output_tokens=2, cache_read_tokens=4)) == end


def test_the_one_hour_cache_of_anthropic_has_its_own_price() -> None:
    """An hour costs 2 dollars a million tokens, and five minutes cost 1.25."""
    usage = {
        "input_tokens": 10,
        "cache_read_input_tokens": 5,
        "cache_creation_input_tokens": 1000,
        "cache_creation": {"ephemeral_5m_input_tokens": 400, "ephemeral_1h_input_tokens": 600},
        "output_tokens": 1,
    }
    start = {"type": "message_start", "message": {"role": "assistant", "usage": usage}}
    finish = {"type": "message_delta", "delta": {"stop_reason": "end_turn"},
              "usage": {"output_tokens": 7}}  # fmt: skip

    with vendor(raw(anthropic_stream(start, finish))) as fake:
        end = ask("anthropic", fake.url.removesuffix("/v1"))[-1]

    assert isinstance(end, TurnEnd) and end.usage is not None
    expected = Usage(
        input_tokens=1015,
        output_tokens=7,
        cache_read_tokens=5,
        cache_write_tokens=1000,
        cache_write_1h_tokens=600,
    )
    assert expected == end.usage
    prices = known("anthropic", "claude-haiku-4-5", None)
    assert prices
    micro_usd = 10 * 1 + 5 * 0.1 + 400 * 1.25 + 600 * 2 + 7 * 5
    assert micro_usd == float(prices.cost(end.usage) * 1_000_000)


@pytest.mark.parametrize(
    "base_url",
    [
        *("https://openrouter.ai/api", "https://api.minimax.io/anthropic"),
        *("https://api.deepseek.com/anthropic", "http://127.0.0.1:8000"),
        *("https://api.anthropic.com", "https://bedrock-runtime.us-east-1.amazonaws.com"),
        *("https://aiplatform.googleapis.com/v1", "https://x.services.ai.azure.com/anthropic/"),
    ],
)
def test_messages_of_other_vendors_are_read_as_anthropics(base_url: str) -> None:
    """The library has OpenRouter's other APIs, where the cache is a part of the input already, and
    no thinking on the platforms.
    """
    reported = {
        "input_tokens": 10,
        "cache_read_input_tokens": 60,
        "cache_creation_input_tokens": 30,
        "output_tokens": 20,
        "output_tokens_details": {"thinking_tokens": 15},
    }
    expected = Usage(
        input_tokens=100,
        output_tokens=20,
        cache_read_tokens=60,
        cache_write_tokens=30,
        reasoning_tokens=15,
    )

    assert expected == read(base_url, reported, "messages")


@pytest.mark.parametrize(
    ("api", "reported"),
    [
        ("chat", {**OPENAI, "completion_tokens": None, "completion_tokens_details": None}),
        ("responses", {"input_tokens": 100, "input_tokens_details": {"cached_tokens": 60}}),
        ("messages", {"input_tokens": 40, "cache_read_input_tokens": 60, "output_tokens": None}),
    ],
)
def test_there_may_be_no_output_yet(api: str, reported: Any) -> None:
    """The input counts, if the call should break off."""
    assert Usage(input_tokens=100, cache_read_tokens=60) == read(None, reported, api)


@pytest.mark.parametrize(
    "reported",
    [
        None,
        5,
        {},
        {"prompt_tokens": None},
        {"prompt_tokens": "12", "completion_tokens": 3},
        {"prompt_tokens": -1, "completion_tokens": 3},
        {"prompt_tokens": float("nan"), "completion_tokens": 3},
        {"prompt_tokens": 1, "completion_tokens": [3]},
    ],
)
def test_a_usage_that_cannot_be_read_is_none(reported: Any) -> None:
    """The call is estimated then: its answer is good all the same."""
    assert read(None, reported) is None
    assert read("https://api.x.ai/v1", reported) is None


@pytest.mark.parametrize(("provider", "is_loaded"), [("openai", True), ("scripted", False)])
def test_the_price_library_is_loaded_before_there_are_runs(provider: str, is_loaded: bool) -> None:
    """Loading it takes up to half a second, in which every run of the process would stand still."""
    program = (
        "import sys\n"
        "from arkloop.shared.catalog.model_routes import Route\n"
        "from arkloop.worker import providers\n"
        f"providers.prepare([Route(id='r', provider={provider!r}, model='m', base_url='http://x')])\n"
        "print('genai_prices.data' in sys.modules)"
    )

    printed = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True)

    assert f"{is_loaded}\n" == printed


def test_a_server_with_the_form_of_another_is_read_all_the_same() -> None:
    """A vendor's second API may report as the first vendor of that API does."""
    reported = {"input_tokens": 9, "output_tokens": 2}

    assert Usage(input_tokens=9, output_tokens=2) == read(
        "https://api.groq.com/openai/v1", reported, "responses"
    )


# ---- against hand arithmetic ---------------------------------------------------------

#: USD of a call in micro-dollars, from the vendor's price list: tokens times USD per million.
BILLS: dict[str, tuple[str, str, dict[str, Any], str, float]] = {
    # https://docs.x.ai/docs/models: reasoning is billed as output, and is not part of it.
    "xAI": (
        "https://api.x.ai/v1",
        "grok-4",
        {
            "prompt_tokens": 1_000,
            "completion_tokens": 20,
            "prompt_tokens_details": {"cached_tokens": 600},
            "completion_tokens_details": {"reasoning_tokens": 300},
        },
        "12:00",
        400 * 3 + 600 * 0.75 + (20 + 300) * 15,
    ),
    # https://platform.moonshot.ai/docs/pricing: `cached_tokens` is beside the other fields.
    "Kimi": (
        "https://api.moonshot.ai/v1",
        "kimi-k2.5",
        {"prompt_tokens": 1_000, "completion_tokens": 20, "cached_tokens": 600},
        "12:00",
        400 * 0.6 + 600 * 0.1 + 20 * 3,
    ),
    # https://api-docs.deepseek.com/quick_start/pricing: cheaper from 16:30 to 0:30 UTC.
    "DeepSeek by day": (
        "https://api.deepseek.com",
        "deepseek-chat",
        {
            "prompt_tokens": 1_000,
            "completion_tokens": 20,
            "prompt_cache_hit_tokens": 600,
            "prompt_cache_miss_tokens": 400,
        },
        "12:00",
        400 * 0.27 + 600 * 0.07 + 20 * 1.1,
    ),
    "DeepSeek at night": (
        "https://api.deepseek.com",
        "deepseek-chat",
        {
            "prompt_tokens": 1_000,
            "completion_tokens": 20,
            "prompt_cache_hit_tokens": 600,
            "prompt_cache_miss_tokens": 400,
        },
        "23:00",
        400 * 0.135 + 600 * 0.035 + 20 * 0.55,
    ),
    # https://ai.google.dev/gemini-api/docs/pricing: output includes thinking, which chat
    # completions report in the total alone.
    "Google": (
        "https://generativelanguage.googleapis.com/v1beta/openai/",
        "gemini-2.5-flash",
        {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 105},
        "12:00",
        9 * 0.3 + (3 + 93) * 2.5,
    ),
    "OpenAI": (
        "https://api.openai.com/v1",
        "gpt-4o-mini",
        OPENAI,
        "12:00",
        40 * 0.15 + 60 * 0.075 + 20 * 0.6,
    ),
}


@pytest.mark.parametrize(
    ("base_url", "model", "reported", "clock", "micro_usd"), BILLS.values(), ids=BILLS
)
def test_a_call_costs_what_the_vendors_price_list_says(
    base_url: str, model: str, reported: dict[str, Any], clock: str, micro_usd: float
) -> None:
    """The cost is computed by hand from the report in the vendor's own form."""
    at = datetime.fromisoformat(f"2026-11-26T{clock}Z")  # a Thursday
    prices, usage = known("openai", model, base_url, at.date()), read(base_url, reported)
    assert prices and usage

    assert float(prices.cost(usage, at) * 1_000_000) == pytest.approx(micro_usd, abs=0.01)


FLAVORS = {"chat": ("chat", "default"), "responses": ("responses",), "messages": ("anthropic",)}


_OPTIONAL = r"\(\?:/\|\$\)|\(/\|\$\)|\((?:[^()]|\([^()]*\))*\)\?"


def shapes() -> Iterator[tuple[str, str, str, UsageExtractor]]:
    """Yield each form of report that the library has for an API that we call, and an address."""
    for vendor_ in get_snapshot().providers:
        plain = re.sub(_OPTIONAL, "", vendor_.api_pattern)
        url = re.sub(r"\[[^]]*\][+*]|\.\*", "x", plain.replace("\\", ""))
        if not url.startswith("https://") or re.search(r"[()|\[\]^$]", url):
            continue
        by_name = {extractor.api_flavor: extractor for extractor in vendor_.extractors or ()}
        for api, names in FLAVORS.items():
            if vendor_.id == "anthropic" and api == "messages":
                names = ("default",)
            name = next((name for name in names if name in by_name), None)
            extractor = by_name.get(name or "")
            if extractor is not None and _is_of_tokens(extractor):
                yield vendor_.id, api, url, extractor


def _is_of_tokens(extractor: UsageExtractor) -> bool:
    """Return whether it reads a form of OpenAI's or Anthropic's."""
    required = {mapping.path for mapping in extractor.mappings if mapping.required}
    return bool(required & {"prompt_tokens", "input_tokens"})


SHAPES = [shape for shape in shapes() if shape[0] not in ("openai-decisions", "typesafe")]


def test_the_library_knows_many_forms() -> None:
    """The test below is not empty, and has the forms that differ."""
    assert len(SHAPES) >= 30
    assert {"x-ai", "moonshotai", "deepseek", "groq", "aws"} <= {shape[0] for shape in SHAPES}


@pytest.mark.parametrize(
    ("api", "url", "extractor"),
    [shape[1:] for shape in SHAPES],
    ids=[f"{vendor_}-{api}" for vendor_, api, *_ in SHAPES],
)
def test_every_form_of_the_library_adds_up(api: str, url: str, extractor: UsageExtractor) -> None:
    """Each field of a report counts for what the library says, added up by hand."""
    reported: dict[str, Any] = {}
    expected: dict[str, int] = {}
    tokens: dict[str, int] = {}
    for mapping in extractor.mappings:
        path = [mapping.path] if isinstance(mapping.path, str) else mapping.path
        if not all(isinstance(part, str) for part in path):
            continue
        names = [str(part) for part in path]
        name = ".".join(names)
        is_total = name in ("prompt_tokens", "input_tokens", "completion_tokens", "output_tokens")
        value = tokens.setdefault(name, 100_000 if is_total else 10 + len(tokens))
        place = reported
        for part in names[:-1]:
            place = place.setdefault(part, {})
        place[names[-1]] = value
        expected[mapping.dest] = expected.get(mapping.dest, 0) + value

    usage = read(url, reported, api)

    assert usage is not None
    for field_, dest in (
        ("input_tokens", "input_tokens"),
        ("output_tokens", "output_tokens"),
        ("cache_read_tokens", "cache_read_tokens"),
        ("cache_write_tokens", "cache_write_tokens"),
        ("reasoning_tokens", "output_reasoning_tokens"),
    ):
        assert expected.get(dest, 0) == getattr(usage, field_), field_
