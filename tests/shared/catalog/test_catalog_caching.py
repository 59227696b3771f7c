"""The cache of an org's catalog: what it costs, and when changes are seen."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event, update

from arkloop.shared.catalog import catalog as module
from arkloop.shared.catalog.catalog import Catalog
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.catalog import llm_models
from tests.shared.catalog.org_catalog import BARE, add_model, publish
from tests.stored_runs import StoredRuns
from tests.waiting import eventually, in_parallel


@pytest.fixture
def lasting_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies that are not too old after the two seconds that a test may take."""
    monkeypatch.setattr(module, "CACHE_SECONDS", 600)


@contextmanager
def counted(connections: Connections) -> Iterator[list[str]]:
    """Record the statements meanwhile."""
    seen: list[str] = []

    def note(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    event.listen(connections.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(connections.engine, "before_cursor_execute", note)


@pytest.mark.usefixtures("lasting_copies")
def test_many_questions_cost_three_statements(
    catalog: Catalog, stored: StoredRuns, org: UUID
) -> None:
    """Any number of questions within two seconds costs three statements, and one for a published
    persona.
    """
    own = add_model(stored, is_default=True, api_key="sk-1")
    publish(stored, "mine")

    with counted(stored.connections) as statements:
        for _ in range(20):
            route = catalog.choose_route(org, None, catalog.persona(org, "mine"))
            assert own == route.id
            catalog.chain(org, BARE, own)
            catalog.is_limited(org)
            catalog.persona(org, "assistant@1")

    assert 4 == len(statements)


@pytest.mark.usefixtures("lasting_copies")
def test_of_many_who_ask_at_once_one_reads(catalog: Catalog, stored: StoredRuns, org: UUID) -> None:
    """The others wait for its answer."""
    with counted(stored.connections) as statements:
        in_parallel(16, lambda _: catalog.choose_route(org, None, BARE))

    assert 3 == len(statements)


def test_what_is_new_elsewhere_is_found_at_once(
    catalog: Catalog, stored: StoredRuns, org: UUID
) -> None:
    """A route or a persona that another process has just made."""
    catalog.is_limited(org)  # now it believes to know the org
    own = add_model(stored)
    publish(stored, "fresh")
    publish(stored, "assistant", "9")

    assert catalog.route(org, own) is not None
    catalog.is_limited(org)
    assert "fresh@1" == catalog.persona(org, "fresh").id
    assert "assistant@9" == catalog.persona(org, "assistant@9").id


def test_what_changed_elsewhere_is_seen_soon(
    catalog: Catalog, stored: StoredRuns, org: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is seen when the copy is too old: another default, and a model that is gone."""
    monkeypatch.setattr(module, "CACHE_SECONDS", 0.2)
    own = add_model(stored, is_default=True)
    assert own == catalog.choose_route(org, None, BARE).id
    with stored.connections.transaction() as tx:
        tx.sql.execute(llm_models.delete().where(llm_models.c.id == UUID(own)))

    eventually(lambda: catalog.choose_route(org, None, BARE).id == "local")
    assert catalog.route(org, own) is None


def test_what_was_read_before_a_change_is_not_kept_after_it(
    catalog: Catalog, stored: StoredRuns, org: UUID
) -> None:
    """A reader that is overtaken by `forget` does not put its old answer back."""
    own = add_model(stored)
    overtaken = threading.Event()

    def change(*_: Any) -> None:
        if not overtaken.is_set():
            overtaken.set()
            with stored.connections.transaction() as tx:
                tx.sql.execute(
                    update(llm_models).where(llm_models.c.id == UUID(own)).values(is_default=True)
                )
            catalog.forget(org)

    event.listen(stored.connections.engine, "after_cursor_execute", change)
    try:
        catalog.is_limited(org)
    finally:
        event.remove(stored.connections.engine, "after_cursor_execute", change)

    assert overtaken.is_set()
    assert own == catalog.choose_route(org, None, BARE).id


def test_who_is_in_a_transaction_needs_no_second_connection(
    catalog: Catalog, stored: StoredRuns, org: UUID
) -> None:
    """A caller in a transaction needs no second connection, even while another waits for one."""
    own = add_model(stored, is_default=True)
    id_ = publish(stored, "mine")
    checked_out: list[int] = []

    def count(*_: Any) -> None:
        checked_out.append(1)

    with stored.connections.transaction() as tx:
        event.listen(stored.connections.engine, "checkout", count)
        try:
            persona = catalog.persona(org, id_, sql=tx.sql)
            assert own == catalog.choose_route(org, None, persona, sql=tx.sql).id
            assert catalog.route(org, str(new_id()), sql=tx.sql) is None
        finally:
            event.remove(stored.connections.engine, "checkout", count)
    assert [] == checked_out
