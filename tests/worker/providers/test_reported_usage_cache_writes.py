"""OpenAI's cache writes for 12 hours, which cost twice those for 30 minutes.

Source: https://developers.openai.com/api/docs/models/gpt-6.2-sol, and `ResponseUsage` of the SDK.
"""

from dataclasses import replace
from typing import Any

import pytest

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.prices import known
from arkloop.shared.events.usage import Usage
from arkloop.worker import providers
from arkloop.worker.contract.messages import TurnEnd
from arkloop.worker.providers.reported_usage import UsageReader
from tests.worker.providers.fake_vendor import REQUEST, delta, openai_stream, raw, vendor
from tests.worker.providers.openai_responses_calls import call
from tests.worker.providers.openai_vendor import message

WRITES = {
    "cached_tokens": 0,
    "cache_write_tokens": 200_000,
    "cache_write_tokens_details": {"ttl_12h_tokens": 150_000, "ttl_30m_tokens": 50_000},
}
ORDERED = {"extra_body": {"prompt_cache_options": {"ttl": "12h"}}}


def reported(api: str) -> list[Any]:
    """Return the events of an answer with these cache writes, in the form of the API."""
    if api == "responses":
        usage = {"input_tokens": 200_000, "output_tokens": 100, "input_tokens_details": WRITES}
        final = {"status": "completed", "output": [message("m1", "Hi")], "usage": usage}
        return [{"type": "response.completed", "response": final}]
    counts = {"prompt_tokens": 200_000, "completion_tokens": 100, "prompt_tokens_details": WRITES}
    return [delta(content="Hi"), {**delta(finish="stop"), "usage": counts}]


@pytest.mark.parametrize("api", ["responses", "chat"])
def test_cache_writes_for_twelve_hours_cost_twice_as_much(api: str) -> None:
    """The call costs what OpenAI bills: 5 dollars a million tokens, and 2.50 for 30 minutes."""
    route = Route(id="r", provider="openai", model="gpt-6.1-sol", api=api)
    with vendor(raw(openai_stream(*reported(api)))) as fake:
        end = call(replace(route, base_url=fake.url), REQUEST)[0][-1]

    assert isinstance(end, TurnEnd) and end.usage is not None
    expected = Usage(
        input_tokens=200_000,
        output_tokens=100,
        cache_write_tokens=200_000,
        cache_write_1h_tokens=150_000,
    )
    assert expected == end.usage
    prices = known("openai", "gpt-6.1-sol", None)
    assert prices
    assert 150_000 * 5 + 50_000 * 2.5 + 100 * 10 == float(prices.cost(end.usage) * 1_000_000)


def test_the_worst_case_has_cache_writes_for_twelve_hours() -> None:
    """A request with an `extra_body` may order them: its worst case is an input of nothing else."""
    prices = known("openai", "gpt-6.1-sol", None)
    assert prices
    provider = providers.load(Route(id="r", provider="openai", model="gpt-6.1-sol"), faults=False)
    provider.close()

    worst = provider.worst_case(replace(REQUEST, settings=ORDERED, max_output_tokens=16))

    most = worst.input_tokens
    written = Usage(
        input_tokens=most, output_tokens=16, cache_write_tokens=most, cache_write_1h_tokens=most
    )
    bill = most * 5 + 16 * 10
    assert bill == float(prices.cost(written) * 1_000_000)
    assert bill == float(prices.at_most(worst) * 1_000_000)


@pytest.mark.parametrize(
    ("provider", "model", "base_url", "factor"),
    [
        ("openai", "gpt-6.1-terra", None, 2),
        ("openai", "gpt-6.1-terra", "https://api.openai.com/v1", 2),
        ("openai", "gpt-4o-mini", None, None),  # the vendor has no price for writes
        ("openai", "openai/gpt-5.6-sol", "https://openrouter.ai/api/v1", None),
    ],
)
def test_only_openai_itself_has_such_a_price(
    provider: str, model: str, base_url: str | None, factor: int | None
) -> None:
    """Long contexts have twice the price of their own cache writes; other servers have none."""
    prices = known(provider, model, base_url)

    assert prices
    writes = [(each.cache_write, each.cache_write_1h) for each in prices.tiers]
    for half_an_hour, for_longer in [(prices.cache_write, prices.cache_write_1h), *writes]:
        assert for_longer == (factor and factor * half_an_hour)


@pytest.mark.parametrize("details", [None, 5, {}, {"ttl_12h_tokens": "7"}, {"ttl_12h_tokens": -1}])
def test_writes_without_a_lifetime_are_for_half_an_hour(details: Any) -> None:
    """Most reports have no details; the call is billed all the same."""
    usage = {
        "input_tokens": 9,
        "output_tokens": 1,
        "input_tokens_details": {"cache_write_tokens": 8, "cache_write_tokens_details": details},
    }
    route = Route(id="r", provider="openai", model="gpt-6.1-sol")

    found = UsageReader(route, "responses").read(usage)

    assert Usage(input_tokens=9, output_tokens=1, cache_write_tokens=8) == found
