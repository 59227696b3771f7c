"""Routes: built in where their settings are there, more from a file, one chosen for a run."""

from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from arkloop.shared.catalog.model_routes import (
    PROVIDERS,
    ROUTE_ID,
    Route,
    default_id,
    load,
    priced_on,
)
from arkloop.shared.catalog.prices import Prices
from arkloop.shared.config import InvalidSettings, Settings
from arkloop.shared.events.usage import Usage
from arkloop.worker import providers
from tests.blank_settings import BLANK


def from_file(folder: Path, text: str) -> dict[str, Route]:
    path = folder / "routes.yaml"
    path.write_text(text)
    return dict(load(replace(BLANK, routes_file=str(path))))


@pytest.mark.parametrize(
    ("settings", "routes"),
    [
        ({}, []),
        ({"scripted": True}, ["scripted"]),
        ({"openai_api_key": "k"}, ["openai"]),
        ({"local_base_url": "http://127.0.0.1:1/v1"}, ["local"]),
        ({"openai_api_key": "k", "scripted": True}, ["openai", "scripted"]),
        ({"anthropic_api_key": "k", "scripted": True}, ["anthropic", "scripted"]),
    ],
)
def test_a_route_is_there_when_its_settings_are(
    settings: dict[str, object], routes: list[str]
) -> None:
    """The scripted one only where it is allowed."""
    assert routes == list(load(replace(BLANK, **settings)))


def test_the_scripted_route_has_the_contracts_prices() -> None:
    """It costs 1 USD per million tokens in, 2 out, 0.1 from the cache."""
    route = load(replace(BLANK, scripted=True))["scripted"]
    usage = Usage(input_tokens=1_000_000, output_tokens=1_000_000, cache_read_tokens=500_000)

    assert ("scripted", "scripted-1") == (route.provider, route.model)
    assert Decimal("2.55") == route.cost(usage)


def test_a_route_without_prices_costs_nothing() -> None:
    """What it really costs nobody knows: a budget refuses it."""
    route = Route(id="r", provider="openai", model="m")

    assert Decimal(0) == route.cost(Usage(input_tokens=1_000_000))


def test_the_vendors_routes_have_known_prices_and_context() -> None:
    """Prices and context are known for the vendors' routes, not behind other addresses."""
    keys = {"openai_api_key": "k", "anthropic_api_key": "k"}
    routes = load(replace(BLANK, **keys))
    elsewhere = load(replace(BLANK, **keys, openai_base_url="http://127.0.0.1:1/v1"))

    openai, anthropic = routes["openai"], routes["anthropic"]
    assert ("openai", "gpt-4o-mini", 128_000) == (
        openai.provider,
        openai.model,
        openai.context_tokens,
    )
    assert openai.prices and Decimal("0.15") == openai.prices.input
    assert ("anthropic", "claude-haiku-4-5", 200_000) == (
        anthropic.provider,
        anthropic.model,
        anthropic.context_tokens,
    )
    assert anthropic.prices and Decimal("1.25") == anthropic.prices.cache_write
    assert (None, None) == (elsewhere["openai"].prices, elsewhere["openai"].context_tokens)


def test_prices_of_the_library_are_those_of_the_day() -> None:
    """Prices that end on a day do so for routes that were loaded before; those given stay."""
    settings = replace(BLANK, openai_api_key="k", openai_model="gpt-5.6-sol", scripted=True)
    routes = load(settings)

    found = [priced_on(routes, date(2026, 8, day)) for day in (20, 21)]

    assert [5, 4] == [of["openai"].prices and of["openai"].prices.input for of in found]
    assert [routes["scripted"]] * 2 == [of["scripted"] for of in found]


def test_the_anthropic_route_is_set_by_its_variables() -> None:
    """The variables of the Anthropic route set its key, address and model."""
    route = load(
        replace(
            BLANK,
            anthropic_api_key="secret",
            anthropic_base_url="http://127.0.0.1:1",
            anthropic_model="m",
        )
    )["anthropic"]

    assert ("secret", "http://127.0.0.1:1", "m") == (route.api_key, route.base_url, route.model)
    assert "secret" not in repr(route)


def test_the_local_model_is_free() -> None:
    """The local model's price is 0 and not unknown, so that runs with a budget may use it."""
    assert Prices() == load(replace(BLANK, local_base_url="http://127.0.0.1:1/v1"))["local"].prices


@pytest.mark.parametrize(("given", "tokens"), [(None, None), ("", None), ("4096", 4096)])
def test_the_local_model_has_the_context_that_it_is_given(
    given: str | None, tokens: int | None
) -> None:
    """The local model's context is the configured one; without one nothing is cut."""
    environ = {
        "ARKLOOP_DATABASE_URL": "postgresql://127.0.0.1/x",
        "ARKLOOP_REDIS_URL": "redis://127.0.0.1",
        "ARKLOOP_JWT_SECRET": "x" * 32,
        "ARKLOOP_LOCAL_BASE_URL": "http://127.0.0.1:1/v1",
    }
    if given is not None:
        environ["ARKLOOP_LOCAL_CONTEXT_TOKENS"] = given

    assert tokens == load(Settings.from_env(environ))["local"].context_tokens


def test_each_file_of_a_provider_is_a_provider() -> None:
    """A new one needs no other edit to be a route's."""
    folder = Path(providers.__file__).parent
    files = {file.stem.removesuffix("_provider") for file in folder.glob("*_provider.py")}

    assert files == set(PROVIDERS) >= {"anthropic", "openai", "scripted"}


@pytest.mark.parametrize(
    ("there", "default"),
    [
        (["scripted", "local", "openai"], "openai"),
        (["scripted", "local"], "local"),
        (["other", "scripted"], "scripted"),
        (["other"], "other"),
        ([], None),
    ],
)
def test_the_default_route_is_the_first_of_an_order(there: list[str], default: str | None) -> None:
    """The order is openai, anthropic, local, scripted, then any other."""
    routes = {name: Route(id=name, provider="scripted", model="m") for name in there}

    assert default == default_id(routes)


def test_a_file_adds_routes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's route has an address, a key from a variable, and prices; cache reads cost what input
    does.
    """
    monkeypatch.setenv("MY_KEY", "secret\n")  # as from a file
    routes = from_file(
        tmp_path,
        """
        routes:
          - id: mine:small
            provider: openai
            model: small
            base_url: http://10.0.0.1/v1
            api_key_variable: MY_KEY
            prices: {input: 0.15, output: 0.6}
          - {id: test, provider: scripted, model: scripted-1}
        """,
    )

    assert {
        "mine:small": Route(
            id="mine:small",
            provider="openai",
            model="small",
            base_url="http://10.0.0.1/v1",
            api_key="secret",
            prices=Prices.of(input=Decimal("0.15"), output=Decimal("0.6")),
        ),
        "test": Route(id="test", provider="scripted", model="scripted-1"),
    } == routes
    assert "secret" not in repr(routes)


def test_a_route_of_a_file_has_limits_of_its_own(tmp_path: Path) -> None:
    """Each field is there in the route; what is given comes before what is known."""
    routes = from_file(
        tmp_path,
        """
        routes:
          - id: a
            provider: anthropic
            model: claude-haiku-4-5
            prices: {input: 2, output: 3, cache_read: 0, cache_write: 4}
            max_output_tokens: 1000
            model_settings: {temperature: 0.5, stop: END}
            context_tokens: 8000
            first_byte_seconds: 900
            idle_seconds: 30
            accepts: [image]
            requests_per_minute: 60
            tokens_per_minute: 100000
            priority: 0
          - {id: d, provider: openai, model: m, base_url: "http://here/v1", api: responses}
          - {id: b, provider: anthropic, model: claude-haiku-4-5}
          - {id: c, provider: anthropic, model: claude-haiku-4-5, prices: {input: 0, output: 0}}
        """,
    )

    assert routes["a"] == Route(
        id="a",
        provider="anthropic",
        model="claude-haiku-4-5",
        prices=Prices(
            input=Decimal(2), output=Decimal(3), cache_read=Decimal(0), cache_write=Decimal(4)
        ),
        max_output_tokens=1000,
        model_settings={"temperature": 0.5, "stop": ["END"]},
        context_tokens=8000,
        first_byte_seconds=900,
        idle_seconds=30,
        accepts=("image",),
        requests_per_minute=60,
        tokens_per_minute=100_000,
        priority=0,
    )
    assert "responses" == routes["d"].api == routes["d"].effective_api
    assert (600, 120) == (routes["d"].first_byte_seconds, routes["d"].idle_seconds)
    known = routes["b"]
    assert (200_000, None) == (known.context_tokens, known.priority)
    assert known.prices and Decimal(5) == known.prices.output
    assert Prices() == routes["c"].prices, "no prices are none to pay"


def test_a_route_at_a_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its prices are those of the platform's models, its API that of the vendor."""
    monkeypatch.setenv("AZURE_KEY", "a-key")
    routes = from_file(
        tmp_path,
        """
        routes:
          - {id: a, provider: openai, model: gpt-4o, platform: azure,
             base_url: "https://r.openai.azure.com", api_key_variable: AZURE_KEY}
          - {id: b, provider: anthropic, model: anthropic.claude-haiku-4-5-20251001-v1:0,
             platform: bedrock, region: us-east-1, api_key_variable: AZURE_KEY}
        """,
    )

    azure, bedrock = routes["a"], routes["b"]
    assert ("azure", "responses", "a-key") == (azure.platform, azure.effective_api, azure.api_key)
    assert ("bedrock", "us-east-1") == (bedrock.platform, bedrock.region)
    assert azure.prices and bedrock.prices
    assert azure.server != bedrock.server


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("routes: [{id: a, provider: openai, model: m, platform: x}]", "`platform` must be one of"),
        ("routes: [{id: a, provider: openai, model: m, platform: 1}]", "`platform` must be a str"),
        ("routes: [{id: a, provider: openai, model: m, region: x}]", "`region` requires a"),
        (
            "routes: [{id: a, provider: anthropic, model: m, platform: vertex, region: x}]",
            "`project_id` is required for vertex",
        ),
        (
            "routes: [{id: a, provider: anthropic, model: m, platform: bedrock, region: x}]",
            "`api_key_variable` is required for bedrock",
        ),
        ("", "expected a list under `routes:`"),
        ("[]", "expected a list under `routes:`"),
        ("routes: 1", "expected a list under `routes:`"),
        ("routes: [", "routes.yaml"),
        ("routes: [1]", "route 1: must be a mapping"),
        ("routes: [{id: a, provider: openai}]", "`model` is required and must be a string"),
        ("routes: [{id: 1, provider: openai, model: m}]", "`id` is required and must be a string"),
        ("routes: [{id: a b, provider: openai, model: m}]", "`id` must match"),
        ("routes: [{id: a, provider: x, model: m}]", "`provider` must be one of"),
        ("routes: [{id: a, provider: openai, model: m, more: 1}]", "unknown fields: more"),
        ("routes: [{id: a, provider: openai, model: m, api: both}]", "`api` must be one of"),
        ("routes: [{id: a, provider: openai, model: m, api: [chat]}]", "`api` must be one of"),
        ("routes: [{id: a, provider: anthropic, model: m, api: chat}]", "`provider: openai` only"),
        ("routes: [{id: a, provider: openai, model: m, base_url: 'http://['}]", "`base_url` must"),
        (
            "routes: [{id: a, provider: openai, model: m, api_key_variable: NOT_SET}]",
            "the environment variable NOT_SET is not set",
        ),
        (
            "routes: [{id: a, provider: openai, model: m, api_key_variable: TWO_LINES}]",
            "the environment variable TWO_LINES has characters that no key has",
        ),
        (
            "routes: [{id: a, provider: openai, model: m, api_key_variable: QUOTED}]",
            "the environment variable QUOTED has characters that no key has",
        ),
        ("routes: [{id: a, provider: openai, model: m, prices: 1}]", "`prices` may only contain"),
        (
            "routes: [{id: a, provider: openai, model: m, prices: {}}]",
            "requires `input` and `output`",
        ),
        ("routes: [{id: a, provider: openai, model: m, prices: {output: 1}}]", "0 means free"),
        ("routes: [{id: a, provider: openai, model: m, base_url: nonsense}]", "`base_url` must"),
        ("routes: [{id: a, provider: openai, model: m, base_url: 'http:///v1'}]", "be an address"),
        ("routes: [{id: a, provider: openai, model: m, base_url: 'http://h:99999'}]", "be an addr"),
        ('routes: [{id: a, provider: openai, model: m, base_url: "http://h\\n"}]', "be an address"),
        ("routes: [{id: a, provider: openai, model: m, base_url: 'http://a..b'}]", "be an address"),
        (
            "routes: [{id: a, provider: openai, model: m, prices: {x: 1}}]",
            "`prices` may only contain",
        ),
        (
            "routes: [{id: a, provider: openai, model: m, prices: {input: -1, output: 1}}]",
            "is not a price",
        ),
        (
            "routes: [{id: a, provider: openai, model: m, prices: {input: x, output: 1}}]",
            "is not a price",
        ),
        (
            "routes: [{id: a, provider: openai, model: m, prices: {input: .nan, output: 1}}]",
            "is not a price",
        ),
        (
            "routes: [{id: a, provider: openai, model: m, prices: {input: 1e30, output: 1}}]",
            "is not a price",
        ),
        (
            "routes: [{id: a, provider: openai, model: m, first_byte_seconds: 3601}]",
            "`first_byte_seconds` must be an integer from 1 to 3600",
        ),
        ("routes: [{id: a, provider: openai, model: m, accepts: [audio]}]", "`accepts` must be"),
        ("routes: [{id: a, provider: openai, model: m, accepts: image}]", "`accepts` must be"),
        ("routes: [{id: a, provider: openai, model: m, idle_seconds: 0}]", "`idle_seconds` must"),
        ("routes: [{id: a, provider: openai, model: m, idle_seconds: 0.5}]", "`idle_seconds` must"),
        ("routes: [{id: a, provider: openai, model: m, base_url: 5}]", "`base_url` must be"),
        (
            "routes: [{id: a, provider: openai, model: m, model_settings: {seed: x, top_k: 1}}]",
            "`model_settings`: seed: must be an integer of 64 bits; top_k: unknown setting",
        ),
        (
            "routes: [{id: a, provider: openai, model: m, max_output_tokens: 0}]",
            "`max_output_tokens` must be an integer of at least 1",
        ),
        (
            "routes: [{id: a, provider: openai, model: m, tokens_per_minute: true}]",
            "`tokens_per_minute` must be an integer of at least 1",
        ),
        (
            "routes: [{id: a, provider: openai, model: m, priority: -1}]",
            "`priority` must be an integer of at least 0",
        ),
        (
            "routes: [{id: a, provider: openai, model: m}, {id: a, provider: openai, model: m}]",
            "duplicate id 'a'",
        ),
    ],
)
def test_a_wrong_file_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, problem: str
) -> None:
    """A problem in a routes file is reported with the number of the route."""
    monkeypatch.setenv("TWO_LINES", "sk-1\nsk-2")
    monkeypatch.setenv("QUOTED", "\u201csk-1\u201d")
    with pytest.raises(InvalidSettings) as raised:
        from_file(tmp_path, text)

    assert problem in str(raised.value)
    assert str(raised.value).startswith("ARKLOOP_ROUTES: ")


def test_all_problems_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    """All problems of a routes file are reported at once, one per line."""
    with pytest.raises(InvalidSettings) as raised:
        from_file(tmp_path, "routes: [1, 2, {id: a, provider: openai, model: m}, 3]")

    assert 3 == len(str(raised.value).splitlines())


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A missing routes file is reported at the start, not by the first run."""
    with pytest.raises(InvalidSettings, match="nowhere"):
        load(replace(BLANK, routes_file=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("text", "fits"), [("a", True), ("a:b.c_d-9", True), ("x" * 65, False), ("a@1", False)]
)
def test_ids_have_one_form(text: str, fits: bool) -> None:
    """A route has no version."""
    assert fits == (ROUTE_ID.fullmatch(text) is not None)
