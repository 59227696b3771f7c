"""Findings of `arkloop doctor` about stored secrets."""

import pytest
from sqlalchemy import delete

from arkloop.shared.storage.tables.sealing import org_keys
from tests.cli.doctor.examined import Examine, configure, examine, own_redis
from tests.shared.catalog.org_catalog import add_model
from tests.stored_runs import StoredRuns

pytestmark = pytest.mark.processes

__all__ = ["configure", "examine", "own_redis"]  # fixtures

OTHER = "another key of 32 bytes or more."


def test_secrets_that_the_key_decrypts_pass(examine: Examine, stored: StoredRuns) -> None:
    """The key may be any of several."""
    add_model(stored, api_key="sk-1")
    key = stored.connections.settings.encryption_key

    for keys in (key, f"{OTHER},{key}"):
        [(level, text)] = examine(ARKLOOP_ENCRYPTION_KEY=str(keys)).of("secrets")
        assert ("ok", True) == (level, text.endswith("organizations can be decrypted"))


@pytest.mark.parametrize(
    ("key", "why"), [(OTHER, "are under another key"), ("", "is not set, and")]
)
def test_secrets_under_another_key_fail(
    examine: Examine, stored: StoredRuns, key: str, why: str
) -> None:
    """The lack of any key is reported, too; nothing of a key or a secret is printed."""
    add_model(stored, api_key="sk-1")

    report = examine(ARKLOOP_ENCRYPTION_KEY=key)

    assert ["secrets"] == report.failed()
    assert why in report.of("secrets")[0][1]
    assert "erase-encryption" in report.advice("secrets")
    assert "sk-1" not in report.text
    assert OTHER not in report.text


def test_erased_secrets_are_none(examine: Examine, stored: StoredRuns) -> None:
    """They are gone on purpose."""
    add_model(stored, api_key="sk-1")
    with stored.connections.transaction() as tx:
        tx.sql.execute(delete(org_keys))  # those of the tests before, too

    assert [] == examine(ARKLOOP_ENCRYPTION_KEY=OTHER).of("secrets")
