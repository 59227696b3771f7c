"""An org's providers and models in the database."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert, select

from arkloop.shared.catalog import llm_providers, org_routes, prices
from arkloop.shared.catalog.prices import Prices
from arkloop.shared.errors import InvalidRequest, ModelNotFound, NameTaken, ProviderNotFound
from arkloop.shared.ids import new_id
from arkloop.shared.sealing import org_keys
from arkloop.shared.security.encryption import keyring
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.tables.catalog import llm_models
from tests.clients import Register
from tests.stored_runs import StoredRuns
from tests.waiting import in_parallel

GIVEN = Prices.of(input=Decimal("0.15"), output=Decimal("0.6"))


@contextmanager
def changing(stored: StoredRuns) -> Iterator[Transaction]:
    with stored.connections.transaction() as tx:
        yield tx


def provider(stored: StoredRuns, name: str = "", **fields: Any) -> UUID:
    with changing(stored) as tx:
        values = {"name": name or str(new_id()), "kind": "openai", **fields}
        return UUID(str(llm_providers.create(tx, stored.actor, **values).id))


def model(stored: StoredRuns, provider_id: UUID, name: str = "", **fields: Any) -> UUID:
    with changing(stored) as tx:
        made = llm_providers.create_model(
            tx, stored.actor, provider_id, model=name or str(new_id()), **fields
        )
        return UUID(str(made.id))


def routes(stored: StoredRuns) -> list[org_routes.SealedRoute]:
    with stored.connections.reading() as sql:
        return org_routes.routes_of(sql, stored.actor.org_id)


@pytest.fixture
def other(connections: Connections, register: Register) -> StoredRuns:
    """Another org."""
    return StoredRuns.of(connections, register())


def test_a_model_is_a_route(stored: StoredRuns) -> None:
    """A model is a route with its provider's address and sealed key."""
    provider_id = provider(
        stored, kind="anthropic", base_url="https://LLM.example.com:8443/v1", api_key="sk-1"
    )
    model_id = model(
        stored,
        provider_id,
        "small",
        priority=3,
        is_default=True,
        prices=GIVEN,
        max_output_tokens=100,
        context_tokens=1000,
        first_byte_seconds=900,
        requests_per_minute=10,
        tokens_per_minute=10_000,
        accepts=["file"],
    )

    [sealed] = routes(stored)

    route = sealed.route
    assert (str(model_id), "anthropic", "small") == (route.id, route.provider, route.model)
    assert "https://llm.example.com:8443/v1" == route.base_url
    assert GIVEN == route.prices
    assert (3, True, True) == (route.priority, route.is_default, route.is_of_org)
    assert (100, 1000) == (route.max_output_tokens, route.context_tokens)
    assert (None, 900, 120) == (route.api, route.first_byte_seconds, route.idle_seconds)
    assert (10, 10_000) == (route.requests_per_minute, route.tokens_per_minute)
    assert ("file",) == route.accepts
    assert route.api_key is None
    keys = keyring(stored.connections.settings.encryption_key)
    assert sealed.api_key is not None
    purpose = llm_providers.API_KEY_PURPOSE
    of_org = {"org_id": stored.actor.org_id, "purpose": purpose}
    assert "sk-1" == org_keys.opened(keys, sealed.org_key, sealed.api_key, **of_org)


def test_prices_and_context_are_the_librarys_where_none_are_given(stored: StoredRuns) -> None:
    """A model without prices or context has the library's for this address, else none."""
    model(stored, provider(stored), "gpt-4o-mini")
    model(stored, provider(stored, base_url="https://llm.example.com/v1"), "gpt-4o-mini")

    known, unknown = (sealed.route for sealed in routes(stored))

    assert prices.known("openai", "gpt-4o-mini", None) == known.prices is not None
    assert prices.context_tokens("openai", "gpt-4o-mini", None) == known.context_tokens
    assert (None, None) == (unknown.prices, unknown.context_tokens)


def test_an_org_has_one_default(stored: StoredRuns, other: StoredRuns) -> None:
    """A new default replaces the old one, and those of other orgs stay."""
    theirs = model(other, provider(other), is_default=True)
    one = provider(stored)
    first = model(stored, one, is_default=True)
    second = model(stored, provider(stored), is_default=True)
    assert [str(second)] == [s.route.id for s in routes(stored) if s.route.is_default]

    with changing(stored) as tx:
        llm_providers.change_model(tx, stored.actor, one, first, is_default=True)
    assert [str(first)] == [s.route.id for s in routes(stored) if s.route.is_default]

    with changing(stored) as tx:
        llm_providers.change_model(tx, stored.actor, one, first, is_default=False)
    assert [] == [s.route.id for s in routes(stored) if s.route.is_default]
    assert [str(theirs)] == [s.route.id for s in routes(other) if s.route.is_default]


def test_concurrent_changes_of_the_default_leave_one_default(stored: StoredRuns) -> None:
    """Sixteen concurrent changes, of new and existing models, succeed; one default remains."""
    provider_id = provider(stored)
    old = [model(stored, provider_id) for _ in range(8)]

    def set_default(number: int) -> None:
        if number < 8:
            with changing(stored) as tx:
                llm_providers.change_model(
                    tx, stored.actor, provider_id, old[number], is_default=True
                )
        else:
            model(stored, provider_id, is_default=True)

    in_parallel(16, set_default)

    assert 1 == sum(sealed.route.is_default for sealed in routes(stored))
    assert 16 == len(routes(stored))


def test_models_and_their_provider_come_and_go_at_once(stored: StoredRuns) -> None:
    """Late changes get the error that it is gone; nothing fails in another way."""
    for _ in range(5):
        provider_id = provider(stored)
        model_id = model(stored, provider_id)

        def act(number: int, of: UUID = provider_id, one: UUID = model_id) -> bool:
            try:
                with changing(stored) as tx:
                    if number == 4:
                        llm_providers.delete_(tx, stored.actor, of)
                    elif number == 5:
                        llm_providers.delete_model(tx, stored.actor, of, one)
                    elif number % 2:
                        llm_providers.change_model(tx, stored.actor, of, one, priority=number)
                    else:
                        llm_providers.create_model(tx, stored.actor, of, model=str(number))
            except (ProviderNotFound, ModelNotFound):
                return False
            return True

        assert in_parallel(8, act)[4]
        assert [] == routes(stored)


def test_names_are_unique_in_an_org(stored: StoredRuns, other: StoredRuns) -> None:
    """Names are unique per org, and per provider for models, at creation and in changes; other orgs
    may use them.
    """
    provider(other, "taken")
    provider_id = provider(stored, "taken")
    second = provider(stored, "free")
    model(stored, provider_id, "m")
    model(stored, second, "m")
    n = model(stored, provider_id, "n")

    with pytest.raises(NameTaken), changing(stored) as tx:
        llm_providers.create(tx, stored.actor, name="taken", kind="openai")
    with pytest.raises(NameTaken), changing(stored) as tx:
        llm_providers.change(tx, stored.actor, second, name="taken")
    with pytest.raises(NameTaken), changing(stored) as tx:
        llm_providers.create_model(tx, stored.actor, provider_id, model="m")
    with pytest.raises(NameTaken), changing(stored) as tx:
        llm_providers.change_model(tx, stored.actor, provider_id, n, model="m")
    with changing(stored) as tx:
        assert "taken" == llm_providers.change(tx, stored.actor, provider_id, name="taken").name


def test_a_provider_comes_with_all_its_models_or_not_at_all(stored: StoredRuns) -> None:
    """A model that is named twice undoes the whole."""
    with pytest.raises(NameTaken):
        provider(stored, "both", models=[{"model": "m"}, {"model": "m"}])
    assert [] == routes(stored)

    provider(stored, "both", models=[{"model": "m"}, {"model": "n", "is_default": True}])
    assert ["m", "n"] == [sealed.route.model for sealed in routes(stored)]


def test_the_limits_on_providers_and_models_are_enforced(
    stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An org cannot add providers or models beyond the limits, which count over all providers."""
    monkeypatch.setattr(llm_providers, "MAX_PROVIDERS", 2)
    monkeypatch.setattr(llm_providers, "MAX_MODELS", 2)
    ids = [provider(stored), provider(stored)]
    for id_ in ids:
        model(stored, id_)

    with pytest.raises(InvalidRequest):
        provider(stored)
    with pytest.raises(InvalidRequest):
        model(stored, ids[0])


def test_a_key_goes_only_where_it_was_given_for(stored: StoredRuns) -> None:
    """A key must be given again with another address or kind, so that nobody can redirect it."""
    id_ = provider(stored, base_url="https://llm.example.com/v1", api_key="sk-1")
    for changes in (
        {"base_url": "https://evil.example.com/v1"},
        {"base_url": None},
        {"kind": "anthropic"},
    ):
        with pytest.raises(InvalidRequest) as raised, changing(stored) as tx:
            llm_providers.change(tx, stored.actor, id_, **changes)
        assert ["api_key"] == list(raised.value.details)

    with changing(stored) as tx:
        same = {"base_url": "https://llm.example.com/v1", "kind": "openai"}
        assert llm_providers.change(tx, stored.actor, id_, **same).api_key_encrypted is not None
        moved = {"base_url": "https://evil.example.com/v1", "api_key": None}
        assert llm_providers.change(tx, stored.actor, id_, **moved).api_key_encrypted is None
        back = {"base_url": "https://llm.example.com/v1"}
        assert back["base_url"] == llm_providers.change(tx, stored.actor, id_, **back).base_url


@pytest.mark.parametrize(
    ("key", "shown"), [("sk-0123456789", "6789"), ("sk-012345678", "5678"), ("sk-01234567", None)]
)
def test_the_last_four_are_shown_of_a_long_key(
    stored: StoredRuns, key: str, shown: str | None
) -> None:
    """The last four characters are shown of a long key only."""
    with changing(stored) as tx:
        row = llm_providers.create(tx, stored.actor, name=key, kind="openai", api_key=key)

    assert shown == row.api_key_last_four


def test_without_an_encryption_key_no_api_key_is_stored(stored: StoredRuns) -> None:
    """It is refused by name; a provider without a key can be made."""
    settings = replace(stored.connections.settings, encryption_key=None)
    bare = replace(stored, connections=replace(stored.connections, settings=settings))

    with pytest.raises(InvalidRequest) as raised:
        provider(bare, api_key="sk-1")
    assert {"api_key": ["ARKLOOP_ENCRYPTION_KEY is not set on this server"]} == raised.value.details
    provider(bare, api_key=None)


@pytest.mark.parametrize(
    "base_url",
    [
        "http://127.0.0.1:8000/v1",
        "http://169.254.169.254/latest",
        "http://[::1]/v1",
        "ftp://example.com",
        "https://user:secret@example.com/v1",
        "https://example.com/v1?key=1",
        "https://example.com/v1?",
        "https://example.com/v1#x",
        "https://example.com:22/v1",
        "example.com",
    ],
)
def test_addresses_are_public_and_plain(stored: StoredRuns, base_url: str) -> None:
    """The operator's own network is none of an org's business."""
    with pytest.raises(InvalidRequest) as raised:
        provider(stored, base_url=base_url)
    assert ["base_url"] == list(raised.value.details)


def test_the_operator_may_allow_a_network(stored: StoredRuns) -> None:
    """Addresses in a network that the operator allows are accepted."""
    settings = replace(stored.connections.settings, allowed_networks=("127.0.0.0/8",))
    allowing = replace(stored, connections=replace(stored.connections, settings=settings))

    provider(allowing, base_url="http://127.0.0.1:8000/v1")


def test_what_another_org_has_is_not_there(stored: StoredRuns, other: StoredRuns) -> None:
    """Every function treats another org's objects as missing."""
    theirs = provider(other)
    their_model = model(other, theirs)
    mine = provider(stored)
    actor = stored.actor

    with stored.connections.transaction() as tx:
        for call in (
            lambda: llm_providers.get(tx.sql, actor, theirs),
            lambda: llm_providers.change(tx, actor, theirs, name="x"),
            lambda: llm_providers.delete_(tx, actor, theirs),
            lambda: llm_providers.create_model(tx, actor, theirs, model="x"),
            lambda: llm_providers.list_models(tx.sql, actor, theirs, limit=1, before=None),
            lambda: llm_providers.get_model(tx.sql, actor, theirs, their_model),
            lambda: llm_providers.change_model(tx, actor, theirs, their_model, model="x"),
            lambda: llm_providers.delete_model(tx, actor, theirs, their_model),
        ):
            with pytest.raises(ProviderNotFound):
                call()
        with pytest.raises(ModelNotFound):
            llm_providers.get_model(tx.sql, actor, mine, their_model)
        with pytest.raises(ModelNotFound):
            llm_providers.delete_model(tx, actor, mine, their_model)
    assert [str(their_model)] == [sealed.route.id for sealed in routes(other)]


def test_models_go_with_their_provider(stored: StoredRuns) -> None:
    """Deleting a provider leaves no row of its models."""
    provider_id = provider(stored)
    model(stored, provider_id)
    with changing(stored) as tx:
        llm_providers.delete_(tx, stored.actor, provider_id)

    with stored.connections.reading() as sql:
        left = sql.scalars(
            select(llm_models.c.id).where(llm_models.c.org_id == stored.actor.org_id)
        )
        assert [] == list(left)


def test_lists_are_walked_page_by_page(stored: StoredRuns) -> None:
    """Newest first; rows of one moment are ordered by their id."""
    provider_id = provider(stored)
    ids = [new_id() for _ in range(5)]
    with changing(stored) as tx:
        rows = [
            {
                "id": id_,
                "org_id": stored.actor.org_id,
                "provider_id": provider_id,
                "model": str(id_),
            }
            for id_ in ids
        ]
        tx.sql.execute(insert(llm_models), rows)

    walked: list[UUID] = []
    before = None
    while True:
        with stored.connections.reading() as sql:
            page = llm_providers.list_models(sql, stored.actor, provider_id, limit=2, before=before)
        if not page:
            break
        walked += [row.id for row in page]
        before = (page[-1].created_at, page[-1].id)

    assert sorted(ids, reverse=True) == walked
