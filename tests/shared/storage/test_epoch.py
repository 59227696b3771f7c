"""The beginning of names in Redis: the same for one history of one database, and for no other."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url, text

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.shared.config import Settings
from arkloop.shared.errors import Unavailable
from arkloop.shared.outage_log import OutageLog, reason_of
from arkloop.shared.storage import epoch, rewinds
from arkloop.shared.storage.connections import Connections, connect
from arkloop.shared.storage.epoch import learn
from arkloop.shared.storage.keys import Keys
from arkloop.worker.process.lease import Lease
from tests.shared_app import PATIENT
from tests.standby import replicated_postgres
from tests.waiting import eventually

pytestmark = pytest.mark.processes


@contextmanager
def opened(settings: Settings, url: str) -> Iterator[Connections]:
    """Open a process of its own, which has reached Postgres."""
    made = connect(replace(settings, database_url=url), application="tests-epoch", timeouts=PATIENT)
    try:
        with made.reading():
            yield made
    finally:
        made.close()


def keys_of(settings: Settings, url: str) -> Keys:
    with opened(settings, url) as connections:
        return connections.keys


def load_dump(postgres: EmbeddedPostgres, source: str, target: str, *options: str) -> None:
    """Dump one database of the server and load it into another one, as a restore does."""
    of_server = ("--host", str(postgres.sockets), "--username", "postgres")
    command = [postgres.binaries / "pg_dump", *of_server, *options, name_of(source)]
    dump = subprocess.run(command, check=True, capture_output=True).stdout
    with psycopg.connect(target.replace("+psycopg", "")):
        command = [postgres.binaries / "psql", *of_server, "--quiet", name_of(target)]
        subprocess.run(command, input=dump, check=True, capture_output=True)


def name_of(url: str) -> str:
    return str(make_url(url).database)


def test_all_processes_of_an_installation_use_the_same_names(
    settings: Settings, connections: Connections
) -> None:
    """All processes of an installation use the same names, also after all their connections were
    replaced.
    """
    with connections.reading():
        other = keys_of(settings, settings.database_url)

    assert connections.keys.epoch
    assert (connections.keys.installation, connections.keys.epoch) == (
        other.installation,
        other.epoch,
    )


def test_two_databases_are_two_installations(
    settings: Settings, new_database: Callable[[], str]
) -> None:
    """Although one is a copy of the other, with the row of its installation."""
    keys, other = keys_of(settings, new_database()), keys_of(settings, new_database())

    assert keys.installation != other.installation


def test_a_dump_that_is_loaded_into_the_same_database_begins_an_epoch(
    settings: Settings, postgres: EmbeddedPostgres, new_database: Callable[[], str]
) -> None:
    """Its tables are made again there, and the row has the same content."""
    url = new_database()
    before = keys_of(settings, url)

    load_dump(postgres, url, url, "--clean")

    assert before.epoch != keys_of(settings, url).epoch


def test_a_promotion_begins_an_epoch_of_the_same_installation(
    settings: Settings, tmp_path: Path
) -> None:
    """A standby may lack what the primary had; new connections know it at once."""
    with replicated_postgres(tmp_path) as pair:
        before = keys_of(settings, pair.primary.url)
        pair.primary.close()
        pair.promote()
        after = keys_of(settings, pair.standby.url)

    assert before.installation == after.installation
    assert before.epoch != after.epoch


def test_a_former_primary_that_is_started_again_is_passed_over(
    settings: Settings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that knows the promoted server stays there, though the former one accepts writes
    and comes first in the URL, and says so; a process that begins knows neither.
    """
    # That of the process has one line in 30 s, which may be another test's.
    monkeypatch.setattr(epoch, "_refusals", OutageLog(epoch.log, "connecting to the primary"))
    with replicated_postgres(tmp_path) as pair:
        url = pair.url(pair.primary, pair.standby)
        with opened(settings, url) as connections:
            pair.primary.stop()
            pair.promote()
            eventually(lambda: is_open(connections))
            lease = Lease(
                replace(settings, database_url=url), connections.keys, dict, lambda *_claim: None
            )
            assert lease.wait_until_valid(60)
            pair.primary.start()
            [lost] = leases(connections)
            with connections.reading(), connections.reading() as sql:  # the second one is new
                file = sql.scalar(text("SELECT pg_walfile_name(pg_current_wal_lsn())"))
                assert str(file).startswith("00000002")
                sql.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": lost})
            eventually(lambda: leases(connections) not in ([], [lost]))
            lease.stop(10)
            assert connections.keys.epoch.endswith(".2")
            assert "is on timeline 1 of its cluster" in caplog.text
        after_restart = keys_of(settings, url)
    assert after_restart.epoch.endswith(".1")


def leases(connections: Connections) -> list[int]:
    with connections.reading() as sql:
        found = "SELECT pid FROM pg_stat_activity WHERE application_name = 'arkloop-lease'"
        return list(sql.scalars(text(found)))


def test_an_earlier_timeline_of_another_cluster_is_accepted(
    settings: Settings, new_database: Callable[[], str]
) -> None:
    """A dump may be loaded into a new cluster, while processes run that know the former one."""
    with opened(settings, new_database()) as connections:
        timelines = connections.keys.timelines
        [(cluster, timeline)] = timelines.items()
        timelines |= {"another": timeline + 8}
        with connections.reading():
            pass
        timelines |= {cluster: timeline + 1}
        with connections.reading(), pytest.raises(Unavailable) as refused, connections.reading():
            pass
    # It is not to be stopped where the promoted server was lost.
    assert "restart web and worker processes" in reason_of(refused.value)


def is_open(connections: Connections) -> bool:
    try:
        with connections.reading():
            return True
    except Unavailable:
        return False


@pytest.mark.owner
def test_a_role_that_may_not_know_the_cluster_learns_its_timeline(
    settings: Settings, new_database: Callable[[], str]
) -> None:
    """A former primary is known by the identity of the database then."""
    url = new_database()
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as sql:
        sql.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM public")
        sql.execute("CREATE ROLE unaware LOGIN")
        sql.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO unaware")

    with (
        opened(settings, url) as of_owner,
        opened(settings, url.replace("postgres@", "unaware@")) as connections,
    ):
        assert of_owner.keys.epoch == connections.keys.epoch
        assert [1] == [*connections.keys.timelines.values()]
        [(identity, timeline)] = connections.keys.timelines.items()
        assert identity not in of_owner.keys.timelines
        connections.keys.timelines[identity] = timeline + 1
        with pytest.raises(Unavailable), connections.reading():
            pass


class Counting(psycopg.Connection[Any]):
    """A connection that counts its statements."""

    executed = 0

    def execute(self, *args: Any, **kwargs: Any) -> psycopg.Cursor[Any]:
        self.executed += 1
        return super().execute(*args, **kwargs)


@pytest.mark.owner
def test_what_postgres_hides_is_asked_for_once(new_database: Callable[[], str]) -> None:
    """Each connection that is refused a statement would have an error in Postgres' log."""
    url = new_database().replace("+psycopg", "")
    keys = Keys()

    def statements_for(role: str) -> int:
        of_role = url.replace("postgres@", f"{role}@")
        with Counting.connect(of_role, autocommit=True) as connection:
            learn(keys, connection)
            return connection.executed

    with psycopg.connect(url, autocommit=True) as sql:
        sql.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM public")
        for role in ("of_part", "of_nothing"):
            sql.execute(f"CREATE ROLE {role} LOGIN")
            sql.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        assert [2, 1] == [statements_for("of_part"), statements_for("of_part")]
        sql.execute("REVOKE EXECUTE ON FUNCTION pg_current_wal_lsn() FROM public")
        assert [3, 1] == [statements_for("of_nothing"), statements_for("of_nothing")]

    assert keys.epoch.endswith(".")


@pytest.mark.owner
def test_a_role_that_may_not_see_the_log_is_no_hindrance(
    settings: Settings, new_database: Callable[[], str]
) -> None:
    """A role that may not see Postgres' log still gets a name for the installation."""
    url = new_database()
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as sql:
        sql.execute("REVOKE EXECUTE ON FUNCTION pg_current_wal_lsn() FROM public")
        sql.execute("CREATE ROLE hidden LOGIN")
        sql.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO hidden")
    limited = url.replace("postgres@", "hidden@")

    with opened(settings, limited) as connections:
        rewinds.check(connections)
        assert connections.keys.installation
        assert connections.keys.epoch.endswith(".")
