"""The migration that makes the table of events the first partition of another one."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.shared.events import partitions
from arkloop.shared.ids import new_id
from arkloop.shared.storage import schema
from tests import walls
from tests.shared.storage.test_epoch import load_dump
from tests.shared.storage.test_schema import migrated_to
from tests.waiting import eventually

pytestmark = pytest.mark.processes

BEFORE = "0061"
INSERT = "INSERT INTO run_events VALUES (:id, :seq, 'message.delta', :payload)"
#: How the release before collects events: a ctid is one row in each partition.
COLLECT_OF_BEFORE = """
WITH forgotten AS MATERIALIZED (
    SELECT run_id, forgotten_at FROM forgotten_runs
    WHERE forgotten_at <= now() - make_interval(secs => 0)
    ORDER BY forgotten_at LIMIT 100
), collected AS (
    DELETE FROM run_events WHERE ctid = ANY(ARRAY(
        SELECT e.place FROM forgotten f CROSS JOIN LATERAL (
            SELECT ctid AS place FROM run_events
            WHERE run_id = f.run_id ORDER BY seq DESC LIMIT 2000
        ) AS e LIMIT 2000
    ))
)
SELECT run_id FROM forgotten
"""
#: How it deletes a run, beside which a trigger makes a note.
DELETE_RUN = "DELETE FROM runs WHERE id = :id"


@pytest.fixture
def older(new_database: Callable[[], str]) -> Iterator[Engine]:
    """A database of the release before, with the events of three runs."""
    engine = migrated_to(BEFORE, walls.as_user(new_database(), "postgres"))
    with engine.begin() as sql:
        for run_id in [new_id() for _ in range(3)]:
            for seq in (1, 2):
                sql.execute(text(INSERT), {"id": run_id, "seq": seq, "payload": f"{seq}"})
    yield engine
    engine.dispose()


def events(sql: Connection) -> set[tuple[Any, ...]]:
    return {tuple(row) for row in sql.execute(text("SELECT run_id, seq, payload FROM run_events"))}


def migrate(engine: Engine) -> None:
    """Migrate to the version with partitions, by what `arkloop migrate` calls."""
    schema.migrate(engine, lock_seconds=10)


def test_all_events_stay_where_they_are(older: Engine) -> None:
    """No row is copied: the table's file is that of the first partition."""
    file = "SELECT pg_relation_filenode('{}')"
    with older.connect() as sql:
        before, kept = events(sql), sql.scalar(text(file.format("run_events")))
    migrate(older)

    with older.begin() as sql:
        assert before == events(sql)
        assert kept == sql.scalar(text(file.format("run_events_first")))
        first, ahead = partitions.read(sql)
        week = timedelta(days=6) < first.end - datetime.now(UTC) <= timedelta(days=7)
        assert (None, True, first.upper) == (first.lower, week, ahead.lower)
        for run_id, partition in (
            (new_id(), "run_events_first"),
            (first.upper, ahead.name),
            (ahead.upper, "run_events_default"),
        ):
            sql.execute(text(INSERT), {"id": run_id, "seq": 1, "payload": "new"})
            place = "SELECT tableoid::regclass::text FROM run_events WHERE run_id = :id"
            assert partition == sql.scalar(text(place), {"id": run_id})
    migrate(older)  # changes nothing


def test_no_row_is_looked_at_while_others_wait(older: Engine) -> None:
    """The constraint that was checked beside others says all that the first partition needs."""
    notices = []

    def note(driver: psycopg.Connection[Any], _record: object) -> None:
        driver.execute("SET client_min_messages = debug1")
        driver.add_notice_handler(lambda notice: notices.append(notice.message_primary))

    event.listen(older, "connect", note)
    older.dispose()
    migrate(older)

    implied = 'partition constraint for table "run_events_first" is implied by existing constraints'
    assert implied in notices
    assert 'verifying table "run_events_first"' not in notices


def test_rows_are_read_once_however_long_the_table_is_held(older: Engine) -> None:
    """Somebody reads when the rows have been looked at: the swap alone is tried again, in time.

    Reading them may take longer than a lock is waited for.
    """
    url = older.url.render_as_string(hide_password=False).replace("+psycopg", "", 1)
    looked: list[str] = []
    with psycopg.connect(url) as reader:

        def note(notice: psycopg.errors.Diagnostic) -> None:
            if notice.message_primary == 'verifying table "run_events"':
                looked.append(notice.message_primary)
                reader.execute("SELECT FROM run_events")
                time.sleep(1.2)
                threading.Timer(1, reader.rollback).start()

        def listen(driver: psycopg.Connection[Any], _record: object) -> None:
            driver.execute("SET client_min_messages = debug1")
            driver.add_notice_handler(note)

        event.listen(older, "connect", listen)
        older.dispose()

        schema.migrate(older, lock_seconds=1)

    assert 1 == len(looked)


def test_what_others_rely_on_stays(older: Engine) -> None:
    """The service's role keeps its privileges, and its wall: no moment is without them."""
    url = older.url.render_as_string(hide_password=False)
    with older.begin() as sql:
        if sql.scalar(text(f"SELECT to_regrole('{walls.ROLE}')")) is None:
            sql.execute(text(f"CREATE ROLE {walls.ROLE} LOGIN"))
        sql.execute(
            text(
                f"GRANT USAGE ON SCHEMA public TO {walls.ROLE};"
                "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public"
                f" TO {walls.ROLE};"
                "CREATE POLICY of_orgs_1 ON run_events USING (CASE WHEN"
                " (SELECT current_setting('arkloop.orgs', true)) = '*' THEN true ELSE EXISTS"
                " (SELECT FROM runs seen WHERE seen.id = run_events.run_id OFFSET 0) END);"
                "ALTER TABLE run_events ENABLE ROW LEVEL SECURITY"
            )
        )

    migrate(older)

    with psycopg.connect(walls.behind(url).replace("+psycopg", "", 1), autocommit=True) as service:
        seen = []
        for orgs in ("*", ""):
            service.execute("SELECT set_config('arkloop.orgs', %s, false)", [orgs])
            rows = service.execute("SELECT count(*) FROM run_events").fetchone()
            seen.append(rows and rows[0])
        assert [6, 0] == seen
        service.execute("SET arkloop.orgs = '*'")
        insert = "INSERT INTO run_events VALUES (%s, 1, 'run.started', '{}') ON CONFLICT DO NOTHING"
        service.execute(insert, [new_id()])
        service.execute("SELECT FROM forgotten_runs")
        names = service.execute("SELECT lower_id, upper_id FROM run_events_partitions()").fetchall()
        end = max(upper for _, upper in names if upper)
        later = partitions.bound(partitions.time_of(end) + timedelta(days=1))
        assert (True,) == service.execute(
            "SELECT add_run_events_partition(%s, %s)", [end, later]
        ).fetchone()


def test_the_release_before_deletes_no_event_of_others(older: Engine) -> None:
    """Its statement finds nothing to collect; runs that it deletes are noted for this release."""
    run_id = new_id()
    with older.begin() as sql:
        sql.execute(text("INSERT INTO forgotten_runs (run_id) VALUES (:id)"), {"id": run_id})
        before = events(sql)
    migrate(older)
    with older.begin() as sql:
        # Rows of another partition with the same ctids.
        for seq in (1, 2):
            values = {"id": partitions.read(sql)[-1].lower, "seq": seq, "payload": "-"}
            sql.execute(text(INSERT), values)
        sql.execute(text("SET session_replication_role = replica"))
        sql.execute(
            text(
                "INSERT INTO runs (id, org_id, thread_id, created_by_user_id, trace_id, persona_id,"
                " route_id, model, position, state, queued_at) SELECT run_id, run_id, run_id,"
                " run_id, '', '', '', '', 1, 'completed', now() FROM run_events WHERE seq = 1"
            )
        )
        sql.execute(text("SET session_replication_role = origin"))
        deleted = next(iter(before))[0]
        sql.execute(text(DELETE_RUN), {"id": deleted})

        assert [] == sql.execute(text(COLLECT_OF_BEFORE)).all()

        assert 8 == len(events(sql))
        noted = sql.scalars(text("SELECT run_id FROM forgotten_events")).all()
        assert {run_id, deleted} == set(noted)


def test_a_run_of_the_future_is_no_obstacle(older: Engine) -> None:
    """Where the clock of a host was wrong all events stay in one partition, as before."""
    future = partitions.bound(datetime.now(UTC) + timedelta(days=3000))
    with older.begin() as sql:
        sql.execute(text(INSERT), {"id": future, "seq": 1, "payload": "-"})

    migrate(older)

    with older.connect() as sql:
        assert [] == list(partitions.read(sql))
        assert 7 == len(events(sql))


def test_a_reader_makes_the_migration_wait(older: Engine) -> None:
    """Nobody else waits for long meanwhile, and events are stored; then it continues."""
    with older.connect() as dump, ThreadPoolExecutor() as pool:
        dump.execute(text("SELECT count(*) FROM run_events"))
        migrating = pool.submit(schema.migrate, older, lock_seconds=60)
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"

        def waits() -> bool:
            with older.connect() as sql:
                return bool(sql.scalar(text(waiting)))

        eventually(waits)
        with older.begin() as sql:
            sql.execute(text("SET LOCAL statement_timeout = '5s'"))
            sql.execute(text(INSERT), {"id": new_id(), "seq": 1, "payload": "-"})
        dump.rollback()
        migrating.result()

    with older.connect() as sql:
        assert 7 == len(events(sql))
        assert "p" == sql.scalar(text("SELECT relkind FROM pg_class WHERE relname = 'run_events'"))


def test_a_dump_is_restored_whole(
    older: Engine, new_database: Callable[[], str], postgres: EmbeddedPostgres
) -> None:
    """Partitions, their bounds and the functions are in a dump, and the copy takes events."""
    migrate(older)
    url = older.url.render_as_string(hide_password=False)
    copy = create_engine(walls.as_user(new_database(), "postgres"))
    with copy.begin() as sql:
        sql.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))

    load_dump(postgres, url, copy.url.render_as_string(hide_password=False))

    with older.connect() as sql, copy.begin() as restored:
        assert events(sql) == events(restored)
        made = partitions.read(restored)
        assert partitions.read(sql) == made
        restored.execute(text(INSERT), {"id": new_id(), "seq": 1, "payload": "-"})
        later = partitions.bound(made[-1].end + timedelta(days=1))
        add = "SELECT add_run_events_partition(:lower, :upper)"
        assert restored.scalar(text(add), {"lower": made[-1].upper, "upper": later})
    copy.dispose()
