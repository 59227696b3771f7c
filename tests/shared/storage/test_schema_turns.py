"""Migrations at the same time: each waits until the one before is over."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, create_engine, text

from arkloop.shared.storage import schema
from tests.shared.storage.test_schema import migrated_to, waiting_for_locks
from tests.waiting import eventually

pytestmark = pytest.mark.owner


# A session that waits for its turn: in a statement, or between two.
_WAITING = """
    SELECT count(*) FROM pg_stat_activity WHERE application_name = :name
    AND (wait_event = 'advisory' OR (state = 'idle' AND query = 'COMMIT'))
"""


def is_waiting(engine: Engine, name: str) -> bool:
    """Return whether the session with this name waits for its turn to migrate."""
    with engine.connect() as sql:
        return bool(sql.scalar(text(_WAITING), {"name": name}))


def test_an_index_does_not_wait_for_a_migration_that_waits(
    new_database: Callable[[], str],
) -> None:
    """An index that is built beside others waits for the snapshots of all sessions."""
    first = migrated_to("0063", url := new_database())
    second = create_engine(url, connect_args={"application_name": "second"})
    with first.connect() as reader, ThreadPoolExecutor() as pool:
        reader.execute(text("SELECT FROM orgs"))
        migrating = pool.submit(schema.migrate, first, lock_seconds=60)
        eventually(lambda: waiting_for_locks(first) > 0)
        waiting = pool.submit(schema.migrate, second)
        eventually(lambda: is_waiting(first, "second"))
        reader.rollback()

        assert schema.needed_version() == migrating.result()
        assert schema.needed_version() == waiting.result()
    first.dispose()
    second.dispose()
