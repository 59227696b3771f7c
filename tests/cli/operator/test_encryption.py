"""`arkloop keys rotate-encryption`."""

from collections.abc import Callable
from uuid import UUID

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import LargeBinary, func, select

from arkloop.cli.main import main
from arkloop.cli.operator.encryption import COLUMNS
from arkloop.shared.ids import new_id
from arkloop.shared.security.encryption import Keyring
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables import metadata
from arkloop.shared.storage.tables.catalog import mcp_authorizations, mcp_grants
from arkloop.shared.times import now
from tests.clients import User

NEW = "n" * 32

Run = Callable[..., Result]


@pytest.fixture
def run(connections: Connections) -> Run:
    """Call it with the encryption keys."""

    def run(*keys: str) -> Result:
        env = {
            "ARKLOOP_DATABASE_URL": connections.settings.database_url,
            "ARKLOOP_ENCRYPTION_KEY": ",".join(keys),
        }
        return CliRunner().invoke(main, ["keys", "rotate-encryption"], env=env)

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
        tx.sql.execute(configs.update().values(client_secret_encrypted=client))


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
    """All columns are under the new key alone; the command says so when it runs again."""
    secrets(alice, connections)
    old = connections.settings.encryption_key or ""

    first, second, alone = run(NEW, old), run(NEW, old), run(NEW)

    expected = f"{len(COLUMNS)} encrypted again, 0 already under the first key\n"
    assert (0, expected) == (first.exit_code, first.output)
    for again in (second, alone):
        expected = f"0 encrypted again, {len(COLUMNS)} already under the first key\n"
        assert (0, expected) == (again.exit_code, again.output)
    for column in COLUMNS:
        query = select(column.org_id, column.column).select_from(column.source)
        with connections.reading() as sql:
            org_id, sealed = sql.execute(query.where(func.length(column.column) > 0)).one()
        assert Keyring(NEW).open(sealed, org_id=org_id, purpose=column.purpose)


def test_a_secret_under_no_known_key_is_named(
    alice: User, connections: Connections, run: Run
) -> None:
    """Status 1, so that the old key is not thrown away."""
    alice.post("/v1/llm-providers", {"name": "b", "kind": "openai", "api_key": "secret"})

    done = run("z" * 32)

    assert 1 == done.exit_code
    assert "llm_providers.api_key_encrypted: " in done.output
    assert "store the secrets again" in done.output


@pytest.mark.parametrize("key", ["", "short", f"{NEW},short"])
def test_a_key_that_is_too_short_is_refused(run: Run, key: str) -> None:
    """As the service refuses it."""
    assert 2 == run(key).exit_code
