"""Findings of `arkloop doctor` about a Postgres that responds and does not write."""

from collections.abc import Callable

import pytest
from sqlalchemy import create_engine, text

from tests.cli.doctor.examined import Examine, examine, own_redis

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
