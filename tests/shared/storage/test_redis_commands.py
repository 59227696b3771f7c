"""Commands that we encode: Redis gets what redis-py would send, and each has its answer."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import redis
from redis.connection import Connection, parse_url

from arkloop.shared.storage.connections import connect_redis
from arkloop.shared.storage.redis_commands import Commands, form, word
from chaos.system.fault_proxy import FaultProxy

pytestmark = pytest.mark.processes

_SET, _GET, _APPEND = form("SET", None, None), form("GET", None), form("RPUSH", None, None)


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with connect_redis(redis_url) as client:
        yield client


@pytest.mark.parametrize("value", ["", "a", "100 %s", "ü 漢 🎉", "a\r\n$3\r\nb", "x" * 100_000, 42])
def test_a_command_is_what_redis_py_would_send(value: str | int) -> None:
    """With a place that is filled in, and with the same word in the form."""
    expected = b"".join(Connection().pack_command("SET", "key", value, "100 %s"))
    command = form("SET", None, None, "100 %s") % (word("key"), word(value))

    assert expected == command.encode()
    assert expected == (form("SET", "key", str(value), "100 %s") % ()).encode()


def test_an_error_stands_in_its_place(client: Any) -> None:
    """The commands after it are executed, and the connection is used again."""
    commands = Commands()
    commands.add(_SET, word("a"), word("ü"))
    commands.add(_APPEND, word("a"), word("no list"))
    commands.add(_GET, word("a"))

    first, refused, last = commands.send(client)

    assert isinstance(refused, redis.ResponseError)
    assert ("OK", "ü") == (first, last)
    assert "ü" == client.get("a")
    assert [] == Commands().send(client)


def test_many_megabytes_are_sent_in_pieces(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has the time limit of a socket, which all of them together may take longer than."""
    sent: list[int] = []
    connection = client.connection_pool.get_connection()
    send = connection.send_packed_command

    def noted(pieces: Sequence[bytes], **options: Any) -> None:
        sent.extend(map(len, pieces))
        send(pieces, **options)

    monkeypatch.setattr(connection, "send_packed_command", noted)
    client.connection_pool.release(connection)
    commands = Commands()
    commands.add(_SET, word("a"), word("x" * 2_000_000))

    assert ["OK"] == commands.send(client)
    assert 2_000_000 == client.strlen("a")
    assert max(sent) == 65_536
    assert 2_000_000 < sum(sent) < 2_000_100


@pytest.fixture
def proxy(redis_url: str) -> Iterator[FaultProxy]:
    server = parse_url(redis_url)
    with FaultProxy((server["host"], server["port"])) as proxy:
        proxy.state()  # it has started: what follows does not wait for that
        yield proxy


@pytest.fixture
def client_through(redis_url: str, proxy: FaultProxy) -> Iterator[Any]:
    port = parse_url(redis_url)["port"]
    with connect_redis(redis_url.replace(f":{port}", f":{proxy.port}")) as client:
        yield client


def test_a_connection_that_was_closed_meanwhile_is_opened_again(
    client_through: Any, proxy: FaultProxy
) -> None:
    commands = Commands()
    commands.add(_SET, word("a"), word("1"))
    commands.send(client_through)

    assert proxy.cut_now()
    assert ["OK"] == commands.send(client_through)


def test_late_answers_are_nobody_elses(client_through: Any, proxy: FaultProxy) -> None:
    """The connection of a server that was silent is not used again."""
    client_through.set("a", "1")
    commands = Commands()
    commands.add(_GET, word("a"))
    proxy.stall()

    with pytest.raises(redis.TimeoutError):
        commands.send(client_through)
    proxy.pass_on()

    assert client_through.ping() is True
