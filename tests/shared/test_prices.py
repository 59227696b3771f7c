"""Prices: to the last digit, an upper bound that is one, and what the library knows."""

import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.events import Usage
from shared.prices import Prices, Tier, context_tokens, known

ROOT = Path(__file__).parents[2]
HAIKU = Prices(
    input=Decimal(1), output=Decimal(5), cache_read=Decimal("0.1"), cache_write=Decimal("1.25")
)
LONG = Prices(
    input=Decimal(3),
    output=Decimal(15),
    cache_read=Decimal("0.3"),
    cache_write=Decimal("3.75"),
    tiers=(
        Tier(
            above_input_tokens=200_000,
            input=Decimal(6),
            output=Decimal("22.5"),
            cache_read=Decimal("0.6"),
            cache_write=Decimal("7.5"),
        ),
    ),
)

PRICES = st.decimals(0, 1_000_000, places=4)
TOKENS = st.integers(0, 500)


@st.composite
def priced(draw: st.DrawFn) -> Prices:
    """Any prices, with up to three tiers, of which some may be cheaper."""
    names = ("input", "output", "cache_read", "cache_write")
    starts = draw(st.lists(st.integers(0, 500), max_size=3, unique=True).map(sorted))
    tiers = tuple(
        Tier(above_input_tokens=start, **{name: draw(PRICES) for name in names}) for start in starts
    )
    return Prices(**{name: draw(PRICES) for name in names}, tiers=tiers)


@settings(max_examples=500)
@given(priced(), TOKENS, TOKENS, TOKENS, TOKENS, TOKENS, TOKENS)
def test_at_most_is_above_the_cost_of_whatever_is_used(
    prices: Prices, more_in: int, more_out: int, fresh: int, read: int, written: int, output: int
) -> None:
    """However it is cached, and whichever tier it gets into."""
    used = Usage(
        input_tokens=fresh,
        output_tokens=output,
        cache_read_tokens=read,
        cache_write_tokens=written,
    )
    worst = Usage(input_tokens=fresh + more_in, output_tokens=output + more_out)

    assert prices.cost(used) <= prices.at_most(worst)


@given(priced(), TOKENS, TOKENS)
def test_costs_have_eight_decimals_and_are_not_negative(
    prices: Prices, input_tokens: int, output_tokens: int
) -> None:
    """What a column can hold."""
    cost = prices.cost(Usage(input_tokens=input_tokens, output_tokens=output_tokens))

    assert cost >= 0
    assert -8 == cost.as_tuple().exponent


def test_cached_input_has_its_own_prices() -> None:
    """Reads and writes are part of the input: 2 fresh, 4 read, 4 written."""
    usage = Usage(input_tokens=10, output_tokens=3, cache_read_tokens=4, cache_write_tokens=4)

    assert Decimal("0.00002240") == HAIKU.cost(usage)


@pytest.mark.parametrize(
    ("input_tokens", "expected"),
    [(200_000, "0.600015"), (200_001, "1.2000285")],
)
def test_a_tier_counts_for_the_whole_call(input_tokens: int, expected: str) -> None:
    """As the vendors bill it: all tokens at the price of the tier, also those of the output."""
    assert Decimal(expected) == LONG.cost(Usage(input_tokens=input_tokens, output_tokens=1))


def test_a_price_of_the_cache_that_nobody_gave_is_that_of_input() -> None:
    """Never free."""
    prices = Prices.of(input=Decimal(2), output=Decimal(3))
    assert (
        Prices(input=Decimal(2), output=Decimal(3), cache_read=Decimal(2), cache_write=Decimal(2))
        == prices
    )
    given_one = Prices.of(input=Decimal(2), output=Decimal(3), cache_read=Decimal(0))
    assert (Decimal(0), Decimal(2)) == (given_one.cache_read, given_one.cache_write)


# ---- the library ---------------------------------------------------------------------


def test_the_vendors_own_models_are_known() -> None:
    """Without an address the vendor's, which is the SDK's default."""
    assert HAIKU == known("anthropic", "claude-haiku-4-5", None)
    assert HAIKU == known("anthropic", "claude-haiku-4-5", "https://api.anthropic.com")
    assert Prices(
        input=Decimal("0.15"),
        output=Decimal("0.6"),
        cache_read=Decimal("0.075"),
        cache_write=Decimal("0.15"),
    ) == known("openai", "gpt-4o-mini", None)
    assert LONG == known("anthropic", "claude-sonnet-4-5", None)


@pytest.mark.parametrize(
    ("provider", "model", "base_url"),
    [
        ("openai", "gpt-4o-mini", "http://127.0.0.1:8000/v1"),
        ("openai", "gpt-4o-mini", "https://llm.example.com/v1"),
        ("openai", "gpt-4o-mini", "https://api.openai.com.example.com/v1"),
        ("openai", "gpt-4o-mini", "http://api.openai.com/v1"),
        ("openai", "a-model-of-nobody", None),
        ("scripted", "scripted-1", None),
        ("openai", "deepseek-chat", "https://api.deepseek.com/v1"),  # dearer by day
        ("openai", "sonar", "https://api.perplexity.ai"),  # each request has a price too
    ],
)
def test_what_is_not_known_for_sure_has_no_price(
    provider: str, model: str, base_url: str | None
) -> None:
    """Other servers, other models, and prices that are not by token alone."""
    assert known(provider, model, base_url) is None


def test_well_known_servers_are_known_too() -> None:
    """By their address; a cache price that they do not name is that of input."""
    prices = known("openai", "llama-3.3-70b-versatile", "https://api.groq.com/openai/v1")

    assert prices is not None
    assert prices.input == prices.cache_read == prices.cache_write > 0 < prices.output


def test_costs_are_those_that_the_library_finds() -> None:
    """Token by token, below and above a tier, for every model that has prices of the vendors'."""
    from genai_prices import Usage as TheirUsage
    from genai_prices import calc_price
    from genai_prices.data_snapshot import get_snapshot

    compared = 0
    for vendor in get_snapshot().providers:
        if vendor.id not in ("openai", "anthropic"):
            continue
        for model in vendor.models:
            prices = known(vendor.id, model.id, None)
            if prices is None:
                continue
            for tokens in (1_000, 250_000, 300_000):
                written = 20 if prices.cache_write != prices.input else 0
                usage = Usage(
                    input_tokens=tokens,
                    output_tokens=77,
                    cache_read_tokens=tokens // 3,
                    cache_write_tokens=written,
                )
                theirs = calc_price(
                    TheirUsage(
                        input_tokens=tokens,
                        output_tokens=77,
                        cache_read_tokens=tokens // 3,
                        cache_write_tokens=written,
                    ),
                    model.id,
                    provider_id=vendor.id,
                )
                assert round(theirs.total_price, 8) == prices.cost(usage), model.id
                compared += 1
    assert compared > 150


def test_the_context_of_a_model_is_known() -> None:
    """Where the library has it."""
    assert 200_000 == context_tokens("anthropic", "claude-haiku-4-5", None)
    assert 128_000 == context_tokens("openai", "gpt-4o-mini", None)
    assert context_tokens("openai", "gpt-4o-mini", "http://127.0.0.1:1/v1") is None


def test_the_library_is_loaded_where_it_is_needed_and_asks_nobody() -> None:
    """A process without such routes does without it; with them no thread and no socket is made."""
    program = (
        "import socket, sys, threading\n"
        "from shared.prices import known\n"
        "def refuse(*args): raise AssertionError('the network was asked')\n"
        "socket.socket.connect = refuse\n"
        "known('scripted', 'scripted-1', None), known('openai', 'm', 'http://127.0.0.1:1')\n"
        "assert 'genai_prices' not in sys.modules\n"
        "assert known('openai', 'gpt-4o-mini', None)\n"
        "from genai_prices import data_snapshot\n"
        "assert data_snapshot._custom_snapshot is None\n"
        "assert 1 == threading.active_count()\n"
    )

    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)
