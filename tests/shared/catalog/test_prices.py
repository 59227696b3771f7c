"""Prices: to the last digit, an upper bound that is one, and what the library knows."""

import itertools
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arkloop.shared.catalog.prices import Hours, Prices, Tier, context_tokens, known
from arkloop.shared.events.usage import Usage

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[3]
HAIKU = Prices(
    input=Decimal(1),
    output=Decimal(5),
    cache_read=Decimal("0.1"),
    cache_write=Decimal("1.25"),
    cache_write_1h=Decimal(2),
)
LONG = Prices(
    input=Decimal(3),
    output=Decimal(15),
    cache_read=Decimal("0.3"),
    cache_write=Decimal("3.75"),
    cache_write_1h=Decimal(6),
    tiers=(
        Tier(
            above_input_tokens=200_000,
            input=Decimal(6),
            output=Decimal("22.5"),
            cache_read=Decimal("0.6"),
            cache_write=Decimal("7.5"),
            cache_write_1h=Decimal(12),
        ),
    ),
)

#: Where compatible vendors are called.
URLS = {
    "deepseek": "https://api.deepseek.com",
    "x-ai": "https://api.x.ai/v1",
    "moonshotai": "https://api.moonshot.ai/v1",
}
OPENROUTER = "https://openrouter.ai/api/v1"

PRICES = st.decimals(0, 1_000_000, places=4)
TOKENS = st.integers(0, 500)


@st.composite
def priced(draw: st.DrawFn) -> Prices:
    """Draw any prices, with up to three tiers, of which some may be cheaper, other hours and
    speeds.
    """
    hours = [
        Hours(start=draw(st.times()), end=draw(st.times()), prices=draw(priced_at_any_hour()))
        for _ in range(draw(st.integers(0, 2)))
    ]
    speeds = draw(st.dictionaries(st.sampled_from(["fast", "flex"]), priced_at_any_hour()))
    return replace(draw(priced_at_any_hour()), hours=tuple(hours), speeds=speeds)


@st.composite
def priced_at_any_hour(draw: st.DrawFn) -> Prices:
    """Draw any prices with up to three tiers."""
    names = ("input", "output", "cache_read", "cache_write", "cache_write_1h")
    starts = draw(st.lists(st.integers(0, 500), max_size=3, unique=True).map(sorted))
    tiers = tuple(
        Tier(above_input_tokens=start, **{name: draw(PRICES) for name in names}) for start in starts
    )
    return Prices(**{name: draw(PRICES) for name in names}, tiers=tiers)


@settings(max_examples=500)
@given(
    *(priced(), TOKENS, TOKENS, TOKENS, TOKENS, TOKENS, TOKENS, st.datetimes()),
    st.sampled_from(["", "fast", "flex"]),
    st.booleans(),
)
def test_at_most_is_above_the_cost_of_whatever_is_used(
    prices: Prices,
    more_in: int,
    more_out: int,
    fresh: int,
    read: int,
    written: int,
    output: int,
    at: datetime,
    ordered: str,
    is_served: bool,
) -> None:
    """However it is cached, whichever tier it gets into, at any time of the day, and whether the
    vendor processes it at the speed that was ordered or at its usual one.
    """
    used = Usage(
        input_tokens=fresh,
        output_tokens=output,
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_1h_tokens=written // 2,
        speed=ordered if is_served else "",
    )
    most = fresh + more_in
    worst = Usage(
        input_tokens=most,
        output_tokens=output + more_out,
        cache_write_tokens=most if written else 0,
        cache_write_1h_tokens=most if written // 2 else 0,
        speed=ordered,
    )

    assert prices.cost(used, at.replace(tzinfo=UTC)) <= prices.at_most(worst)


@given(priced(), TOKENS, TOKENS)
def test_costs_have_eight_decimals_and_are_not_negative(
    prices: Prices, input_tokens: int, output_tokens: int
) -> None:
    """Costs fit their column: eight decimals, never negative."""
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
    """A price tier applies to all tokens of a call, including its output, as vendors bill it."""
    assert Decimal(expected) == LONG.cost(Usage(input_tokens=input_tokens, output_tokens=1))


def test_a_price_of_the_cache_that_nobody_gave_is_that_of_input() -> None:
    """A cache price that is not given is that of input, never 0."""
    prices = Prices.of(input=Decimal(2), output=Decimal(3))
    assert (
        Prices(input=Decimal(2), output=Decimal(3), cache_read=Decimal(2), cache_write=Decimal(2))
        == prices
    )
    given_one = Prices.of(input=Decimal(2), output=Decimal(3), cache_read=Decimal(0))
    assert (Decimal(0), Decimal(2)) == (given_one.cache_read, given_one.cache_write)


# ---- the library ---------------------------------------------------------------------


def test_the_vendors_own_models_are_known() -> None:
    """Models without an address are the vendor's, as is the SDK's default."""
    assert HAIKU == known("anthropic", "claude-haiku-4-5", None)
    assert HAIKU == known("anthropic", "claude-haiku-4-5", "https://api.anthropic.com")
    assert Prices(
        input=Decimal("0.5"),
        output=Decimal("1.5"),
        cache_read=Decimal("0.5"),
        cache_write=Decimal("0.5"),
    ) == known("openai", "gpt-3.5-turbo", None)
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
        ("openai", "sonar", "https://api.perplexity.ai"),  # each request has a price too
        # The library has models of no price that is known, besides free ones.
        ("openai", "gemma-3n", "https://generativelanguage.googleapis.com/v1beta/openai"),
        ("openai", "stealth/crouton-alpha", OPENROUTER),
        ("openai", "of-nobody/a-model:free", OPENROUTER),
    ],
)
def test_what_is_not_known_for_sure_has_no_price(
    provider: str, model: str, base_url: str | None
) -> None:
    """Other servers, other models, and prices that are not by token alone."""
    assert known(provider, model, base_url) is None


def test_models_that_are_free_cost_nothing() -> None:
    """OpenRouter's variants `:free` have no values in the library, and runs under a budget."""
    assert Prices() == known("openai", "qwen/qwen3-coder:free", OPENROUTER)
    paid = known("openai", "qwen/qwen3-coder", OPENROUTER)
    assert paid is not None
    assert paid.input > 0


def test_well_known_servers_are_known_too() -> None:
    """Servers are recognised by their address; a cache price that they do not name is that of
    input.
    """
    prices = known("openai", "llama-3.3-70b-versatile", "https://api.groq.com/openai/v1")

    assert prices is not None
    assert prices.input == prices.cache_read == prices.cache_write > 0 < prices.output


def test_costs_are_those_that_the_library_finds() -> None:
    """Token by token, below and above a tier, at each speed, for every model that has prices of
    the vendors'.
    """
    from genai_prices import Usage as TheirUsage
    from genai_prices import calc_price
    from genai_prices.data_snapshot import get_snapshot

    speeds: set[str] = set()
    compared, day = 0, datetime(2026, 11, 26, 0, 30, tzinfo=UTC)  # a Thursday
    for vendor in get_snapshot().providers:
        if vendor.id not in ("openai", "anthropic", "deepseek", "x-ai", "moonshotai"):
            continue
        url = URLS.get(vendor.id)
        for model in vendor.models:
            prices = known(vendor.id, model.id, url, day.date())
            if prices is None:
                continue
            for tokens in (1_000, 250_000, 300_000):
                written = 20 if prices.cache_write != prices.input else 0
                # The library has no price of OpenAI's writes for 12 hours.
                has_long = prices.cache_write_1h is not None and vendor.id != "openai"
                counts = {
                    "input_tokens": tokens,
                    "output_tokens": 77,
                    "cache_read_tokens": tokens // 3,
                    "cache_write_tokens": written,
                    "cache_write_1h_tokens": written // 2 if has_long else 0,
                }
                hours = range(0, 24, 3 if prices.hours else 24)
                for hour, speed in itertools.product(hours, ["", *prices.speeds]):
                    at = day.replace(hour=hour)
                    theirs = calc_price(
                        TheirUsage(**counts),
                        model.id,
                        provider_id=vendor.id,
                        genai_request_timestamp=at,
                        price_context={"speed": speed, "service_tier": speed},
                    )
                    ours = prices.cost(Usage(**counts, speed=speed), at)
                    assert round(theirs.total_price, 8) == ours, (model.id, hour, speed)
                    compared += 1
                    speeds.add(speed)
    assert compared > 400
    assert {"", "default", "fast", "priority", "flex"} == speeds


def test_prices_may_depend_on_the_hour() -> None:
    """DeepSeek costs twice as much in two parts of the day; shown is the lower price."""
    prices = known("openai", "deepseek-v4-pro", "https://api.deepseek.com")
    assert prices is not None
    million = Usage(input_tokens=1_000_000)
    day = datetime(2026, 11, 26, tzinfo=UTC)

    by_hour = [prices.cost(million, day.replace(hour=hour)) for hour in range(24)]

    peak = [1, 2, 3, 6, 7, 8, 9]
    assert peak == [hour for hour, cost in enumerate(by_hour) if cost == Decimal("1.32")]
    assert {Decimal("0.66"), Decimal("1.32")} == set(by_hour)
    assert (Decimal("0.66"), Decimal("1.32")) == (prices.input, prices.at_most(million))


@pytest.mark.parametrize(
    ("day", "peak"),
    [
        (27, [1, 2, 3, 6, 7, 8, 9]),  # Friday
        (28, []),
        (29, []),
        (30, [1, 2, 3, 6, 7, 8, 9]),
    ],
)
def test_weekends_have_one_price(day: int, peak: list[int]) -> None:
    """Saturdays and Sundays are cheap all day: https://api-docs.deepseek.com/quick_start/pricing."""
    prices = known("openai", "deepseek-flash", "https://api.deepseek.com", date(2026, 11, 28))
    assert prices is not None
    used = Usage(input_tokens=1_000_000, output_tokens=100_000)

    by_hour = [
        prices.cost(used, datetime(2026, 11, day, hour, 30, tzinfo=UTC)) for hour in range(24)
    ]

    assert peak == [hour for hour, cost in enumerate(by_hour) if cost == Decimal("0.42")]
    assert {Decimal("0.21")} == {cost for hour, cost in enumerate(by_hour) if hour not in peak}
    assert Decimal("0.42") == prices.at_most(used)


def test_prices_may_end_on_a_day() -> None:
    """Prices are those of the day in UTC that is asked about."""
    found = [known("openai", "gpt-5.6-sol", None, date(2026, 8, day)) for day in (20, 21)]

    assert [5, 4] == [prices and prices.input for prices in found]


@pytest.mark.parametrize(
    ("start", "end", "within", "outside"), [(1, 4, 1, 4), (22, 2, 23, 2), (22, 2, 1, 21)]
)
def test_hours_may_go_over_midnight(start: int, end: int, within: int, outside: int) -> None:
    """The end does not belong to them."""
    hours = Hours(start=time(start), end=time(end), prices=HAIKU)

    assert hours.contains(time(within))
    assert not hours.contains(time(outside))


def test_the_context_of_a_model_is_known() -> None:
    """A model's context is known where the library has it."""
    assert 200_000 == context_tokens("anthropic", "claude-haiku-4-5", None)
    assert 128_000 == context_tokens("openai", "gpt-4o-mini", None)
    assert context_tokens("openai", "gpt-4o-mini", "http://127.0.0.1:1/v1") is None


def test_the_library_is_loaded_where_it_is_needed_and_asks_nobody() -> None:
    """A process without such routes does without it; with them no thread and no socket is made."""
    program = (
        "import socket, sys, threading\n"
        "from arkloop.shared.catalog.prices import known\n"
        "def refuse(*args): raise AssertionError('the network was asked')\n"
        "socket.socket.connect = refuse\n"
        "known('scripted', 'scripted-1', None), known('openai', 'm', 'http://127.0.0.1:1')\n"
        "assert 'genai_prices' not in sys.modules\n"
        "assert known('openai', 'gpt-4o-mini', None)\n"
        "from genai_prices import data_snapshot\n"
        "assert data_snapshot._custom_snapshot is None\n"
        "assert 1 == threading.active_count()\n"
    )

    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=180)
