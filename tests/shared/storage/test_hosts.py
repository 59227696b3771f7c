"""The hosts of a URL: those left without the one in use, and why none of them is used."""

import socket
from collections.abc import Iterator
from socket import getaddrinfo
from typing import Any

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


ADDRESSES = {
    "first": ("127.0.0.1",),
    "cluster": ("127.0.0.1", "127.0.0.2"),
    "last": ("127.0.0.1",),
}


def resolve(name: str, *args: Any, **options: Any) -> list[Any]:
    """Look a name up as the system does."""
    found = ADDRESSES.get(name, (name,))
    return [one for address in found for one in getaddrinfo(address, *args, **options)]


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
        (
            {"host": "first,cluster", "port": "1,PORT"},
            {"host": "first,cluster", "hostaddr": ",127.0.0.2", "port": "1,PORT"},
        ),
        (
            {"host": "cluster,last", "port": "PORT,PORT"},
            {"host": "cluster,last", "hostaddr": "127.0.0.2,", "port": "PORT,PORT"},
        ),
        (
            {"host": "cluster,cluster", "hostaddr": "127.0.0.1,", "port": "PORT"},
            {"host": "cluster", "hostaddr": "127.0.0.2", "port": "PORT"},
        ),
        (
            {"host": "cluster"},
            {"host": "cluster", "hostaddr": "127.0.0.2", "port": "PORT"},
        ),
        ({"host": "last"}, None),
    ],
)
def test_all_lists_of_a_url_lose_the_host_in_use(
    port: int,
    args: dict[str, str],
    left: dict[str, str] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Postgres' client refuses lists of names, addresses and ports that differ in length; of a name
    one address is used.
    """
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    given = {"port": "PORT", "user": "postgres", **args}
    given = {name: value.replace("PORT", str(port)) for name, value in given.items()}

    with psycopg.connect(**given) as connection:  # type: ignore[arg-type]
        found = hosts.without(given, connection.info)

    if left is None:
        assert found is None
    else:
        expected = {name: value.replace("PORT", str(port)) for name, value in left.items()}
        assert {**expected, "user": "postgres"} == found


_STANDBY = "session is read-only"
_FULL = "FATAL:  sorry, too many clients already"
_SILENCE = "connection timeout expired"
_REFUSED = "Connection refused\n\tIs the server running on that host and accepting connections?"


def error_of(*reasons: str) -> str:
    """Return the message of psycopg for hosts that were tried one after the other."""
    each = [
        f'connection failed: connection to server at "10.0.0.{n}", port 5432 failed: {reason}'
        if reason != _SILENCE
        else reason
        for n, reason in enumerate(reasons, 1)
    ]
    if len(each) == 1:
        return each[0]
    tried = [f"- host: 'db{n}', port: '5432', hostaddr: None: {one}" for n, one in enumerate(each)]
    return "\n".join([each[-1], "Multiple connection attempts failed. All failures were:", *tried])


@pytest.mark.parametrize(
    ("reasons", "are_read_only"),
    [
        ([_STANDBY], True),
        (["server is in hot standby mode"], True),
        ([_REFUSED, _STANDBY], True),
        ([_STANDBY, _SILENCE], True),
        (["No route to host", _STANDBY, _REFUSED], True),
        ([_REFUSED, _SILENCE], False),
        ([_FULL], False),
        ([_FULL, _STANDBY], False),
        ([_STANDBY, _FULL], False),
        (["ВАЖНО:  система баз данных запускается", _STANDBY], False),
        ([_STANDBY, "SSL error: certificate verify failed"], False),
        ([_STANDBY, "fe_sendauth: no password supplied"], False),
        ([_STANDBY, "server closed the connection unexpectedly\n\tThis probably means"], False),
    ],
)
def test_a_standby_is_the_reason_if_no_other_host_lives(
    reasons: list[str], are_read_only: bool
) -> None:
    """A primary that is full, starts up or rejects the login is there: nothing must be promoted."""
    assert are_read_only == hosts.are_read_only(error_of(*reasons))


def test_the_failure_of_each_host_is_shown_in_a_line() -> None:
    """That of one host is its first line."""
    assert error_of(_FULL) == hosts.failure(error_of(_FULL))
    assert error_of("Connection refused") == hosts.failure(error_of(_REFUSED))
    shown = hosts.failure(error_of(_FULL, _REFUSED, _STANDBY))
    assert shown.startswith("host: 'db0', port: '5432'")
    assert ["host: 'db0'", "host: 'db1'", "host: 'db2'"] == [
        one.partition(",")[0] for one in shown.split("; ")
    ]
    assert _FULL in shown and _STANDBY in shown and "\n" not in shown
