"""Usage as vendors report it, each in the words of its own documentation."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shared.catalog.model_routes import Route
from shared.catalog.prices import known
from shared.events.types import Usage
from tests.worker.providers.fake_vendor import (
    anthropic_stream,
    ask,
    delta,
    openai_stream,
    raw,
    vendor,
)
from worker.contract.messages import TurnEnd
from worker.providers.reported_usage import UsageReader

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
        "from shared.catalog.model_routes import Route\n"
        "from worker import providers\n"
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
