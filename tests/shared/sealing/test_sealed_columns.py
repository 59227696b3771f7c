"""Secrets get another key, one by one, whatever happens meanwhile."""

from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import select, text, update

from arkloop.shared.accounts import accounts
from arkloop.shared.ids import new_id
from arkloop.shared.sealing import org_keys
from arkloop.shared.sealing.sealed_columns import Counts, column_of, reseal
from arkloop.shared.security.encryption import Keyring
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.catalog import llm_providers

OLD, NEW, OTHER = Keyring("o" * 32), Keyring("n" * 32), Keyring("x" * 32)
BOTH = Keyring("n" * 32, "o" * 32)
PROVIDER_KEYS = column_of(llm_providers, "api_key_encrypted", "test")

Store = Callable[..., UUID]


@pytest.fixture
def store(connections: Connections) -> Store:
    """Call it for the id of a provider with a key; there are no others."""
    with connections.transaction() as tx:
        tx.sql.execute(text("DELETE FROM llm_providers"))
        org_id = accounts.create_org(tx, "acme")

    def store(secret: str | None, keyring: Keyring) -> UUID:
        id_ = new_id()
        sealed = None
        if secret is not None:
            sealed = keyring.seal(secret, org_id=org_id, purpose="test")
        values = {"id": id_, "org_id": org_id, "name": str(id_), "kind": "openai"}
        with connections.transaction() as tx:
            tx.sql.execute(llm_providers.insert().values(values | {"api_key_encrypted": sealed}))
        return id_

    return store


def opened(connections: Connections, id_: UUID, keyring: Keyring) -> str:
    with connections.reading() as sql:
        row = sql.execute(select(llm_providers).where(llm_providers.c.id == id_)).one()
        return org_keys.open_(
            sql, keyring, row.api_key_encrypted, org_id=row.org_id, purpose="test"
        )


def test_every_secret_gets_the_key_of_its_org(connections: Connections, store: Store) -> None:
    """More than one batch, among rows without a secret; a second call changes nothing."""
    ids = [store(f"secret {number}", OLD) for number in range(205)]
    store(None, OLD)
    ids.append(store("secret 205", NEW))

    assert Counts(resealed=206) == reseal(connections, PROVIDER_KEYS, BOTH)
    assert Counts(up_to_date=206) == reseal(connections, PROVIDER_KEYS, BOTH)

    for number, id_ in enumerate(ids):
        assert f"secret {number}" == opened(connections, id_, NEW)


def test_a_secret_under_a_key_that_is_gone_stays(connections: Connections, store: Store) -> None:
    """It is counted, the others get the org's key, and the lost one may come back."""
    lost, kept = store("lost", OTHER), store("kept", OLD)

    assert Counts(resealed=1, unreadable=1, unreadable_old=1) == reseal(
        connections, PROVIDER_KEYS, BOTH
    )

    assert "lost" == opened(connections, lost, OTHER)
    assert "kept" == opened(connections, kept, NEW)


def test_a_secret_of_an_org_whose_key_is_lost_stays(connections: Connections, store: Store) -> None:
    """It can be read, but not encrypted again; it is counted, and no other is held up."""
    store("of the org's key", OTHER)
    assert 1 == reseal(connections, PROVIDER_KEYS, OTHER).resealed
    older = store("older", OLD)

    assert Counts(erased=0, unreadable=2, unreadable_old=1) == reseal(
        connections, PROVIDER_KEYS, BOTH
    )

    assert "older" == opened(connections, older, OLD)


def test_a_secret_whose_key_was_erased_is_no_problem(
    connections: Connections, store: Store
) -> None:
    """It is counted apart, so that a rotation does not complain about it for ever."""
    store("before", OLD)
    reseal(connections, PROVIDER_KEYS, BOTH)
    with connections.transaction() as tx:
        org_id = tx.sql.execute(select(llm_providers.c.org_id)).scalar_one()
        org_keys.erase(tx, org_id)

    assert Counts(erased=1) == reseal(connections, PROVIDER_KEYS, BOTH)


def test_what_was_done_before_a_stop_stays_done(connections: Connections, store: Store) -> None:
    """Some secrets are under the org's key then, and all can be read."""
    ids = [store(f"secret {number}", OLD) for number in range(10)]

    with pytest.raises(_Stopped):
        reseal(connections, PROVIDER_KEYS, _Stopping("n" * 32, "o" * 32))

    assert [f"secret {n}" for n in range(10)] == [opened(connections, id_, BOTH) for id_ in ids]
    assert Counts(resealed=6, up_to_date=4) == reseal(connections, PROVIDER_KEYS, BOTH)


def test_a_secret_that_is_replaced_meanwhile_stays_replaced(
    connections: Connections, store: Store
) -> None:
    """The old one is not written back over it."""
    id_ = store("before", OLD)

    class Replacing(Keyring):
        def open(self, sealed: bytes, *, org_id: UUID, purpose: str) -> str:
            text = super().open(sealed, org_id=org_id, purpose=purpose)
            if purpose == "test":
                after = OLD.seal("after", org_id=org_id, purpose=purpose)
                with connections.transaction() as tx:
                    tx.sql.execute(update(llm_providers).values(api_key_encrypted=after))
            return text

    reseal(connections, PROVIDER_KEYS, Replacing("n" * 32, "o" * 32))

    assert "after" == opened(connections, id_, OLD)


class _Stopped(Exception):
    pass


class _Stopping(Keyring):
    """A keyring whose process ends at the fifth secret."""

    count = 0

    def open(self, sealed: bytes, *, org_id: UUID, purpose: str) -> str:
        self.count += purpose == "test"
        if self.count == 5:
            raise _Stopped()
        return super().open(sealed, org_id=org_id, purpose=purpose)
