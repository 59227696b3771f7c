"""The hosts that are left of a URL without the one that a connection leads to."""

from collections.abc import Iterator

import psycopg
import pytest

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.shared.storage import hosts
from chaos.system.fault_proxy import FaultProxy

pytestmark = pytest.mark.processes


@pytest.fixture
def port(postgres: EmbeddedPostgres) -> Iterator[int]:
    """The port at which the server is reached at 127.0.0.1."""
    with FaultProxy(postgres.sockets / ".s.PGSQL.5432") as proxy:
        yield proxy.port


@pytest.mark.parametrize(
    ("args", "left"),
    [
        ({"host": "127.0.0.1,127.0.0.2"}, {"host": "127.0.0.2", "port": "PORT"}),
        ({"host": "127.0.0.1,127.0.0.2", "port": "PORT,2"}, {"host": "127.0.0.2", "port": "2"}),
        (
            {"host": "a,b", "hostaddr": "127.0.0.1,127.0.0.2"},
            {"host": "b", "hostaddr": "127.0.0.2", "port": "PORT"},
        ),
        (
            {"host": "db,db", "hostaddr": "127.0.0.1,127.0.0.2"},
            {"host": "db", "hostaddr": "127.0.0.2", "port": "PORT"},
        ),
        (
            {"hostaddr": "127.0.0.1,127.0.0.2", "port": "PORT,2"},
            {"hostaddr": "127.0.0.2", "port": "2"},
        ),
        ({"host": "127.0.0.1"}, None),
    ],
)
def test_all_lists_of_a_url_lose_the_host_in_use(
    port: int, args: dict[str, str], left: dict[str, str] | None
) -> None:
    """Postgres' client refuses lists of names, addresses and ports that differ in length."""
    given = {"port": "PORT", "user": "postgres", **args}
    given = {name: value.replace("PORT", str(port)) for name, value in given.items()}

    with psycopg.connect(**given) as connection:  # type: ignore[arg-type]
        found = hosts.without(given, connection.info)

    if left is None:
        assert found is None
    else:
        expected = {name: value.replace("PORT", str(port)) for name, value in left.items()}
        assert {**expected, "user": "postgres"} == found
