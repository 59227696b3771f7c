"""`arkloop migrate` while Postgres is away, or commits wait for a synchronous standby."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM

import psycopg
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import create_engine, text

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.cli.main import main
from arkloop.shared.storage import row_security, schema
from arkloop.shared.storage.postgres import BoundedConnection, ServerSilent, connection_args
from tests import walls
from tests.closed_port import closed_port
from tests.first_process import end_at
from tests.shared.storage.test_commit_waits import configure
from tests.shared.storage.test_schema import migrated_to
from tests.shared.storage.test_schema_turns import LOCK_KEY
from tests.standby import Pair, replicated_postgres
from tests.waiting import eventually

pytestmark = pytest.mark.processes

ADVICE = "Start the standby; or, to continue without it, ALTER SYSTEM SET synchronous_standby_names"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tmp_path / "postgres", options={"fsync": "off"}) as made:
        yield made


def migrate(url: str, *args: str, **env: str) -> Result:
    return CliRunner().invoke(main, ["migrate", *args], env={"ARKLOOP_DATABASE_URL": url, **env})


@contextmanager
def lost_standby(server: EmbeddedPostgres) -> Iterator[None]:
    """Let commits wait in the block, for a standby that is away; one of them waits all the time."""
    configure(server, "missing")
    try:
        eventually(lambda: not _is_confirmed(server.url))
        yield
    finally:
        configure(server, "")
        eventually(lambda: _is_confirmed(server.url))


def _is_confirmed(url: str) -> bool:
    with BoundedConnection.connect(**connection_args(url), autocommit=True) as sql:
        sql.answer_seconds = 0.5
        try:
            sql.execute("CREATE TEMP TABLE written ()")
        except ServerSilent:
            return False
    return True


def refused(server: EmbeddedPostgres, call: Callable[[], Result]) -> Result:
    """Return what the call printed while the standby was lost, and check what it has left."""
    with ThreadPoolExecutor(1) as threads, lost_standby(server):
        try:
            done = threads.submit(call).result(timeout=30)
        finally:
            # On a busy machine the commit of the test may have been silent before it had to wait.
            eventually(lambda: _locks_and_waits(server.url) in ((0, 0), (0, 1)), seconds=10)
    assert 1 == done.exit_code, done.output
    assert "synchronous_standby_names is 'missing'" in done.stderr
    assert ADVICE in done.stderr
    return done


def _locks_and_waits(url: str) -> tuple[int, ...]:
    """Return how many tables are locked, and how many commits wait: one may be that of the test."""
    engine = create_engine(url)
    with engine.connect() as sql:
        [row] = sql.execute(
            # Not of autovacuum, which may commit at any time.
            text(
                "SELECT (SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
                " WHERE l.mode = 'AccessExclusiveLock' AND relnamespace = 'public'::regnamespace),"
                " (SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
                " AND backend_type = 'client backend')"
            )
        )
    engine.dispose()
    return tuple(row)


def test_a_migration_is_refused_before_it_locks_a_table(server: EmbeddedPostgres) -> None:
    """Its commit would wait with all locks, and reads with it, until the standby is back."""
    engine = migrated_to("0082", server.url)

    done = refused(server, lambda: migrate(server.url))

    assert done.stderr.startswith("Error: Cannot migrate ")
    assert 1 == done.output.count("\n")
    with engine.connect() as sql:
        assert "0082" == schema.current_version(sql)
    engine.dispose()
    assert 0 == migrate(server.url).exit_code


@pytest.mark.parametrize("is_apart", [False, True])
def test_nothing_waits_for_a_standby_where_no_migration_is_missing(
    server: EmbeddedPostgres, is_apart: bool
) -> None:
    """A release that changes nothing succeeds while the standby is lost, also where the service has
    a role of its own, which has its privileges.
    """
    url, owner = server.url, {"ARKLOOP_OWNER_DATABASE_URL": server.url} if is_apart else {}
    assert 0 == migrate(url).exit_code
    if is_apart:
        url = walls.put_up(url)
        assert 0 == migrate(url, **owner).exit_code

    with ThreadPoolExecutor(1) as threads, lost_standby(server):
        done = threads.submit(lambda: migrate(url, **owner)).result(timeout=30)

    assert (0, schema.needed_version()) == (done.exit_code, done.stdout.strip()), done.output


@pytest.mark.parametrize(
    "missing",
    [
        None,
        "USAGE ON SCHEMA public",
        "SELECT ON alembic_version",
        "DELETE ON runs",
        "EXECUTE ON FUNCTION queue_of",
        "EXECUTE ON FUNCTION add_run_events_partition",
    ],
)
def test_privileges_and_policies_are_refused_like_a_migration(
    server: EmbeddedPostgres, missing: str | None
) -> None:
    """The schema is up to date, and what is changed for the service's role has commits, too."""
    assert 0 == migrate(server.url).exit_code
    walls.put_up(server.url)
    url, args, service = server.url, ["--row-security", "off"], {}
    if missing is not None:
        url, args, service = walls.behind(url), [], {"ARKLOOP_OWNER_DATABASE_URL": url}
        with walls.owner(server.url) as engine, engine.begin() as sql:
            sql.execute(text(f"REVOKE {missing} FROM PUBLIC, {walls.ROLE}"))

    refused(server, lambda: migrate(url, *args, **service))

    engine = create_engine(server.url)
    with engine.connect() as sql:
        assert row_security.is_on(sql)
    engine.dispose()


def test_a_standby_that_works_delays_nothing(tmp_path: Path) -> None:
    """Commits wait for it, and it confirms them."""
    with replicated_postgres(tmp_path) as pair:
        migrated_to("0082", pair.primary.url).dispose()
        configure(pair.primary, "*")
        eventually(lambda: _is_synchronous(pair))

        done = migrate(pair.primary.url)

        configure(pair.primary, "")
    assert (0, schema.needed_version()) == (done.exit_code, done.output.strip())


def _is_synchronous(pair: Pair) -> bool:
    with psycopg.connect(pair.primary.url.replace("+psycopg", "")) as sql:
        return sql.execute("SELECT sync_state FROM pg_stat_replication").fetchone() == ("sync",)


def test_a_migration_whose_commit_waits_is_not_to_be_ended(
    server: EmbeddedPostgres, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one names it, as every holder of the lock, and says what it waits for."""
    assert 0 == migrate(server.url).exit_code
    monkeypatch.setenv("ARKLOOP_DATABASE_URL", server.url)
    url = server.url.replace("+psycopg", "")
    printed: list[str] = []

    def is_reported() -> bool:
        printed.append(capsys.readouterr().err)
        return "Waiting for" in "".join(printed)

    with psycopg.connect(url) as first, ThreadPoolExecutor(2) as threads:
        pid = first.info.backend_pid
        first.execute("SELECT pg_advisory_lock(%s)", [LOCK_KEY])
        first.execute("CREATE TABLE missing ()")
        with lost_standby(server):
            committing = threads.submit(first.commit)
            eventually(lambda: _locks_and_waits(server.url)[1] == 2)
            second = threads.submit(main, ["migrate"], standalone_mode=False)
            eventually(is_reported, seconds=20)
        committing.result(60)
        first.close()
        second.result(60)

    [line] = "".join(printed).splitlines()
    assert line.startswith(f"Waiting for another `arkloop migrate`: process {pid} of Postgres")
    assert "Its commit waits for a synchronous standby: start that" in line


def test_the_wait_for_postgres_ends_at_sigterm() -> None:
    """The command ends at once, also as process 1 of a container, and not with status 0."""
    url = f"postgresql://nobody@127.0.0.1:{closed_port()}/nothing"
    command = [sys.executable, "-m", "arkloop.cli", "migrate", "--wait", "60"]

    status, output = end_at(b"Waiting for the database", command, {"ARKLOOP_DATABASE_URL": url})

    # The latter where namespaces are not allowed, and the signal itself ends the process.
    assert status in {128 + SIGTERM, -SIGTERM}
    assert b"" == output
