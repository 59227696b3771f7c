"""Routes: built in where their settings are there, more from a file, one chosen for a run."""

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from shared import personas
from shared.config import InvalidSettings, Settings
from shared.errors import RouteNotFound
from shared.events import Usage
from shared.model_routes import ROUTE_ID, Route, choose, load

BARE = Settings(database_url="", redis_url="", broker_url="", jwt_secret="")
PERSONA = personas.find("assistant")


def from_file(folder: Path, text: str) -> dict[str, Route]:
    path = folder / "routes.yaml"
    path.write_text(text)
    return dict(load(replace(BARE, routes_file=str(path))))


@pytest.mark.parametrize(
    ("settings", "routes"),
    [
        ({}, []),
        ({"scripted": True}, ["scripted"]),
        ({"openai_api_key": "k"}, ["openai"]),
        ({"local_base_url": "http://127.0.0.1:1/v1"}, ["local"]),
        ({"openai_api_key": "k", "scripted": True}, ["openai", "scripted"]),
    ],
)
def test_a_route_is_there_when_its_settings_are(
    settings: dict[str, object], routes: list[str]
) -> None:
    """The scripted one only where it is allowed."""
    assert routes == list(load(replace(BARE, **settings)))  # type: ignore[arg-type]


def test_the_scripted_route_has_the_contracts_prices() -> None:
    """1 USD per million tokens in, 2 out, 0.1 from the cache."""
    route = load(replace(BARE, scripted=True))["scripted"]
    usage = Usage(input_tokens=1_000_000, output_tokens=1_000_000, cache_read_tokens=500_000)

    assert ("scripted", "scripted-1") == (route.provider, route.model)
    assert Decimal("2.55") == route.cost(usage)


def test_costs_are_decimals_of_eight_places() -> None:
    """Never a binary fraction."""
    route = Route(id="r", provider="openai", model="m", input_price=Decimal("0.15"))

    assert Decimal("0.00000015") == route.cost(Usage(input_tokens=1))
    assert Decimal("0.00000045") == route.cost(Usage(input_tokens=3))


@pytest.mark.parametrize(
    ("wanted", "persona_route", "there", "chosen"),
    [
        (None, None, ["scripted", "local", "openai"], "openai"),
        (None, None, ["scripted", "local"], "local"),
        (None, None, ["other", "scripted"], "scripted"),
        (None, None, ["other"], "other"),
        (None, "local", ["scripted", "local", "openai"], "local"),
        ("scripted", "local", ["scripted", "local"], "scripted"),
    ],
)
def test_the_run_chooses_before_the_persona_before_the_default(
    wanted: str | None, persona_route: str | None, there: list[str], chosen: str
) -> None:
    """The default is the first of openai, anthropic, local, scripted that is there."""
    routes = {name: Route(id=name, provider="scripted", model="m") for name in there}

    assert chosen == choose(routes, wanted, replace(PERSONA, route_id=persona_route)).id


@pytest.mark.parametrize(
    ("wanted", "persona_route"), [("none", None), (None, "none"), (None, None)]
)
def test_a_route_that_is_not_there_is_named(wanted: str | None, persona_route: str | None) -> None:
    """Also when there is none at all."""
    with pytest.raises(RouteNotFound) as raised:
        choose({}, wanted, replace(PERSONA, route_id=persona_route))

    assert ["route_id"] == list(raised.value.details)


def test_a_file_adds_routes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an address, a key from a variable, and prices; cache reads cost what input does."""
    monkeypatch.setenv("MY_KEY", "secret")
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
            input_price=Decimal("0.15"),
            output_price=Decimal("0.6"),
            cache_read_price=Decimal("0.15"),
        ),
        "test": Route(id="test", provider="scripted", model="scripted-1"),
    } == routes
    assert "secret" not in repr(routes)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected a list under `routes:`"),
        ("[]", "expected a list under `routes:`"),
        ("routes: 1", "expected a list under `routes:`"),
        ("routes: [", "routes.yaml"),
        ("routes: [1]", "route 1: must be a mapping"),
        ("routes: [{id: a, provider: openai}]", "`model` is needed, as text"),
        ("routes: [{id: 1, provider: openai, model: m}]", "`id` is needed, as text"),
        ("routes: [{id: a b, provider: openai, model: m}]", "`id` must match"),
        ("routes: [{id: a, provider: x, model: m}]", "`provider` must be one of"),
        ("routes: [{id: a, provider: openai, model: m, more: 1}]", "unknown fields: more"),
        (
            "routes: [{id: a, provider: openai, model: m, api_key_variable: NOT_SET}]",
            "the variable NOT_SET is not set",
        ),
        ("routes: [{id: a, provider: openai, model: m, prices: 1}]", "`prices` may have"),
        ("routes: [{id: a, provider: openai, model: m, prices: {x: 1}}]", "`prices` may have"),
        ("routes: [{id: a, provider: openai, model: m, prices: {input: -1}}]", "is not a price"),
        ("routes: [{id: a, provider: openai, model: m, prices: {input: x}}]", "is not a price"),
        ("routes: [{id: a, provider: openai, model: m, prices: {input: .nan}}]", "is not a price"),
        (
            "routes: [{id: a, provider: openai, model: m}, {id: a, provider: openai, model: m}]",
            "the id 'a' is there twice",
        ),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, problem: str) -> None:
    """With the number of the route."""
    with pytest.raises(InvalidSettings) as raised:
        from_file(tmp_path, text)

    assert problem in str(raised.value)
    assert str(raised.value).startswith("ARKLOOP_ROUTES: ")


def test_all_problems_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    """One a line."""
    with pytest.raises(InvalidSettings) as raised:
        from_file(tmp_path, "routes: [1, 2, {id: a, provider: openai, model: m}, 3]")

    assert 3 == len(str(raised.value).splitlines())


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """At the start, not at the first run."""
    with pytest.raises(InvalidSettings, match="nowhere"):
        load(replace(BARE, routes_file=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("text", "fits"), [("a", True), ("a:b.c_d-9", True), ("x" * 65, False), ("a@1", False)]
)
def test_ids_have_one_form(text: str, fits: bool) -> None:
    """A route has no version."""
    assert fits == (ROUTE_ID.fullmatch(text) is not None)
