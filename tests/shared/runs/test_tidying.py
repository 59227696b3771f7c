"""Tidying up: the deletion of what is too old, and room for events to come."""

from dataclasses import replace

import psycopg
import pytest

from arkloop.shared.runs import tidying
from tests import walls
from tests.stored_runs import StoredRuns, ago

FUNCTION = "add_run_events_partition"


BROKEN = "CREATE FUNCTION {}(uuid, uuid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN {} END $$"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("RAISE EXCEPTION 'broken';", id="error"),
        pytest.param("RAISE EXCEPTION USING ERRCODE = 'query_canceled';", id="too-long"),
    ],
)
def test_what_fails_does_not_stop_the_rest(
    stored: StoredRuns, caplog: pytest.LogCaptureFixture, body: str
) -> None:
    """No partition can be made, and old runs are deleted all the same."""
    claim = stored.claimed()
    stored.finish(claim)
    stored.set(claim.run_id, ended_at=ago(days=3_001))
    settings = replace(stored.connections.settings, retention_days=3_000)
    url = walls.as_user(settings.database_url, "postgres").replace("+psycopg", "", 1)
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(f"ALTER FUNCTION {FUNCTION} RENAME TO taken_away")
        owner.execute(BROKEN.format(FUNCTION, body))
        try:
            tidying.tidy(replace(stored.connections, settings=settings))
        finally:
            owner.execute(f"DROP FUNCTION {FUNCTION}")
            owner.execute(f"ALTER FUNCTION taken_away RENAME TO {FUNCTION}")

    assert "tidying up failed: partitions of events" in caplog.text
    with stored.connections.reading() as sql:
        assert sql.exec_driver_sql("SELECT id FROM runs WHERE id = %s", (claim.run_id,)).all() == []
