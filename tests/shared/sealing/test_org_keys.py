"""The keys of orgs: made once, encrypted with the keys of the setting, and erased."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from arkloop.shared.accounts import accounts
from arkloop.shared.ids import new_id
from arkloop.shared.sealing import org_keys
from arkloop.shared.security.encryption import CannotOpen, Keyring, NoEncryptionKey
from arkloop.shared.storage.connections import Connections
from tests.clients import User, details_of
from tests.waiting import in_parallel

OLD, NEW = Keyring("o" * 32), Keyring("n" * 32)
BOTH = Keyring("n" * 32, "o" * 32)
URL = "https://shop.example/"
SCHEMA = {"type": "object"}


@pytest.fixture
def org_id(connections: Connections) -> UUID:
    with connections.transaction() as tx:
        return accounts.create_org(tx, "acme")


def seal(connections: Connections, org_id: UUID, keyring: Keyring, text: str = "secret") -> bytes:
    with connections.transaction() as tx:
        return org_keys.seal(tx, keyring, text, org_id=org_id, purpose="test")


def opened(
    connections: Connections, sealed: bytes, org_id: UUID, keyring: Keyring, purpose: str = "test"
) -> str:
    with connections.reading() as sql:
        return org_keys.open_(sql, keyring, sealed, org_id=org_id, purpose=purpose)


def test_secrets_that_come_at_once_have_one_key(connections: Connections, org_id: UUID) -> None:
    """The first one makes it, and all can be read."""
    sealed = in_parallel(8, lambda n: seal(connections, org_id, OLD, f"secret {n}"))

    texts = [opened(connections, one, org_id, OLD) for one in sealed]
    assert [f"secret {n}" for n in range(8)] == texts
    assert 1 == len({one[:9] for one in sealed})


def test_a_secret_opens_for_its_org_and_purpose_alone(
    connections: Connections, org_id: UUID
) -> None:
    """A sealed text that is copied to another row or column is worth nothing."""
    sealed = seal(connections, org_id, OLD)
    with connections.transaction() as tx:
        other = accounts.create_org(tx, "other")
    seal(connections, other, OLD)

    for whose, purpose in ((other, "test"), (org_id, "another"), (new_id(), "test")):
        with pytest.raises(CannotOpen):
            opened(connections, sealed, whose, OLD, purpose)
    assert "secret" == opened(connections, sealed, org_id, OLD)


def test_keys_of_orgs_rotate_without_their_secrets(connections: Connections, org_id: UUID) -> None:
    """The same sealed text opens by the new key, and by the old one no more."""
    sealed = seal(connections, org_id, OLD)
    assert "secret" == opened(connections, sealed, org_id, BOTH)

    again, unreadable = org_keys.rewrap(connections, BOTH)

    assert again >= 1
    assert "secret" == opened(connections, sealed, org_id, NEW)
    with pytest.raises(CannotOpen):
        opened(connections, sealed, org_id, OLD)
    assert (0, unreadable) == org_keys.rewrap(connections, BOTH)


def test_without_the_key_of_the_setting_nothing_is_sealed(
    connections: Connections, org_id: UUID
) -> None:
    """An org's key that cannot be decrypted is not replaced."""
    sealed = seal(connections, org_id, OLD)

    for keyring in (Keyring(), NEW):
        with pytest.raises(NoEncryptionKey):
            seal(connections, org_id, keyring)
    assert "secret" == opened(connections, sealed, org_id, OLD)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("llm-providers", {"kind": "openai", "api_key": "sk-1"}, "api_key"),
        ("tools", {"description": "A tool.", "url": URL, "parameters": SCHEMA}, "signing_secret"),
        ("webhook-endpoints", {"url": URL}, "signing_secret"),
        ("mcp-configs", {"url": URL, "headers": {"X-Key": "v"}}, "headers"),
        ("mcp-configs", {"url": URL, "oauth": {}}, "oauth"),
    ],
)
def test_a_refusal_says_that_the_org_s_key_is_under_another_one(
    connections: Connections, alice: User, path: str, body: dict[str, Any], field: str
) -> None:
    """It does not say that no key is set, which an operator would look for in vain."""
    name = {} if path == "webhook-endpoints" else {"name": "x"}
    seal(connections, alice.org_id, OLD)
    known = connections.settings
    connections.settings = replace(
        known, encryption_key="n" * 32, public_url="https://arkloop.example"
    )
    try:
        response = alice.post(f"/v1/{path}", {**name, **body})
    finally:
        connections.settings = known

    why = "the organization's key is encrypted with a key that is not in ARKLOOP_ENCRYPTION_KEY"
    assert {field: [why]} == details_of(response)


def test_an_erased_key_takes_its_secrets_with_it(connections: Connections, org_id: UUID) -> None:
    """Later secrets get a new key, which opens none of the old ones."""
    before = seal(connections, org_id, OLD)
    with connections.transaction() as tx:
        assert org_keys.erase(tx, org_id)
        assert not org_keys.erase(tx, org_id)

    with pytest.raises(CannotOpen, match="erased"):
        opened(connections, before, org_id, OLD)
    after = seal(connections, org_id, OLD, "another")
    assert "another" == opened(connections, after, org_id, OLD)
    with pytest.raises(CannotOpen, match="erased"):
        opened(connections, before, org_id, OLD)
