"""The service behind PgBouncer, which shares the server's sessions among its clients."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError

from arkloop.api.app import create_app
from arkloop.api.warm_up import warm_up
from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.cli.main import main
from arkloop.shared.accounts import erasure
from arkloop.shared.config import Settings
from arkloop.shared.errors import Unavailable
from arkloop.shared.runs import sweep
from arkloop.shared.storage.checkouts import Patience
from arkloop.shared.storage.connections import Connections, connect
from arkloop.shared.storage.keys import Keys
from arkloop.shared.storage.postgres import Timeouts, connection_args
from arkloop.worker.process.lease import Lease
from tests.clients import User
from tests.pgbouncer import needs_pgbouncer, pgbouncer
from tests.system import System, running_system
from tests.waiting import eventually, in_parallel

pytestmark = [pytest.mark.poolers, needs_pgbouncer]

SERVER_CONNECTIONS = 3
#: `server_lifetime` is what retires a session that somebody believes to be theirs.
TRANSACTION_MODE = {
    "pool_mode": "transaction",
    "max_prepared_statements": 0,
    "default_pool_size": SERVER_CONNECTIONS,
    "server_lifetime": 1,
}
SESSION_MODE = {"pool_mode": "session", "default_pool_size": 30}
PATIENT = Timeouts(lock=10, statement=20, answer=30, checkout=Patience(30, 30))
IN_TRANSACTION = (
    "SELECT state, query FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name = 'pooled' AND state <> 'idle'"
)
WAITING_FOR_WORKERS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND wait_event_type = 'Lock' AND query ~ '(INTO|UPDATE) workers'"
)
QUICK = Timeouts(lock=0.2, statement=0.5, answer=30, checkout=Patience(30, 30))


@pytest.fixture(scope="module")
def pooled_url(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], str]]:
    """Call it with a database's URL for the one through PgBouncer in transaction mode."""
    folder = tmp_path_factory.mktemp("pgbouncer")
    with pgbouncer(postgres, folder, **TRANSACTION_MODE) as port:
        yield lambda url: through(url, port)


def through(url: str, port: int) -> str:
    return f"postgresql+psycopg://postgres@127.0.0.1:{port}/{make_url(url).database}"


@pytest.fixture
def pooled(settings: Settings, pooled_url: Callable[[str], str]) -> Iterator[Connections]:
    url = pooled_url(settings.database_url)
    opened = connect(replace(settings, database_url=url), application="pooled", timeouts=PATIENT)
    yield opened
    opened.close()


def test_statements_are_not_prepared_through_a_pooler(pooled: Connections) -> None:
    """A session that never saw the statement can execute it, as often as it is repeated."""

    def ask(number: int) -> int:
        with pooled.transaction() as tx:
            return int(tx.sql.scalar(text("SELECT CAST(:n AS int)"), {"n": number}) or 0)

    for _ in range(20):
        assert list(range(20)) == in_parallel(20, ask)


def test_limits_hold_in_every_transaction(pooled: Connections) -> None:
    """Reads, single statements and transactions end by Postgres' own time limit."""
    hasty = connect(pooled.settings, application="pooled", timeouts=QUICK)
    for begin in (hasty.transaction, hasty.reading, hasty.statement):
        with pytest.raises(Unavailable) as ended, begin() as opened:
            getattr(opened, "sql", opened).execute(text("SELECT pg_sleep(20)"))
        assert "statement timeout" in str(ended.value.__cause__)
    hasty.close()


def test_a_single_statement_is_committed(pooled: Connections) -> None:
    """What needs no transaction of its own directly gets one through a pooler."""
    with pooled.statement() as tx:
        tx.sql.execute(text("INSERT INTO orgs (id, name) VALUES (gen_random_uuid(), 'pooled')"))
    with pooled.reading() as sql:
        assert 1 == sql.scalar(text("SELECT count(*) FROM orgs WHERE name = 'pooled'"))


def test_no_setting_reaches_other_clients(pooled: Connections) -> None:
    """After the service has used every session of the pool, each has the server's settings."""

    def use(_: int) -> None:
        with pooled.transaction() as tx:
            tx.sql.execute(text("SELECT pg_sleep(0.05)"))

    in_parallel(20, use)
    url = connection_args(pooled.settings.database_url)
    others = [psycopg.connect(**url) for _ in range(SERVER_CONNECTIONS)]
    names = ("statement_timeout", "lock_timeout", "enable_seqscan")
    seen = {
        other.execute(
            "SELECT current_setting(%s), current_setting(%s), current_setting(%s)", names
        ).fetchone()
        for other in others  # each stays in its transaction, hence has a session of its own
    }
    for other in others:
        other.close()

    assert {("0", "0", "on")} == seen


def test_a_process_is_warm_with_one_connection_of_the_server(
    postgres: EmbeddedPostgres, settings: Settings, tmp_path: Path
) -> None:
    """It holds none while it needs another: processes that start together would stop each other."""
    with pgbouncer(postgres, tmp_path, **{**TRANSACTION_MODE, "default_pool_size": 1}) as port:
        url = through(settings.database_url, port)
        connections = connect(replace(settings, database_url=url), application="tests")
        app = create_app(connections=connections)

        warm_up(app)

        assert 200 == app.test_client().get("/readyz").status_code
        connections.close()


def test_an_error_within_a_read_ends_the_read_alone(pooled: Connections) -> None:
    """The connection is as good as new for the next caller."""
    with pytest.raises(DBAPIError), pooled.reading() as sql:
        sql.execute(text("SELECT 1 / 0"))
    with pooled.reading() as sql:
        assert 1 == sql.scalar(text("SELECT 1"))


def test_a_lease_through_a_pooler_relies_on_heartbeats(
    pooled: Connections, caplog: pytest.LogCaptureFixture
) -> None:
    """It holds no lock, says so once, and nobody takes the worker for dead meanwhile."""
    settings = replace(pooled.settings, heartbeat_seconds=0.1, lease_seconds=6)
    with leased(settings) as lease:
        with pooled.reading() as sql:
            key = sql.scalar(
                text("SELECT lock_key FROM workers WHERE id = :id"), {"id": lease.worker_id}
            )
        assert sweep.NO_LOCK == key
    assert 1 == caplog.text.count("ARKLOOP_DIRECT_DATABASE_URL")


@pytest.mark.parametrize(
    "locked",
    ["SELECT FROM workers FOR UPDATE", "LOCK TABLE workers IN ACCESS EXCLUSIVE MODE"],
)
def test_a_lock_that_stays_takes_one_session_of_a_pooler(
    pooled: Connections, settings: Settings, locked: str
) -> None:
    """Each try to renew a lease ends in Postgres, too, and leaves no limit to other clients."""
    url = settings.database_url.replace("+psycopg", "", 1)
    with leased(replace(pooled.settings, heartbeat_seconds=0.5, lease_seconds=600)) as lease:
        with psycopg.connect(url) as holder:
            holder.execute("SET arkloop.orgs = '*'")
            holder.execute(locked.encode())
            eventually(lambda: lease._outage._failures > 4)
            [waiting] = holder.execute(WAITING_FOR_WORKERS).fetchone() or [None]
            assert waiting in (0, 1)
        eventually(lambda: not lease._outage.is_on)


def test_a_lease_with_a_url_of_its_own_holds_its_lock(
    pooled: Connections, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """The rest of the service goes through the pooler all the same."""
    url = settings.database_url
    with leased(replace(pooled.settings, direct_database_url=url)) as lease:
        with pooled.reading() as sql:
            held = sql.scalar(
                text(
                    "SELECT count(*) FROM workers w JOIN pg_locks l ON l.granted"
                    " AND l.locktype = 'advisory' AND l.classid = (w.lock_key >> 32)::oid"
                    " AND l.objid = (w.lock_key & 4294967295)::oid WHERE w.id = :id"
                ),
                {"id": lease.worker_id},
            )
        assert 1 == held
    assert "pooler" not in caplog.text


@contextmanager
def leased(settings: Settings) -> Iterator[Lease]:
    lease = Lease(settings, Keys(), dict, lambda _run_id, _fence: None)
    try:
        assert lease.wait_until_valid(60)
        yield lease
    finally:
        lease.stop()


def test_an_export_holds_no_transaction_while_it_is_written(
    pooled: Connections, settings: Settings, alice: User
) -> None:
    """The program that reads the output may take longer over it than a transaction may be idle."""
    for _ in range(3):
        alice.thread()
    opened = connect(pooled.settings, application="pooled", timeouts=PATIENT, pool_size=1)
    kinds, held = [], []
    url = settings.database_url.replace("+psycopg", "", 1)
    with psycopg.connect(url, autocommit=True) as direct:
        for entry in erasure.export_user(opened, alice.id):
            kinds.append(entry["type"])
            held += direct.execute(IN_TRANSACTION).fetchall()
    opened.close()

    assert 3 == kinds.count("thread")
    assert [] == held


@pytest.mark.owner
def test_migrations_through_a_pooler_are_refused(
    pooled: Connections, new_database: Callable[[], str], pooled_url: Callable[[str], str]
) -> None:
    """One line says which setting helps, and with that it works."""
    direct = new_database()
    env = {"ARKLOOP_DATABASE_URL": pooled_url(direct)}
    refused = CliRunner().invoke(main, ["migrate"], env=env)
    done = CliRunner().invoke(main, ["migrate"], env={**env, "ARKLOOP_DIRECT_DATABASE_URL": direct})

    assert (1, 1) == (refused.exit_code, refused.output.count("\n"))
    assert "ARKLOOP_DIRECT_DATABASE_URL" in refused.output
    assert 0 == done.exit_code, done.output


@pytest.mark.parametrize("name", ["ARKLOOP_OWNER_DATABASE_URL", "ARKLOOP_DIRECT_DATABASE_URL"])
def test_a_url_for_migrations_that_leads_to_a_pooler_is_named(
    name: str, settings: Settings, pooled_url: Callable[[str], str]
) -> None:
    """Nothing else that is set beside it would change anything."""
    direct = settings.database_url
    env = {"ARKLOOP_DATABASE_URL": direct, name: pooled_url(direct)}
    refused = CliRunner().invoke(main, ["migrate"], env=env)

    assert 1 == refused.exit_code
    assert f"Error: {name} points to a pooler" in refused.output
    assert "point it to Postgres itself" in refused.output


@pytest.mark.parametrize("mode", [TRANSACTION_MODE, SESSION_MODE], ids=["transaction", "session"])
def test_runs_complete_behind_pgbouncer(
    mode: dict[str, object],
    postgres: EmbeddedPostgres,
    new_database: Callable[[], str],
    tmp_path: Path,
) -> None:
    """Many at once, for longer than a session lives: none fails, and no request is a 500."""
    with pgbouncer(postgres, tmp_path, **mode) as port:
        url = through(new_database(), port)
        with running_system(lambda: url, tmp_path, web=1) as system:
            user = system.caller()
            steps = ({"tool": "sleep", "args": {"seconds": 2}}, {"say": "done ", "repeat": 20})
            runs = [user.run(*steps) for _ in range(20)]
            states = [user.ended(run_id)["status"] for run_id in runs]
            assert ["completed"] * 20 == states
            assert [] == faults(system)


def faults(system: System) -> Sequence[str]:
    """Return the lines of its logs that report a fault."""
    logs = [system.worker.log, *(web.log for web in system.web)]
    words = ("request failed", "prepared statement", "from lost worker", "Traceback")
    return [
        line
        for log in logs
        for line in log.read_text().splitlines()
        if any(w in line for w in words)
    ]
