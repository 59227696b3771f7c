"""Findings of `arkloop doctor` about databases: their schema, their encoding, their roles."""

import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, make_url, text

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.shared.config import Settings
from tests import walls
from tests.cli.doctor.examined import Examine, examine, own_redis
from tests.pgbouncer import needs_pgbouncer, pgbouncer
from tests.standby import replicated_postgres
from tests.unmigrated import foreign, unmigrated
from tests.waiting import eventually

pytestmark = pytest.mark.processes

__all__ = ["examine", "own_redis"]  # fixtures


def test_a_database_without_schema_fails(examine: Examine, postgres: EmbeddedPostgres) -> None:
    """The advice is to migrate; what needs tables is not looked at."""
    with unmigrated(postgres) as url:
        report = examine(ARKLOOP_DATABASE_URL=url)

    assert ["schema"] == report.failed()
    assert "arkloop migrate" in report.advice("schema")
    assert [] == report.of("workers")


@pytest.mark.parametrize("stored", ["ae1027a6acf", "3f2a9c01bd44", "001", "0000"])
def test_the_database_of_another_application_fails(
    examine: Examine, postgres: EmbeddedPostgres, stored: str
) -> None:
    """It is named as such, and nobody is sent to migrate or to grant there."""
    with foreign(postgres, stored) as url:
        report = examine(ARKLOOP_DATABASE_URL=url)

    assert ["schema"] == report.failed()
    assert f"has {stored!r}, the version of another application" in report.of("schema")[0][1]
    assert "point ARKLOOP_DATABASE_URL to it" in report.advice("schema")


def test_a_database_that_does_not_exist_fails(examine: Examine, postgres: EmbeddedPostgres) -> None:
    """The advice is to create it."""
    report = examine(ARKLOOP_DATABASE_URL=postgres.url_of("nowhere"))

    assert ["postgres"] == report.failed()
    assert "Create it" in report.advice("postgres")


def test_another_encoding_fails(examine: Examine, postgres: EmbeddedPostgres) -> None:
    """Such a database cannot store every text."""
    with unmigrated(postgres, "ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0") as url:
        report = examine(ARKLOOP_DATABASE_URL=url)

    assert ["postgres encoding", "schema"] == report.failed()


def test_a_standby_fails(examine: Examine, tmp_path: Path) -> None:
    """It accepts no writes; the advice is to point to the primary."""
    with replicated_postgres(tmp_path) as pair:
        report = examine(ARKLOOP_DATABASE_URL=pair.url(pair.standby))

        assert ["postgres"] == report.failed()
        assert "primary" in report.advice("postgres")
        assert [] == examine(ARKLOOP_DATABASE_URL=pair.url(pair.standby, pair.primary)).failed()


def test_a_recovery_that_has_reached_its_target_is_no_standby(
    examine: Examine, tmp_path: Path
) -> None:
    """It waits for a command, after which it accepts writes."""
    with replicated_postgres(tmp_path, recovery_target_name="before") as pair:

        def advice() -> str:
            return examine(ARKLOOP_DATABASE_URL=pair.url(pair.standby)).advice("postgres")

        assert "primary" in advice()
        engine = create_engine(pair.primary.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as sql:
            sql.execute(text("SELECT pg_create_restore_point('before')"))
        engine.dispose()

        eventually(lambda: "pg_wal_replay_resume()" in advice())


def test_a_standby_that_was_paused_is_one_still(examine: Examine, tmp_path: Path) -> None:
    """Nothing that was resumed there would accept writes."""
    with replicated_postgres(tmp_path) as pair:
        engine = create_engine(pair.standby.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as sql:
            sql.execute(text("SELECT pg_wal_replay_pause()"))
        engine.dispose()
        report = examine(ARKLOOP_DATABASE_URL=pair.url(pair.standby))

    assert "primary" in report.advice("postgres")


@pytest.mark.poolers
@needs_pgbouncer
def test_a_pooler_without_a_way_around_it_is_found(
    examine: Examine, postgres: EmbeddedPostgres, settings: Settings, tmp_path: Path
) -> None:
    """Leases need a session of their own, of the same database and not through the pooler."""
    url = make_url(settings.database_url)
    with pgbouncer(postgres, tmp_path, pool_mode="transaction") as port:
        pooled = f"postgresql://postgres@127.0.0.1:{port}/{url.database}"

        def pooler(direct: str = "") -> Sequence[tuple[str, str]]:
            return examine(ARKLOOP_DATABASE_URL=pooled, ARKLOOP_DIRECT_DATABASE_URL=direct).of(
                "pooler"
            )

        [(level, why)] = pooler()
        assert ("warn", True) == (level, "ARKLOOP_DIRECT_DATABASE_URL is not set" in why)
        [(level, why)] = pooler(pooled)
        assert ("fail", True) == (level, "a pooler, too" in why)
        [(level, why)] = pooler(postgres.url)
        assert ("fail", True) == (level, "another database" in why)
        assert [("ok", "leases and migrations go around it")] == pooler(settings.database_url)


def test_connections_of_other_roles_are_counted(
    examine: Examine, new_database: Callable[[], str]
) -> None:
    """Postgres hides from the service's role what kind of sessions they are."""
    url = new_database()
    behind = walls.put_up(url)
    with walls.owner(url) as engine, ExitStack() as opened:
        for _ in range(5):
            opened.enter_context(engine.connect())
        [(_, shown)] = examine(ARKLOOP_DATABASE_URL=behind).of("postgres connections")

    assert int(shown.partition(" of ")[0]) >= 6


def test_a_role_without_privileges_fails(
    examine: Examine, new_database: Callable[[], str], postgres: EmbeddedPostgres
) -> None:
    """A table that the service's role may not write is named."""
    url = new_database()
    walls.put_up(url)
    with walls.owner(url) as engine, engine.begin() as sql:
        sql.execute(text(f"REVOKE INSERT ON run_events FROM {walls.ROLE}"))

    report = examine(ARKLOOP_DATABASE_URL=walls.behind(url))

    assert ["privileges"] == report.failed()
    assert "run_events" in report.of("privileges")[0][1]


def test_a_role_that_may_not_execute_a_function_fails(
    examine: Examine, new_database: Callable[[], str]
) -> None:
    """A function that queries of the service call is named: every create would be a 500."""
    url = new_database()
    walls.put_up(url)
    with walls.owner(url) as engine, engine.begin() as sql:
        sql.execute(text(f"REVOKE EXECUTE ON FUNCTION run_refusals FROM {walls.ROLE}"))

    report = examine(ARKLOOP_DATABASE_URL=walls.behind(url))

    assert ["privileges"] == report.failed()
    assert "may not execute run_refusals" in report.of("privileges")[0][1]


def test_tables_of_other_applications_need_no_privileges(
    examine: Examine, new_database: Callable[[], str]
) -> None:
    """The schema may have some that the service's role cannot read."""
    url = new_database()
    walls.put_up(url)
    with walls.owner(url) as engine, engine.begin() as sql:
        sql.execute(text("CREATE TABLE theirs (id uuid)"))

    assert [] == examine(ARKLOOP_DATABASE_URL=walls.behind(url)).failed()


@pytest.mark.owner
def test_a_locked_table_fails_the_checks_that_read_it(
    examine: Examine, new_database: Callable[[], str]
) -> None:
    """Others are carried out all the same, and the process that holds the lock is named."""
    url = new_database()
    with walls.owner(url) as engine, engine.begin() as sql:
        sql.execute(text("LOCK TABLE webhook_endpoints IN ACCESS EXCLUSIVE MODE"))
        pid = sql.scalar(text("SELECT pg_backend_pid()"))
        report = examine(ARKLOOP_DATABASE_URL=url)

    assert ["webhooks"] == report.failed()
    [(_, why)] = report.of("webhooks")
    assert "canceling statement due to lock timeout" in why
    assert f"Process {pid} of Postgres locks a table" in report.advice("webhooks")
    assert "in a transaction that began" in report.advice("webhooks")
    assert {"workers", "queue", "event partitions"} <= {
        finding["check"] for finding in report.data["findings"]
    }


def test_a_locker_of_another_role_is_named_before_those_that_wait_for_it(
    examine: Examine, new_database: Callable[[], str]
) -> None:
    """Postgres does not show the service's role since when its transaction is open."""
    url = new_database()
    behind = walls.put_up(url)

    def lock() -> None:
        engine = create_engine(behind)
        with engine.begin() as sql:
            sql.execute(text("LOCK TABLE webhook_endpoints IN ACCESS EXCLUSIVE MODE"))
        engine.dispose()

    with ThreadPoolExecutor(1) as threads, walls.owner(url) as engine, engine.begin() as sql:
        sql.execute(text("SELECT FROM webhook_endpoints"))
        pid = sql.scalar(text("SELECT pg_backend_pid()"))
        threads.submit(lock)
        waiting = text("SELECT pg_backend_pid() = ANY(pg_blocking_pids(pid)) FROM pg_locks")
        eventually(lambda: any(sql.scalars(waiting)))
        advice = examine(ARKLOOP_DATABASE_URL=behind).advice("webhooks")

    assert f"Process {pid} of Postgres locks a table, or is about to: let it end" in advice


def test_a_wall_with_a_gap_fails(examine: Examine, new_database: Callable[[], str]) -> None:
    """A complete one is fine; a table without its policy is named, and a superuser is warned."""
    url = new_database()
    walls.put_up(url)
    behind = walls.behind(url)
    assert [("ok", "on")] == examine(ARKLOOP_DATABASE_URL=behind).of("row security")

    [(level, why)] = examine(ARKLOOP_DATABASE_URL=walls.as_user(url, "postgres")).of("row security")
    assert ("warn", True) == (level, "superuser" in why)

    with walls.owner(url) as engine, engine.begin() as sql:
        sql.execute(text("ALTER TABLE threads DISABLE ROW LEVEL SECURITY"))
    [(level, why)] = examine(ARKLOOP_DATABASE_URL=behind).of("row security")
    assert ("fail", "on, but not for threads") == (level, why)


def test_the_role_of_the_session_counts(examine: Examine, new_database: Callable[[], str]) -> None:
    """A pooler may log in as another role than the URL names, such as a superuser."""
    url = new_database()
    walls.put_up(url)
    login = f"login_{secrets.token_hex(4)}"
    with walls.owner(url) as engine, engine.begin() as sql:
        sql.execute(text(f"CREATE ROLE {login} LOGIN NOINHERIT IN ROLE postgres"))
        sql.execute(text(f"ALTER ROLE {login} SET role = 'postgres'"))

    [(level, why)] = examine(ARKLOOP_DATABASE_URL=walls.as_user(url, login)).of("row security")

    assert ("warn", True) == (level, "postgres" in why)


def test_dates_are_read_however_a_role_writes_them(
    examine: Examine, new_database: Callable[[], str]
) -> None:
    """The service sets its own style, too."""
    url = make_url(new_database()).update_query_dict({"options": "-c datestyle=SQL,DMY"})
    report = examine(ARKLOOP_DATABASE_URL=url.render_as_string(hide_password=False))

    assert "ok" == report.of("postgres clock")[0][0]


def test_what_postgres_itself_says_is_no_matter_of_the_network(
    examine: Examine, new_database: Callable[[], str], postgres: EmbeddedPostgres
) -> None:
    """The advice fits the reason that the server has given."""
    url = new_database()
    walls.put_up(url)
    name = make_url(url).database
    strangers = f"stranger_{secrets.token_hex(4)}"
    engine = create_engine(postgres.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as sql:

        def advised(change: str, check: str, url: str, undo: str) -> str:
            sql.execute(text(change))
            try:
                report = examine(ARKLOOP_DATABASE_URL=url)
            finally:
                sql.execute(text(undo))
            assert [check] == report.failed()
            return report.advice(check)

        of_stranger = make_url(url).set(username=strangers, password=None)
        stranger = of_stranger.render_as_string(hide_password=False)
        drop = f"DROP ROLE {strangers}"
        limited = f"ALTER ROLE {walls.ROLE} CONNECTION LIMIT"
        read_only = f"ALTER DATABASE {name}"

        advice = advised(f"CREATE ROLE {strangers} NOLOGIN", "postgres", stranger, drop)
        assert "LOGIN" in advice
        advice = advised(f"CREATE ROLE {strangers} LOGIN", "privileges", stranger, drop)
        assert "arkloop migrate" in advice
        advice = advised(f"{limited} 0", "postgres", walls.behind(url), f"{limited} -1")
        assert "CONNECTION LIMIT" in advice
        advice = advised(
            f"{read_only} SET default_transaction_read_only = on",
            "postgres",
            url,
            f"{read_only} RESET default_transaction_read_only",
        )
        assert "default_transaction_read_only is on" in advice
    engine.dispose()


def test_a_setting_is_changed_where_it_was_made(
    examine: Examine, new_database: Callable[[], str], postgres: EmbeddedPostgres
) -> None:
    """ALTER SYSTEM changes nothing for a role, a database or a client with a value of its own."""
    check, setting = "postgres synchronous_commit", "synchronous_commit"
    url = make_url(new_database()).set(username="postgres", password=None)
    engine = create_engine(postgres.url, isolation_level="AUTOCOMMIT")
    role = f"careless_{secrets.token_hex(4)}"

    def advised(url: URL) -> str:
        found = url.render_as_string(hide_password=False)
        return examine(ARKLOOP_DATABASE_URL=found).advice(check)

    with engine.connect() as sql:
        sql.execute(text(f"CREATE ROLE {role} SUPERUSER LOGIN"))
        for owner in (
            f"ROLE {role}",
            f"DATABASE {url.database}",
            f"ROLE {role} IN DATABASE {url.database}",
        ):
            sql.execute(text(f"ALTER {owner} SET {setting} = off"))
            advice = advised(url.set(username=role))
            sql.execute(text(f"ALTER {owner} RESET {setting}"))
            assert advice.startswith(f"ALTER {owner} RESET {setting}")
        sql.execute(text(f"DROP ROLE {role}"))
    engine.dispose()
    advice = advised(url.update_query_dict({"options": f"-c {setting}=off"}))
    assert advice.startswith(f"Remove {setting} from the options of ARKLOOP_DATABASE_URL")
