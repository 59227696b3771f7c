"""Migrations that are interrupted: the next call of `arkloop migrate` continues."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from psycopg.errors import LockNotAvailable
from sqlalchemy import Engine, create_engine, text
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


@contextmanager
def reports(engine: Engine, seconds: float) -> Iterator[None]:
    """Read in two sessions, each query for these seconds, so that one is always in progress."""
    is_over = threading.Event()

    def read(delay: float) -> None:
        is_over.wait(delay)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as sql:
            while not is_over.is_set():
                sql.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})

    with ThreadPoolExecutor() as pool:
        reading = [pool.submit(read, delay) for delay in (0, seconds / 2)]
        try:
            yield
        finally:
            is_over.set()
    for reader in reading:
        reader.result()


def test_reports_that_take_seconds_do_not_stop_a_migration(
    new_database: Callable[[], str],
) -> None:
    """The index waits for each that is older, as long as the migration may wait for others."""
    engine = migrated_to("0086", new_database())
    with reports(engine, seconds=2.5):
        assert schema.needed_version() == schema.migrate(engine, lock_seconds=5)
    engine.dispose()


# Stops the index of migration 87 once, after a change of its table, and notes the limits of others:
# those of dropped ones at their end, since no such statement may follow a write.
_STOP_AND_NOTE = """
CREATE SEQUENCE indexes;
CREATE TABLE noted (is_beside_others boolean, command text, lock_timeout text);
CREATE FUNCTION note_timeout() RETURNS event_trigger LANGUAGE plpgsql AS $$
DECLARE
    is_beside_others boolean := current_query() ~* 'concurrently';
BEGIN
    IF is_beside_others AND TG_TAG = 'CREATE INDEX'
        AND (SELECT version_num = '0086' FROM alembic_version) AND nextval('indexes') = 1 THEN
        RAISE EXCEPTION 'stopped' USING ERRCODE = 'lock_not_available';
    END IF;
    INSERT INTO noted VALUES (is_beside_others, TG_TAG, current_setting('lock_timeout'));
END $$;
CREATE EVENT TRIGGER notes ON ddl_command_start
    WHEN TAG IN ('CREATE INDEX', 'ALTER TABLE') EXECUTE FUNCTION note_timeout();
CREATE EVENT TRIGGER notes_of_drops ON ddl_command_end
    WHEN TAG IN ('DROP INDEX') EXECUTE FUNCTION note_timeout();
"""


def test_a_migration_waits_for_longer_than_a_second_with_indexes_alone(
    new_database: Callable[[], str],
) -> None:
    """Queries queue behind its other statements, also after an index that was given up."""
    engine = migrated_to("0071", new_database())
    with engine.begin() as sql:
        sql.exec_driver_sql(_STOP_AND_NOTE)

    schema.migrate(engine, lock_seconds=30)

    with engine.connect() as sql:
        noted = sql.execute(text("SELECT DISTINCT * FROM noted")).all()
    engine.dispose()
    of_indexes = {(row.command, row.lock_timeout) for row in noted if row.is_beside_others}
    limits_of_others = {row.lock_timeout for row in noted if not row.is_beside_others}
    assert {("CREATE INDEX", "30s"), ("DROP INDEX", "30s")} == of_indexes
    assert "1s" in limits_of_others
    # Some have shorter ones of their own.
    assert limits_of_others <= {"1s", "500ms", "100ms"}
