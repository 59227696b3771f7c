"""The migration that takes the metadata of runs in private threads out of their usage."""

from collections.abc import Callable

import pytest
from sqlalchemy import text

from arkloop.shared.ids import new_id
from arkloop.shared.storage import schema
from tests.shared.storage.test_schema import EARLIER_RUN, migrated_to, owner_of_thread

pytestmark = pytest.mark.owner

#: Rows of one run: a batch of the migration ends within them.
ROUTES = 3_000
_USAGE = """
INSERT INTO run_usage (run_id, route_id, org_id, user_id, persona_key, model, usage_source,
    cost_usd, month, metadata)
SELECT :id, 'r' || n, :org, :user, 'a', 'm', 'reported', 1, date_trunc('month', now()),
    '{"team": "red"}'
FROM generate_series(1, :routes) AS n
"""


def test_an_upgrade_clears_the_metadata_of_private_runs(new_database: Callable[[], str]) -> None:
    """It clears all rows of such a run, and none of another one or of one that is gone."""
    engine = migrated_to("0076", new_database())
    shared, first, second, gone = [str(new_id()) for _ in range(4)]
    with engine.begin() as sql:
        owner = owner_of_thread(sql)
        private = {**owner, "thread": str(new_id())}
        thread = "INSERT INTO threads (id, org_id, created_by_user_id, is_private)"
        sql.execute(text(f"{thread} VALUES (:thread, :org, :user, true)"), private)
        for run_id, place in ((shared, owner), (first, private), (second, private)):
            columns = {"id": run_id, "state": "completed", "position": 2 + (run_id == second)}
            sql.execute(text(EARLIER_RUN), {**columns, **place})
        for run_id in (shared, first, second, gone):
            sql.execute(text(_USAGE), {"id": run_id, "routes": ROUTES, **owner})

    schema.migrate(engine)

    counts = (
        "SELECT run_id::text AS id, count(*) AS cleared FROM run_usage"
        " WHERE metadata = '{}' GROUP BY run_id"
    )
    with engine.connect() as sql:
        cleared = {row.id: row.cleared for row in sql.execute(text(counts))}
    engine.dispose()
    assert {first: ROUTES, second: ROUTES} == cleared
