"""`arkloop keys rotate-encryption`."""

from collections.abc import Callable
from uuid import UUID

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import LargeBinary, select

from arkloop.cli.main import main
from arkloop.cli.operator.encryption import COLUMNS
from arkloop.shared.audit import audit_log
from arkloop.shared.ids import new_id
from arkloop.shared.sealing import org_keys
from arkloop.shared.sealing.sealed_columns import SealedColumn
from arkloop.shared.security.encryption import CannotOpen, Keyring
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables import metadata
from arkloop.shared.storage.tables.catalog import mcp_authorizations, mcp_grants
from arkloop.shared.times import now
from tests.clients import User

NEW = "n" * 32

Run = Callable[..., Result]


@pytest.fixture
def run(connections: Connections) -> Run:
    """Call it with the encryption keys, and the words after `arkloop keys`."""

    def run(keys: list[str], *words: str) -> Result:
        env = {
            "ARKLOOP_DATABASE_URL": connections.settings.database_url,
            "ARKLOOP_ENCRYPTION_KEY": ",".join(keys),
        }
        return CliRunner().invoke(main, ["keys", *(words or ["rotate-encryption"])], env=env)

    return run


def secrets(alice: User, connections: Connections) -> None:
    """Store a secret in each column that can have one."""
    headers = {"headers": {"authorization": "secret"}}
    tool = {"name": "shop", "description": "d", "url": "https://example.com/a"}
    tool_id = alice.post("/v1/tools", {**tool, "parameters": {"type": "object"}, **headers}).json[
        "id"
    ]
    alice.post(f"/v1/tools/{tool_id}:rotate-secret", {"overlap_seconds": 600})
    provider = {"name": "acme", "kind": "openai", "api_key": "secret"}
    assert 201 == alice.post("/v1/llm-providers", provider).status_code
    hook_id = alice.post("/v1/webhook-endpoints", {"url": "https://example.com/h"}).json["id"]
    alice.post(f"/v1/webhook-endpoints/{hook_id}:rotate-secret", {"overlap_seconds": 600})
    server = {"name": "files", "url": "https://example.com/mcp", **headers}
    config_id = UUID(alice.post("/v1/mcp-configs", server).json["id"])
    _store_grants(alice, connections, config_id)
    _store_identity_provider(alice, connections)


def _store_identity_provider(alice: User, connections: Connections) -> None:
    ring = Keyring(connections.settings.encryption_key or "")
    purpose = "identity_providers.client_secret"
    secret = ring.seal("secret", org_id=alice.org_id, purpose=purpose)
    values = {"issuer": "https://login.example.com", "client_id": "ours", "email_domains": []}
    values |= {"signing_algorithm": "RS256", "joining_role": "member", "session_hours": 12}
    values |= {"assumes_verified_email": False, "client_secret_encrypted": secret}
    with connections.transaction() as tx:
        row = metadata.tables["identity_providers"].insert()
        tx.sql.execute(row.values(id=new_id(), org_id=alice.org_id, **values))


def _store_grants(alice: User, connections: Connections, config_id: UUID) -> None:
    ring = Keyring(connections.settings.encryption_key or "")
    grant = ring.seal("secret", org_id=alice.org_id, purpose="mcp_grants.grant")
    request = ring.seal("secret", org_id=alice.org_id, purpose="mcp_authorizations.request")
    client = ring.seal("secret", org_id=alice.org_id, purpose="mcp_configs.client_secret")
    of_config = {"config_id": config_id, "owner": "user"}
    with connections.transaction() as tx:
        tx.sql.execute(
            mcp_grants.insert().values(**of_config, grant_encrypted=grant, obtained_at=now())
        )
        tx.sql.execute(
            mcp_authorizations.insert().values(
                **of_config,
                state_hash=new_id().bytes,
                request_encrypted=request,
                expires_at=now(),
            )
        )
        configs = metadata.tables["mcp_configs"]
        is_it = configs.c.id == config_id
        tx.sql.execute(configs.update().where(is_it).values(client_secret_encrypted=client))


def test_every_sealed_column_is_known() -> None:
    """A new column with ciphertext would keep the old key alive, or be lost with it."""
    sealed = {
        f"{table.name}.{column.name}"
        for table in metadata.tables.values()
        for column in table.c
        if isinstance(column.type, LargeBinary) and column.name.endswith("_encrypted")
    }

    assert sealed == {column.name for column in COLUMNS}


def test_without_the_old_key_everything_can_still_be_read(
    alice: User, connections: Connections, run: Run
) -> None:
    """Older secrets get the key of their org, and that the new key; a second call has no work."""
    secrets(alice, connections)
    old = connections.settings.encryption_key or ""

    results = [run([NEW, old]), run([NEW, old]), run([NEW])]

    # The four that the fixture has sealed as earlier releases did.
    assert [0, 0, 0] == [result.exit_code for result in results]
    assert "1 keys of organizations and 4 secrets encrypted again\n" == results[0].output
    assert 2 * ["0 keys of organizations and 0 secrets encrypted again\n"] == [
        result.stdout for result in results[1:]
    ]
    for column in COLUMNS:
        assert all(opened(connections, column, Keyring(NEW))), column.name


def test_an_orgs_secrets_are_erased_with_its_key(
    alice: User, connections: Connections, run: Run
) -> None:
    """Secrets of earlier releases are erased, too; other orgs keep theirs."""
    secrets(alice, connections)
    keys = [NEW, connections.settings.encryption_key or ""]

    done = run(keys, "erase-encryption", "--org", str(alice.org_id), "--yes")

    assert (0, "erased\n") == (done.exit_code, done.output)
    with connections.reading() as sql:
        for column in COLUMNS:
            query = select(column.column).select_from(column.source)
            query = query.where(column.org_id == alice.org_id, column.column.is_not(None))
            for sealed in sql.scalars(query).all():
                with pytest.raises(CannotOpen):
                    org_keys.open_(
                        sql,
                        Keyring(*keys),
                        sealed,
                        org_id=alice.org_id,
                        purpose=column.purpose,
                    )
        assert (
            "org_key.erased"
            == audit_log.list_(sql, alice.org_id, {}, limit=1, before=None)[0].action
        )
    again = run(keys, "erase-encryption", "--org", str(alice.org_id), "--yes")
    assert "the organization has stored no secrets\n" == again.output


def test_no_key_is_erased_while_older_secrets_would_survive(
    alice: User, connections: Connections, run: Run
) -> None:
    """A secret under a key that is not given can be decrypted by whatever has that key."""
    secrets(alice, connections)
    erase = ("erase-encryption", "--org", str(alice.org_id), "--yes")

    refused = run([NEW], *erase)

    assert 1 == refused.exit_code
    assert "4 secrets are under other keys" in refused.output
    assert 0 == run([NEW, connections.settings.encryption_key or ""], *erase).exit_code


def test_a_secret_under_no_known_key_is_named(
    alice: User, connections: Connections, run: Run
) -> None:
    """Status 1, so that the old key is not thrown away."""
    alice.post("/v1/llm-providers", {"name": "b", "kind": "openai", "api_key": "secret"})

    done = run(["z" * 32])

    assert 1 == done.exit_code
    assert "org_keys.wrapped: " in done.output
    assert "add the keys that encrypted them to the end of ARKLOOP_ENCRYPTION_KEY" in done.output


def test_a_key_without_another_one_replaces_none(connections: Connections, run: Run) -> None:
    """A command whose environment lacks the second key says so, and its status is 0."""
    old = connections.settings.encryption_key or ""

    both, one, twice = run([NEW, old]), run([NEW]), run([NEW, NEW])

    assert [0, 0, 0] == [result.exit_code for result in (both, one, twice)]
    assert "" == both.stderr
    assert one.stderr.startswith("Only one encryption key was given")
    assert one.stderr == twice.stderr


@pytest.mark.parametrize("key", ["", "short", f"{NEW},short"])
def test_a_key_that_is_too_short_is_refused(run: Run, key: str) -> None:
    """The service refuses it in the same way."""
    assert 2 == run([key]).exit_code


def opened(connections: Connections, column: SealedColumn, keyring: Keyring) -> list[str]:
    """Decrypt all values of a column that are not empty."""
    query = select(column.org_id, column.column).select_from(column.source)
    with connections.reading() as sql:
        rows = sql.execute(query.where(column.column.is_not(None))).all()
        assert rows
        return [
            org_keys.open_(sql, keyring, sealed, org_id=org_id, purpose=column.purpose)
            for org_id, sealed in rows
        ]
