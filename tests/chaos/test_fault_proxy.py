import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from chaos.system.fault_proxy import FaultProxy, ProxyError
from tests.closed_port import closed_port
from tests.waiting import eventually

SOON = 0.3  # what has not come by then is held back


class EchoServer:
    """Sends back what it gets; `received` is all that it has got."""

    def __init__(self) -> None:
        self.received = bytearray()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                self._threads.append(threading.Thread(target=self._echo, args=(connection,)))
                self._threads[-1].start()

    def _echo(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(65536):
                self.received += data
                connection.sendall(data)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    with closing(EchoServer()) as server:
        yield server


@pytest.fixture
def proxy(echo: EchoServer) -> Iterator[FaultProxy]:
    with FaultProxy(("127.0.0.1", echo.port)) as made:
        yield made


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[socket.socket]:
    """A connection through the proxy that has been used."""
    with connect(proxy) as made:
        assert b"hello" == ask(made, b"hello")
        yield made


def connect(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=30)


def ask(client: socket.socket, question: bytes) -> bytes:
    """Send it and return the echo, or as much as comes before the end."""
    client.sendall(question)
    return receive(client, len(question))


def receive(client: socket.socket, count: int) -> bytes:
    answer = b""
    while len(answer) < count and (data := client.recv(count - len(answer))):
        answer += data
    return answer


def is_silent(client: socket.socket) -> bool:
    client.settimeout(SOON)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(30)
    return False


def test_bytes_pass_whole_both_ways(client: socket.socket) -> None:
    """More than all buffers on the way hold arrives in order while the reader is slow."""
    sent = bytes(range(256)) * 80_000
    sender = threading.Thread(target=client.sendall, args=(sent,))
    sender.start()
    received = receive(client, len(sent))
    sender.join(60)

    assert sent == received


def test_a_half_closed_connection_still_brings_the_answer(client: socket.socket) -> None:
    """A client that has said all may still listen; the end comes to both."""
    client.sendall(b"last words")
    client.shutdown(socket.SHUT_WR)

    assert b"last words" == receive(client, 100)


def test_delayed_chunks_come_later(proxy: FaultProxy, client: socket.socket) -> None:
    """A chunk is held on its way there and on its way back."""
    proxy.delay(0.1)
    began = time.monotonic()

    assert b"slow" == ask(client, b"slow")
    assert time.monotonic() - began >= 0.2


def test_a_stall_holds_everything_and_loses_nothing(
    proxy: FaultProxy, client: socket.socket
) -> None:
    """Old and new connections stay open and silent; what was sent arrives in the end."""
    proxy.stall()
    client.sendall(b"old")
    with connect(proxy) as late:
        late.sendall(b"new")
        assert is_silent(client)
        assert is_silent(late)
        proxy.pass_on()

        assert [b"old", b"new"] == [receive(client, 3), receive(late, 3)]


def test_refused_connections(proxy: FaultProxy, client: socket.socket) -> None:
    """Open ones are reset, new ones refused, and the same port serves again later."""
    proxy.refuse()
    with pytest.raises(ConnectionResetError):
        ask(client, b"anybody?")
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)

    proxy.refuse()
    proxy.pass_on()
    with connect(proxy) as again:
        assert b"back" == ask(again, b"back")


def test_a_stall_can_turn_into_a_refusal(proxy: FaultProxy, client: socket.socket) -> None:
    """A held connection is reset by the next mode, and one that waited for the server too."""
    proxy.stall()
    with connect(proxy) as late:
        client.sendall(b"held")
        eventually(lambda: 2 == proxy.state()["connections"])
        proxy.refuse()
        for held in (client, late):
            with pytest.raises(ConnectionResetError):
                held.recv(1)


@pytest.mark.parametrize("direction", ["to_client", "to_server"])
def test_a_cut_comes_after_so_many_bytes(
    proxy: FaultProxy, client: socket.socket, echo: EchoServer, direction: str
) -> None:
    """The bytes before it arrive; only as many connections as wanted are cut."""
    proxy.cut(3, direction, connections=1)  # text of a parameter
    with pytest.raises(ConnectionResetError):
        ask(client, b"abcdef")
        client.recv(1)
    expected = b"helloabcdef" if direction == "to_client" else b"helloabc"
    eventually(lambda: expected == bytes(echo.received))

    with connect(proxy) as another:
        assert b"whole again" == ask(another, b"whole again")


def test_everything_is_cut_now(proxy: FaultProxy, client: socket.socket) -> None:
    """Every open connection is reset at once, and only those."""
    assert 1 == proxy.cut_now()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert 0 == proxy.cut_now()
    with connect(proxy) as another:
        assert b"new" == ask(another, b"new")


def test_answers_vanish_on_a_half_open_connection(
    proxy: FaultProxy, client: socket.socket, echo: EchoServer
) -> None:
    """Requests arrive; a connection that lost an answer is not used for later ones."""
    proxy.half_open()
    client.sendall(b"lost")
    eventually(lambda: b"hellolost" == bytes(echo.received))
    assert is_silent(client)
    proxy.pass_on()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_the_answer_to_a_pattern_is_cut(
    proxy: FaultProxy, client: socket.socket, echo: EchoServer
) -> None:
    """The request that has the pattern in it arrives whole, once, and its answer never comes."""
    proxy.cut_answer_to(b"COMMIT")
    assert b"BEGIN" == ask(client, b"BEGIN")
    with pytest.raises(ConnectionResetError):
        ask(client, b"and COMMIT;")
    eventually(lambda: b"helloBEGINand COMMIT;" == bytes(echo.received))
    assert 1 == proxy.state()["answers_cut"]

    with connect(proxy) as another:
        assert b"COMMIT" == ask(another, b"COMMIT")


def test_a_server_that_is_not_there() -> None:
    """A connection to it ends, and the proxy stays."""
    with FaultProxy(("127.0.0.1", closed_port())) as proxy:
        with connect(proxy) as client, pytest.raises(ConnectionResetError):
            client.recv(1)

        assert "pass" == proxy.state()["mode"]


def test_orders_after_the_end_are_refused(echo: EchoServer) -> None:
    """A proxy that is gone says so instead of injecting nothing."""
    proxy = FaultProxy(("127.0.0.1", echo.port))
    proxy.close()
    with pytest.raises(ProxyError):
        proxy.stall()


def test_a_commit_whose_answer_is_lost_is_carried_out(postgres: EmbeddedPostgres) -> None:
    """Postgres behind its unix socket: the client sees an error, the row is there."""
    with FaultProxy(postgres.sockets / ".s.PGSQL.5432") as proxy:
        url = f"postgresql+psycopg://postgres@127.0.0.1:{proxy.port}/postgres"
        engine = create_engine(url)
        with engine.begin() as sql:
            sql.execute(text("CREATE TABLE IF NOT EXISTS proxied (id int)"))
        proxy.cut_answer_to(b"COMMIT")
        with pytest.raises(OperationalError), engine.begin() as sql:
            sql.execute(text("INSERT INTO proxied VALUES (7)"))
        with engine.begin() as sql:
            rows = list(sql.execute(text("SELECT id FROM proxied")).scalars())
            sql.execute(text("DROP TABLE proxied"))
        engine.dispose()

    assert [7] == rows
