"""Migrations under load: none makes others wait while it reads or writes all of a large table.

Postgres itself says what a statement does, by event triggers: which table it rewrites, which index
it builds, which constraint it checks, which locks it has. How long a migration waits for a lock is
tested in `test_schema.py`.
"""

from collections.abc import Callable, Iterator

import pytest
from alembic import command
from sqlalchemy import Engine, create_engine, text

from tests.shared.storage.test_schema import alembic_config, migrated_to

pytestmark = pytest.mark.owner

#: The schema of the release before: what comes after it is checked.
SINCE = "0055"
#: Tables that grow with use, without a bound.
LARGE = (
    *("runs", "run_events", "run_usage", "run_metadata", "tool_calls", "inputs"),
    *("threads", "messages", "thread_metadata", "webhook_deliveries", "audit_logs"),
)
#: Migration 62 takes both at once, in the order that the services have them in.
SWAPS = {
    f"keeps all of run_events_first and forgotten_{named} waiting at once"
    for named in ("runs", "events")
}

_NOTE = """
CREATE TABLE noted (what text NOT NULL);
CREATE TABLE existing AS SELECT oid FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r';
CREATE FUNCTION note_rewrite() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO noted VALUES ('rewrites ' || pg_event_trigger_table_rewrite_oid()::regclass);
END $$;
CREATE EVENT TRIGGER rewrites ON table_rewrite EXECUTE FUNCTION note_rewrite();
CREATE FUNCTION note_command() RETURNS event_trigger LANGUAGE plpgsql AS $$
DECLARE
    done record;
    named text;
    query text := current_query();
BEGIN
    SELECT string_agg(relation::regclass::text, ' and ' ORDER BY relation) INTO named
    FROM pg_locks WHERE pid = pg_backend_pid() AND mode = 'AccessExclusiveLock'
        AND relation IN (SELECT oid FROM existing)
    HAVING count(*) > 1;
    IF named IS NOT NULL THEN
        INSERT INTO noted VALUES ('keeps all of ' || named || ' waiting at once');
    END IF;
    FOR done IN SELECT * FROM pg_event_trigger_ddl_commands() LOOP
        IF done.command_tag = 'CREATE INDEX' AND query !~* '\\yconcurrently\\y' THEN
            SELECT indrelid::regclass::text INTO named FROM pg_index WHERE indexrelid = done.objid;
            INSERT INTO noted VALUES ('builds an index while writers of ' || named || ' wait');
        ELSIF done.command_tag = 'ALTER TABLE' AND done.object_type = 'table' THEN
            named := done.objid::regclass::text;
            IF query ~* '\\yadd\\s+constraint\\y'
                AND query !~* '\\ynot\\s+valid\\y|\\yusing\\s+index\\y' THEN
                INSERT INTO noted VALUES ('checks a constraint while all of ' || named || ' wait');
            ELSIF query ~* '\\yset\\s+not\\s+null\\y' THEN
                INSERT INTO noted VALUES ('looks for nulls while all of ' || named || ' wait');
            END IF;
        END IF;
    END LOOP;
END $$;
CREATE EVENT TRIGGER commands ON ddl_command_end WHEN TAG IN ('CREATE INDEX', 'ALTER TABLE')
    EXECUTE FUNCTION note_command();
"""


@pytest.fixture(scope="module")
def watched(new_database: Callable[[], str]) -> Iterator[Engine]:
    """A database with the schema of the release before, which notes what is done to it."""
    migrated_to(SINCE, url := new_database()).dispose()
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as sql:
        sql.exec_driver_sql(_NOTE)
    yield engine
    engine.dispose()


def noted(engine: Engine) -> list[str]:
    """Return what was done to large tables since the last look, or to two tables of any size."""
    with engine.connect() as sql:
        found = sql.scalars(text("SELECT what FROM noted")).all()
        sql.exec_driver_sql("TRUNCATE noted")
    return [what for what in found if what.endswith(" at once") or set(what.split()) & set(LARGE)]


def test_no_migration_works_on_a_large_table_while_others_wait(watched: Engine) -> None:
    """Indexes are built concurrently, constraints are added as not valid, columns have constant
    defaults; and one table is locked at a time, since a client may have them in the other order.
    """
    config = alembic_config()
    engine = create_engine(watched.url)
    with engine.connect() as sql:
        config.attributes["connection"] = sql
        command.upgrade(config, "head")
        sql.commit()
    engine.dispose()

    assert set() == set(noted(watched)) - SWAPS


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE INDEX slow ON runs (fence)",
        "CREATE UNIQUE INDEX slow_too ON messages (id)",
        "ALTER TABLE runs ALTER COLUMN crashes TYPE bigint",
        "ALTER TABLE threads ADD COLUMN token uuid DEFAULT gen_random_uuid()",
        "ALTER TABLE tool_calls ADD CONSTRAINT slow CHECK (run_id IS NOT NULL)",
        "ALTER TABLE runs ALTER COLUMN started_at SET NOT NULL",
        "ALTER TABLE orgs ADD COLUMN one text; ALTER TABLE runs ADD COLUMN one text",
    ],
)
def test_a_statement_that_makes_others_wait_is_noted(watched: Engine, statement: str) -> None:
    """Each kind of slow statement is found."""
    with watched.connect() as sql:
        sql.exec_driver_sql(statement)

    assert 1 == len(noted(watched))


def test_statements_that_are_quick_are_not_noted(watched: Engine) -> None:
    """What needs a lock for a moment, or does its work beside others, is allowed."""
    with watched.connect() as sql:
        for statement in (
            "CREATE INDEX CONCURRENTLY quick ON runs (fence)",
            "ALTER TABLE runs ADD COLUMN quick boolean NOT NULL DEFAULT false",
            "ALTER TABLE runs ADD CONSTRAINT quick CHECK (fence >= 0) NOT VALID",
            "ALTER TABLE runs VALIDATE CONSTRAINT quick",
            "CREATE TABLE few (id uuid PRIMARY KEY, n int)",
            "CREATE INDEX few_n ON few (n)",
        ):
            sql.exec_driver_sql(statement)

    assert [] == noted(watched)
