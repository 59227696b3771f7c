"""Findings of `arkloop doctor` about a Postgres that responds and does not write."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.cli.doctor import write_checks
from arkloop.shared.storage import schema
from tests import walls
from tests.cli.doctor.examined import Examine, examine, own_redis
from tests.waiting import eventually

pytestmark = pytest.mark.processes

__all__ = ["examine", "own_redis"]  # fixtures


@pytest.mark.owner
def test_a_lock_against_writes_is_found(examine: Examine, new_database: Callable[[], str]) -> None:
    """Reads do not wait for it, and no run begins: its process is named."""
    url = new_database()
    engine = create_engine(url)
    with engine.connect() as locker:
        pid = locker.scalar(text("SELECT pg_backend_pid()"))
        locker.execute(text("LOCK TABLE runs IN SHARE MODE"))
        report = examine(ARKLOOP_DATABASE_URL=url)
    engine.dispose()

    assert ["postgres writes"] == report.failed()
    assert f"pg_terminate_backend({pid})" in report.advice("postgres writes")


def test_a_lock_is_found_without_the_right_to_temporary_tables(
    examine: Examine, new_database: Callable[[], str]
) -> None:
    """Only the room on the disk is not looked at, and the report says so."""
    url = new_database()
    behind = walls.put_up(url)
    with walls.owner(url) as engine, engine.connect() as locker:
        database = make_url(url).database
        locker.execute(text(f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC"))
        locker.commit()
        report = examine(ARKLOOP_DATABASE_URL=behind)
        locker.execute(text("LOCK TABLE runs IN SHARE MODE"))
        locked = examine(ARKLOOP_DATABASE_URL=behind)

    [(level, why)] = report.of("postgres writes")
    assert ("warn", True) == (level, "has room is unknown: permission denied" in why)
    granted = f"GRANT TEMPORARY ON DATABASE {database} TO {walls.ROLE}"
    assert granted in report.advice("postgres writes")
    assert ["postgres writes"] == locked.failed()
    assert ["warn", "fail"] == [level for level, _ in locked.of("postgres writes")]


def test_a_disk_without_room_is_found(examine: Examine, new_database: Callable[[], str]) -> None:
    """What Postgres says is quoted."""
    url = new_database()
    engine = create_engine(url)
    with engine.begin() as sql:
        sql.execute(
            text(
                "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN"
                " RAISE 'could not extend file: No space left on device' USING ERRCODE = '53100';"
                " END $$"
            )
        )
        sql.execute(
            text(
                "CREATE EVENT TRIGGER refuse ON ddl_command_end WHEN TAG IN ('CREATE TABLE AS')"
                " EXECUTE FUNCTION refuse()"
            )
        )
    report = examine(ARKLOOP_DATABASE_URL=url)
    engine.dispose()

    assert ["postgres writes"] == report.failed()
    assert "could not extend file: No space left" in report.of("postgres writes")[0][1]
    assert "Free space" in report.advice("postgres writes")


def test_a_commit_that_waits_for_a_standby_is_found(
    examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is said of workers, whose heartbeats wait as well."""
    monkeypatch.setattr(write_checks, "_PATIENCE", 0.1)
    with EmbeddedPostgres(tmp_path / "postgres", options={"fsync": "off"}) as server:
        engine = create_engine(server.url, isolation_level="AUTOCOMMIT")
        schema.migrate(engine)
        with engine.connect() as sql, ThreadPoolExecutor(1) as threads:

            def wait_for(names: str) -> None:
                sql.execute(text(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'"))
                sql.execute(text("SELECT pg_reload_conf()"))

            def write() -> None:
                with engine.connect() as own:
                    own.execute(text("SET synchronous_commit = on"))
                    own.execute(text("CREATE TABLE written ()"))

            wait_for("paris")
            eventually(lambda: sql.scalar(text("SHOW synchronous_standby_names")) == "paris")
            written = threads.submit(write)
            try:
                eventually(lambda: bool(sql.scalar(WAITS)))
                report = examine(ARKLOOP_DATABASE_URL=server.url)
            finally:
                wait_for("")
            written.result(60)
        engine.dispose()

    assert ["postgres writes"] == report.failed()
    assert "commits (1) wait for a synchronous standby" in report.of("postgres writes")[0][1]
    assert "synchronous_standby_names is 'paris'" in report.of("postgres writes")[0][1]
    assert "Start the standby" in report.advice("postgres writes")
    assert [] == report.of("workers")


def test_commits_that_the_role_cannot_see_are_no_accepted_writes(
    examine: Examine, tmp_path: Path
) -> None:
    """A login that works under another role sees its own sessions only with a grant."""
    with EmbeddedPostgres(tmp_path / "postgres", options={"fsync": "off"}) as server:
        engine = create_engine(server.url, isolation_level="AUTOCOMMIT")
        schema.migrate(engine)
        login = server.url.replace("postgres@", "rotated@")

        def found() -> list[tuple[str, str]]:
            return examine(ARKLOOP_DATABASE_URL=login).of("postgres writes")

        with engine.connect() as sql:
            sql.execute(text("CREATE ROLE service"))
            sql.execute(text("GRANT ALL ON ALL TABLES IN SCHEMA public TO service"))
            sql.execute(text("CREATE ROLE rotated LOGIN IN ROLE service"))
            sql.execute(text("ALTER ROLE rotated SET role = 'service'"))
            assert [("ok", "accepted")] == found()
            sql.execute(text("SET synchronous_commit = off"))
            sql.execute(text("ALTER SYSTEM SET synchronous_standby_names = 'paris'"))
            sql.execute(text("SELECT pg_reload_conf()"))
            eventually(lambda: sql.scalar(text("SHOW synchronous_standby_names")) == "paris")
            report = examine(ARKLOOP_DATABASE_URL=login)
            sql.execute(text("GRANT pg_read_all_stats TO service"))
            assert [("ok", "accepted")] == found()
        engine.dispose()

    [(level, why)] = report.of("postgres writes")
    assert ("warn", True) == (level, "wait for a synchronous standby is unknown" in why)
    assert "GRANT pg_read_all_stats TO service" in report.advice("postgres writes")


WAITS = text(
    "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    " AND query_start < clock_timestamp() - interval '0.2 s')"
)
