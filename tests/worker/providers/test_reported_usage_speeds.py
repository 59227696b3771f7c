"""Faster and cheaper processing, which vendors bill at prices of its own.

Sources: https://developers.openai.com/api/docs/guides/priority-processing (`service_tier` of the
response is the one that was used) and
https://platform.claude.com/docs/en/build-with-claude/fast-mode (`usage.speed`).
"""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import genai_prices
import pytest

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.prices import Prices, known
from arkloop.worker import providers
from arkloop.worker.agent.model_call import call_model
from arkloop.worker.agent.retry import MAX_TRIES
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.contract.messages import ModelRequest, TurnEnd
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.providers import Provider
from tests.worker.providers.anthropic_answers import finish, start, text
from tests.worker.providers.fake_vendor import (
    REQUEST,
    anthropic_stream,
    delta,
    openai_stream,
    raw,
    vendor,
)
from tests.worker.providers.openai_responses_calls import call
from tests.worker.providers.openai_vendor import message
from tests.worker.recorded_run import RecordedRun

SOL, OPUS = "gpt-6.1-sol", "claude-opus-5-5"
APIS = pytest.mark.parametrize("api", ["responses", "chat"])


def at_openai(api: str = "responses", **fields: Any) -> Route:
    values = {"prices": known("openai", SOL, None), **fields}
    return Route(id="r", provider="openai", model=SOL, api=api, **values)


def at_anthropic() -> Route:
    return Route(id="r", provider="anthropic", model=OPUS, prices=known("anthropic", OPUS, None))


def ordering(**extra: str) -> ModelRequest:
    return replace(REQUEST, settings={"extra_body": extra}, max_output_tokens=10_000)


def load(route: Route) -> Provider:
    return providers.load(route, faults=False)


def openai_answer(api: str, tier: str | None) -> bytes:
    """Build a response of 100,000 tokens of input and 10,000 of output, processed in this tier."""
    served = {} if tier is None else {"service_tier": tier}
    if api == "responses":
        usage = {"input_tokens": 100_000, "output_tokens": 10_000}
        final = {"status": "completed", "output": [message("m1", "Hi")], "usage": usage, **served}
        return openai_stream({"type": "response.completed", "response": final})
    usage = {"prompt_tokens": 100_000, "completion_tokens": 10_000}
    last = {**delta(), "choices": [], "usage": usage}
    return openai_stream({**delta(content="Hi"), **served}, delta(finish="stop"), last)


def anthropic_answer(speed: str | None) -> bytes:
    begun = start(input_tokens=100_000, output_tokens=1, service_tier="standard", speed=speed)
    return anthropic_stream(begun, *text(0, "Hi"), finish("end_turn", output_tokens=10_000))


def counted(route: Route, answer: bytes, request: ModelRequest = REQUEST) -> Decimal:
    """Make a call, and return what it costs."""
    with vendor(raw(answer)) as fake:
        end = call(replace(route, base_url=fake.url), request)[0][-1]
    assert isinstance(end, TurnEnd) and end.usage is not None
    return route.cost(end.usage)


def billed(provider: str, model: str, **how: str) -> Decimal:
    """Return what the vendor bills for the call, by the price library."""
    return genai_prices.calc_price(
        genai_prices.Usage(input_tokens=100_000, output_tokens=10_000),
        model,
        provider_id=provider,
        genai_request_timestamp=datetime.now(UTC),
        price_context=how,
    ).total_price


@APIS
@pytest.mark.parametrize(
    ("tier", "usd"),
    [
        (None, "0.3"),
        ("auto", "0.3"),
        ("default", "0.3"),
        ("priority", "0.6"),
        ("fast", "0.6"),
        ("flex", "0.15"),
        ("ultrafast", "0.3"),  # the library has no price for it
    ],
)
def test_a_call_at_openai_costs_the_price_of_its_tier(api: str, tier: str | None, usd: str) -> None:
    """The response names the tier, whether the request or the project's setting ordered it."""
    cost = counted(at_openai(api), openai_answer(api, tier))

    assert Decimal(usd) == cost == billed("openai", SOL, service_tier=tier or "default")


@APIS
def test_an_ordered_tier_that_was_not_used_is_not_paid(api: str) -> None:
    """OpenAI falls back to its usual tier when it is asked for too much of another."""
    ordered = ordering(service_tier="priority")

    assert Decimal("0.3") == counted(at_openai(api), openai_answer(api, "default"), ordered)


@pytest.mark.parametrize(("speed", "usd"), [(None, "0.6"), ("standard", "0.6"), ("fast", "1.2")])
def test_a_call_at_anthropic_costs_the_price_of_its_speed(speed: str | None, usd: str) -> None:
    """The speed is part of the reported usage, at its beginning."""
    cost = counted(at_anthropic(), anthropic_answer(speed))

    assert Decimal(usd) == cost == billed("anthropic", OPUS, speed=speed or "standard")


@APIS
def test_given_prices_are_those_of_any_tier(api: str) -> None:
    """An operator or an org that sets the prices knows what is ordered."""
    prices = Prices.of(input=Decimal(1), output=Decimal(1))

    cost = counted(at_openai(api, prices=prices), openai_answer(api, "priority"))

    assert Decimal("0.11") == cost


@pytest.mark.parametrize(
    ("route", "order", "dearer"),
    [
        (at_openai(), {"service_tier": "priority"}, True),
        (at_openai("chat"), {"service_tier": "fast"}, True),
        (at_anthropic(), {"speed": "fast", "service_tier": "auto"}, True),
        (at_openai(), {"service_tier": "flex"}, False),  # it may be answered at the usual price
        (at_openai(), {"service_tier": "auto"}, False),
        (at_openai(), {}, False),
    ],
)
def test_what_a_request_orders_is_reserved(
    route: Route, order: dict[str, str], dearer: bool
) -> None:
    """Only a request that orders a tier reserves its price: a project's setting is not known."""
    provider = providers.load(route, faults=False)
    provider.close()
    assert route.prices

    worst = provider.worst_case(ordering(**order))

    assert route.prices.at_most(worst) == (2 if dearer else 1) * (
        route.prices.at_most(replace(worst, speed=""))
    )
    assert route.cost(worst) <= route.prices.at_most(worst)


def cost_of_whole(route: Route, answer: bytes, request: ModelRequest) -> Decimal:
    """Make a call with this response; return what the run costs."""
    run = RecordedRun()
    with vendor(raw(answer)) as fake:
        chain = RouteChain([replace(route, base_url=fake.url)], load)
        call_model(chain, lambda _: request, run, run.stop)
    return run.totals.cost_usd


def cost_of_broken(route: Route, answer: bytes, request: ModelRequest) -> Decimal:
    """Make a call that breaks off after this beginning of a response; return what the run costs."""
    run = RecordedRun()
    with vendor(*[raw(answer)] * MAX_TRIES) as fake, pytest.raises(ProviderError):
        chain = RouteChain([replace(route, base_url=fake.url)], load)
        call_model(chain, lambda _: request, run, run.stop)
    return run.totals.cost_usd


@APIS
@pytest.mark.parametrize(("tier", "factor"), [("priority", 2), ("flex", Decimal("0.5"))])
def test_a_broken_call_is_estimated_at_the_price_that_it_ordered(
    api: str, tier: str, factor: Decimal
) -> None:
    """No usage has come: the vendor bills the call as it was ordered."""
    said = delta(content="Hi" * 400)
    if api == "responses":
        said = {"type": "response.output_text.delta", "item_id": "m", "delta": "Hi" * 400}
    begun = openai_stream(said, done=False)

    cost = cost_of_broken(at_openai(api), begun, ordering(service_tier=tier))

    # The order itself is sent, too, and takes some tokens.
    usual = cost_of_broken(at_openai(api), begun, ordering(service_tier="x" * len(tier)))
    assert usual > 0
    assert factor * usual == cost


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize(
    ("ordered", "tier", "factor"),
    [("priority", "default", 1), ("default", "priority", 2), ("default", "flex", Decimal("0.5"))],
)
def test_the_tier_in_chunks_counts_without_a_report(
    ordered: str, tier: str, factor: Decimal, is_whole: bool
) -> None:
    """Each chunk of a chat completion names the tier; some servers report no usage at the end."""

    def cost(served: dict[str, str], order: str) -> Decimal:
        chunks = [{**delta(content="Hi" * 400), **served}]
        chunks += [{**delta(finish="stop"), **served}] * is_whole
        answer = openai_stream(*chunks, done=is_whole)
        request = ordering(service_tier=order)
        made = cost_of_whole if is_whole else cost_of_broken
        return made(at_openai("chat"), answer, request)

    usual = cost({}, "x" * len(ordered))
    assert usual > 0
    assert factor * usual == cost({"service_tier": tier}, ordered)


@pytest.mark.parametrize(("speed", "usd"), [("standard", "1.60008"), ("fast", "3.20016")])
def test_a_broken_call_costs_the_price_of_the_speed_that_was_reported(speed: str, usd: str) -> None:
    """Anthropic reports it before the first word, in each of the tries."""
    begun = anthropic_stream(
        start(input_tokens=100_000, output_tokens=1, speed=speed),
        *text(0, "Hi"),
        stop=False,
    )

    assert Decimal(usd) == cost_of_broken(at_anthropic(), begun, ordering(speed="fast"))
