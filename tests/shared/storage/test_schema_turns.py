"""Migrations at the same time: each waits until the one before is over."""

import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, create_engine, text

from arkloop.cli.main import main
from arkloop.shared.storage import row_security, schema
from tests import walls
from tests.shared.storage.test_schema import migrated_to, waiting_for_locks
from tests.waiting import eventually

pytestmark = pytest.mark.owner


#: All releases have it in common.
LOCK_KEY = int.from_bytes(b"arkloop")
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


def test_a_migration_that_waited_for_that_of_a_later_release_changes_nothing(
    new_database: Callable[[], str],
) -> None:
    """The release of the command grants nothing then, either, and exits with 0."""
    engine = create_engine(walls.as_user(new_database(), "postgres"))
    service = f"service_{secrets.token_hex(4)}"
    with engine.begin() as sql:
        sql.execute(text(f"CREATE ROLE {service} LOGIN"))
    owner = engine.url.update_query_dict({"application_name": "older"})
    url = owner.render_as_string(hide_password=False)
    env = {
        "ARKLOOP_OWNER_DATABASE_URL": url,
        "ARKLOOP_DATABASE_URL": walls.as_user(url, service),
    }
    with engine.connect() as later, ThreadPoolExecutor() as pool:
        later.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK_KEY})
        later.commit()
        waiting = pool.submit(CliRunner().invoke, main, ["migrate"], env=env)
        eventually(lambda: is_waiting(engine, "older"))
        later.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        later.commit()
        later.invalidate()
        done = waiting.result()

    assert (0, "9999") == (done.exit_code, done.stdout.strip())
    with engine.connect() as sql:
        may_read = text("SELECT has_table_privilege(:role, 'orgs', 'SELECT')")
        assert not sql.scalar(may_read, {"role": service})
    engine.dispose()


def test_policies_and_privileges_are_part_of_a_turn(new_database: Callable[[], str]) -> None:
    """The next session waits while the wall is put up: two would make the same policies."""
    engine = create_engine(walls.as_user(new_database(), "postgres"))
    env = {"ARKLOOP_DATABASE_URL": engine.url.render_as_string(hide_password=False)}
    with engine.connect() as reader, ThreadPoolExecutor() as pool:
        row_security.lift(engine)
        reader.execute(text("SELECT FROM orgs"))
        migrating = pool.submit(CliRunner().invoke, main, ["migrate", "--row-security=on"], env=env)
        eventually(lambda: waiting_for_locks(engine) > 0)
        waiting = pool.submit(schema.migrate, engine)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=1)
        reader.rollback()

        assert 0 == migrating.result().exit_code
        assert schema.needed_version() == waiting.result()
    engine.dispose()


def test_a_migration_that_waits_says_for_which_session(
    new_database: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The operator can look at that process of Postgres, and end it."""
    engine = create_engine(walls.as_user(new_database(), "postgres"))
    url = engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("ARKLOOP_DATABASE_URL", url)
    printed: list[str] = []

    def is_reported() -> bool:
        printed.append(capsys.readouterr().err)
        return "Waiting for" in "".join(printed)

    with engine.connect() as other, ThreadPoolExecutor() as pool:
        other.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK_KEY})
        pid = other.scalar(text("SELECT pg_backend_pid()"))
        other.commit()
        waiting = pool.submit(main, ["migrate"], standalone_mode=False)
        try:
            eventually(is_reported, seconds=20)
        finally:
            other.invalidate()
        waiting.result()
    engine.dispose()

    line = f"Waiting for another `arkloop migrate`: process {pid} of Postgres"
    assert [line] == "".join(printed).splitlines()
