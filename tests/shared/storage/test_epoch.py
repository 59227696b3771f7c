"""The beginning of names in Redis: the same for one history of one database, and for no other."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.shared.config import Settings
from arkloop.shared.storage import rewinds
from arkloop.shared.storage.connections import Connections, connect
from arkloop.shared.storage.keys import Keys
from tests.shared_app import PATIENT
from tests.standby import replicated_postgres

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
