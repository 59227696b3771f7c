"""A long history, for the tests of what is stored."""

import psycopg
import pytest
from sqlalchemy import create_engine, text

from arkloop.shared.accounts import accounts
from arkloop.shared.storage.connections import Connections
from bench.history import past_partitions
from bench.history.seeding import History, seed


@pytest.fixture(scope="module")
def written(connections: Connections) -> History:
    """20,000 runs with some 200,000 events in partitions, none empty, and twice as many threads;
    one org has nearly all.
    """
    with connections.transaction() as tx:
        org_id = accounts.create_org(tx, "main")
        accounts.create_user(
            tx,
            org_id=org_id,
            role="owner",
            login="owner",
            email="owner@example.com",
            password_hash="-",
        )
    url = connections.settings.database_url
    with psycopg.connect(url.replace("+psycopg", "", 1), autocommit=True) as owner:
        past_partitions.fill(owner, past_partitions.make(owner, days=120))
    history = seed(url, org_id, runs=20_000, long_run_events=1_000)
    engine = create_engine(url)  # without a limit on time
    with engine.begin() as sql:
        # Without runs. In a table of a hundred pages to read all of it is no mistake.
        sql.execute(
            text(
                "INSERT INTO threads (id, org_id, created_by_user_id, created_at)"
                " SELECT gen_random_uuid(), org_id, created_by_user_id, created_at"
                " FROM threads CROSS JOIN generate_series(1, 6)"
            )
        )
    with engine.connect() as sql:
        sql.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE threads"))
    engine.dispose()
    return history
