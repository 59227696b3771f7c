"""The routes and personas of an org that a process caches, and when it reads them again."""

import logging
from dataclasses import replace
from decimal import Decimal
from uuid import UUID

import pytest
from sqlalchemy import insert, select, update

from arkloop.shared.catalog import model_routes
from arkloop.shared.catalog.catalog import Catalog
from arkloop.shared.catalog.prices import Prices
from arkloop.shared.errors import PersonaNotFound, RouteNotFound
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.billing import budgets, credit_balances
from arkloop.shared.storage.tables.catalog import llm_providers as llm_providers_table
from arkloop.shared.storage.tables.catalog import personas
from tests.clients import Register
from tests.shared.catalog.org_catalog import BARE, SERVERS, add_model, publish
from tests.stored_runs import StoredRuns


def test_a_route_is_the_orgs_or_the_servers(
    catalog: Catalog, stored: StoredRuns, org: UUID, register: Register
) -> None:
    """A route of another org does not exist for an org, unlike its own and the server's."""
    own = add_model(stored, api_key="sk-secret")
    stranger = register().org_id

    found = catalog.route(org, own)
    assert found is not None
    assert (own, "sk-secret", True) == (found.id, found.api_key, found.is_of_org)
    assert "sk-secret" not in repr(found)
    assert SERVERS["local"] == catalog.route(org, "local")
    assert catalog.route(org, "none") is None
    assert catalog.route(stranger, own) is None


def test_the_run_chooses_before_the_persona_before_the_org_before_the_server(
    catalog: Catalog, stored: StoredRuns, org: UUID
) -> None:
    """The first that names one."""
    assert ("local", "local") == (
        catalog.choose_route(org, None, BARE).id,
        catalog.default_route_id(org),
    )
    default, other = add_model(stored, is_default=True), add_model(stored)
    catalog.forget(org)
    wanting = replace(BARE, route_id=other)

    assert default == catalog.choose_route(org, None, BARE).id == catalog.default_route_id(org)
    assert other == catalog.choose_route(org, None, wanting).id
    assert "scripted" == catalog.choose_route(org, "scripted", wanting).id


def test_a_route_that_is_not_there_is_named(connections: Connections, org: UUID) -> None:
    """The error for a missing route names it, also when the server has no route at all."""
    none = Catalog(connections, {})
    for route_id, persona in ((None, BARE), ("x", BARE), (None, replace(BARE, route_id="x"))):
        with pytest.raises(RouteNotFound) as raised:
            none.choose_route(org, route_id, persona)
        assert ["route_id"] == list(raised.value.details)
    assert none.default_route_id(org) is None


def test_all_routes_are_listed_without_keys(
    catalog: Catalog, stored: StoredRuns, org: UUID
) -> None:
    """The server's first, and always as they are now."""
    assert ["local", "scripted"] == [route.id for route in catalog.routes(org)]
    own = add_model(stored, api_key="sk-secret")

    listed = catalog.routes(org)

    assert ["local", "scripted", own] == [route.id for route in listed]
    assert [None] * 3 == [route.api_key for route in listed]


def test_prices_of_the_servers_routes_are_those_of_today(
    connections: Connections, org: UUID
) -> None:
    """Prices that were found when the process started are no longer used on a later day."""
    settings = replace(connections.settings, openai_api_key="k", openai_model="gpt-5.6-sol")
    today = model_routes.load(settings)["openai"]
    catalog = Catalog(connections, {"openai": replace(today, prices=Prices(input=Decimal(99)))})

    found = [
        catalog.route(org, "openai"),
        catalog.choose_route(org, None, BARE),
        *catalog.chain(org, BARE, "openai"),
    ]

    assert [today] * 3 == found
    assert today.prices == catalog.routes(org)[0].prices


def test_a_key_that_cannot_be_opened_is_lost_and_said_once(
    stored: StoredRuns, org: UUID, caplog: pytest.LogCaptureFixture
) -> None:
    """The org's other routes work; the log names the route. One without a key has lost none."""
    lost, fine = add_model(stored, api_key="sk-1"), add_model(stored)
    settings = replace(
        stored.connections.settings, encryption_key="another key of 32 bytes or more"
    )
    catalog = Catalog(replace(stored.connections, settings=settings), SERVERS)

    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            catalog.forget(org)
            found = catalog.route(org, lost)
            assert found is not None
            assert (None, True) == (found.api_key, found.has_lost_key)
    assert (found := catalog.route(org, fine)) is not None
    assert not found.has_lost_key
    records = [
        record for record in caplog.records if record.name == "arkloop.shared.catalog.catalog"
    ]
    told = [record.getMessage() for record in records]
    assert 1 == len(told)
    assert lost in told[0]
    assert "sk-1" not in caplog.text


def test_a_sealed_key_that_is_copied_to_another_org_stays_sealed(
    catalog: Catalog, stored: StoredRuns, org: UUID, connections: Connections, register: Register
) -> None:
    """A sealed key copied to another org cannot be opened, not even by a process that opened the
    original.
    """
    thief = StoredRuns.of(connections, register())
    mine, theirs = add_model(stored, api_key="sk-1"), add_model(thief, api_key="sk-2")
    sealed = select(llm_providers_table.c.api_key_encrypted).where(
        llm_providers_table.c.org_id == org
    )
    with connections.transaction() as tx:
        tx.sql.execute(
            update(llm_providers_table)
            .where(llm_providers_table.c.org_id == thief.actor.org_id)
            .values(api_key_encrypted=sealed.scalar_subquery())
        )

    opened = catalog.route(org, mine), catalog.route(thief.actor.org_id, theirs)

    assert ["sk-1", None] == [route and route.api_key for route in opened]


def test_a_persona_names_its_fallbacks(catalog: Catalog, stored: StoredRuns, org: UUID) -> None:
    """A chain has the persona's fallbacks in their order after the route itself, without missing
    ones.
    """
    own = add_model(stored, api_key="sk-1", priority=1)
    persona = replace(BARE, fallback_route_ids=("scripted", str(new_id()), own, "local"))

    chain = catalog.chain(org, persona, "local")
    without = catalog.chain(org, persona, str(new_id()))

    expected = [("local", "local"), ("scripted", None), (own, "sk-1")]
    assert expected == [(route.id, route.api_key) for route in chain]
    assert ["scripted", own, "local"] == [route.id for route in without]
    assert [] == catalog.chain(org, BARE, str(new_id()))


def test_the_orgs_default_falls_back_by_priority(
    catalog: Catalog, stored: StoredRuns, org: UUID
) -> None:
    """The lowest comes first, equal priorities by age; a model without one is never taken."""
    default = add_model(stored, is_default=True, priority=0)
    later, never, first, last = (
        add_model(stored, priority=priority) for priority in (5, None, 1, 5)
    )

    route = catalog.choose_route(org, None, BARE)

    assert default == route.id
    chain = [found.id for found in catalog.chain(org, BARE, route.id)]
    assert [default, first, later, last] == chain
    for chosen in (never, "local"):
        assert chosen is not None
        assert [chosen] == [found.id for found in catalog.chain(org, BARE, chosen)]


def test_the_servers_default_falls_back_by_priority(stored: StoredRuns, org: UUID) -> None:
    """The server's default route falls back by priority; its other routes only as a persona
    says.
    """
    local = SERVERS["local"]
    ranked = {name: replace(local, id=name, priority=p) for name, p in (("b", 2), ("a", 1))}
    catalog = Catalog(stored.connections, {**SERVERS, **ranked})

    assert ["local", "a", "b"] == [route.id for route in catalog.chain(org, BARE, "local")]
    assert ["a"] == [route.id for route in catalog.chain(org, BARE, "a")]


def test_an_orgs_own_persona_extends_those_that_are_built_in(
    catalog: Catalog, stored: StoredRuns, org: UUID, register: Register
) -> None:
    """The newest is taken, of whichever; older ones stay for those who name them."""
    assert "assistant@1" == catalog.persona(org, None).id
    publish(stored, "assistant", system_prompt="Ours.", max_cost_usd=0.5)
    catalog.forget(org)

    newest = catalog.persona(org, None)

    assert ("assistant@2", "Ours.", Decimal("0.5")) == (
        newest.id,
        newest.system_prompt,
        newest.max_cost_usd,
    )
    assert newest == catalog.persona(org, "assistant@2") == catalog.persona(org, "assistant")
    assert "assistant@1" == catalog.persona(org, "assistant@1").id
    stranger = register().org_id
    assert "assistant@1" == catalog.persona(stranger, "assistant").id
    with pytest.raises(PersonaNotFound):
        catalog.persona(stranger, "assistant@2")


def test_a_persona_that_does_not_exist_is_named(catalog: Catalog, org: UUID) -> None:
    """The error names the field that has it."""
    for wanted in ("nobody", "assistant@2", "assistant@01", "@1", "Assistant"):
        with pytest.raises(PersonaNotFound) as raised:
            catalog.persona(org, wanted)
        assert [f"Persona {wanted!r} not found."] == raised.value.details["persona_id"]


def test_an_older_version_of_ones_own_does_not_hide_the_builtin(
    catalog: Catalog, stored: StoredRuns, org: UUID
) -> None:
    """A text is no number, hence older than 1."""
    publish(stored, "careful", "draft")

    assert "careful@1" == catalog.persona(org, "careful").id
    assert "careful@draft" == catalog.persona(org, "careful@draft").id


def test_what_was_published_before_it_was_built_in_stays(
    catalog: Catalog, stored: StoredRuns, org: UUID
) -> None:
    """A release that brings the same id changes nothing for this org."""
    with stored.connections.transaction() as tx:
        tx.sql.execute(
            insert(personas).values(
                org_id=org,
                key="plain",
                version="1",
                definition={"system_prompt": "Ours."},
                created_by_user_id=stored.actor.user_id,
            )
        )

    assert "Ours." == catalog.persona(org, "plain@1").system_prompt
    assert "Ours." == catalog.persona(org, "plain").system_prompt


@pytest.mark.parametrize("wanted", ["nobody", "nobody@1", "assistant@99"])
def test_a_persona_that_is_not_there_is_named(catalog: Catalog, org: UUID, wanted: str) -> None:
    """The error for a missing persona names the field that refers to it."""
    with pytest.raises(PersonaNotFound) as raised:
        catalog.persona(org, wanted)
    assert [f"Persona {wanted!r} not found."] == raised.value.details["persona_id"]


@pytest.mark.parametrize("limited_by", ["budgets", "credit_balances"])
def test_an_org_is_limited_by_a_budget_or_by_credits(
    catalog: Catalog, stored: StoredRuns, org: UUID, limited_by: str
) -> None:
    """An org is limited by budgets of any scope or by credits, and by none of other orgs."""
    assert not catalog.is_limited(org)
    row = {
        "budgets": insert(budgets).values(org_id=org, scope="api_key:x", max_cost_usd=1),
        "credit_balances": insert(credit_balances).values(org_id=org, balance=0),
    }[limited_by]
    with stored.connections.transaction() as tx:
        tx.sql.execute(row)
    catalog.forget(org)

    assert catalog.is_limited(org)
