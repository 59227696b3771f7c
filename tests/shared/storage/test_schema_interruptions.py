"""Migrations that are interrupted: the next call of `arkloop migrate` continues."""

from collections.abc import Callable

import pytest
from psycopg.errors import LockNotAvailable
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from arkloop.shared.storage import schema
from tests.shared.storage.test_schema import migrated_to

pytestmark = pytest.mark.owner

# As if a long query had kept the index waiting: once for each migration that builds one beside
# others, at its first one. What the migration has committed before that stays.
_STOP_ONCE = """
CREATE TABLE stopped (before text PRIMARY KEY);
CREATE FUNCTION stop_once() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_query() ~* 'concurrently' AND (SELECT version_num FROM alembic_version) NOT IN (
        SELECT before FROM stopped
    ) THEN
        RAISE EXCEPTION 'stopped' USING ERRCODE = 'lock_not_available';
    END IF;
END $$;
CREATE EVENT TRIGGER stops ON ddl_command_start WHEN TAG IN ('CREATE INDEX')
    EXECUTE FUNCTION stop_once();
"""


def test_a_migration_that_stops_before_its_index_can_be_repeated(
    new_database: Callable[[], str],
) -> None:
    """Each migration that builds an index beside others is stopped before that, once."""
    migrated_to("0026", url := new_database()).dispose()
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    stopped: list[str | None] = []
    with engine.connect() as sql:
        sql.exec_driver_sql(_STOP_ONCE)
        while schema.current_version(sql) != schema.needed_version():
            try:
                schema.migrate(engine)
            except OperationalError as error:
                if not isinstance(error.orig, LockNotAvailable):
                    raise
                stopped.append(schema.current_version(sql))
                sql.execute(text("INSERT INTO stopped VALUES (:before)"), {"before": stopped[-1]})
    engine.dispose()

    assert {"0026", "0035", "0036", "0040", "0043", "0063"} <= set(stopped)


def test_a_snapshot_beside_the_migration_of_suspended_orgs_delays_it_alone(
    new_database: Callable[[], str],
) -> None:
    """The index waits for a report that reads other tables, gives up, and is built by the next
    call.
    """
    engine = migrated_to("0063", new_database())
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as report:
        report.execute(text("SELECT count(*) FROM pg_class"))
        with pytest.raises(OperationalError) as failed:
            schema.migrate(engine)
        report.rollback()

    assert isinstance(failed.value.orig, LockNotAvailable)
    assert schema.needed_version() == schema.migrate(engine)
    with engine.connect() as sql:
        valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_orgs_suspended'::regclass"
        assert sql.scalar(text(valid))
    engine.dispose()
