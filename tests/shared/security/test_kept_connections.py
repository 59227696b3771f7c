"""Requests over kept connections: shared by what follows, replaced when the server closes one."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from arkloop.shared.security import exchange
from arkloop.shared.security.egress import Policy
from arkloop.shared.security.exchange import Lost, Response
from arkloop.shared.security.kept_connections import (
    IDLE_SECONDS,
    MOST_IDLE,
    MOST_SECONDS,
    Connection,
    KeptConnections,
)
from tests.waiting import eventually

HERE = Policy.of(("127.0.0.1/32",))
OK = b"HTTP/1.1 204 No Content\r\n\r\n"


@dataclass
class Server:
    """A server whose connections are numbered from 1."""

    url: str = ""
    #: The connection of each request that arrived.
    requests: list[int] = field(default_factory=list)
    #: The connections that the client has closed.
    closed: list[int] = field(default_factory=list)


#: Called with the connection, its number and that of its request; True if it stays open.
Answer = Callable[[socket.socket, int, int], bool]


@contextmanager
def serving(answer: Answer) -> Iterator[Server]:
    server = Server()

    def serve(client: socket.socket, number: int) -> None:
        with client:
            for request in range(1, 100):
                read = b""
                while not read.endswith(b"\r\n\r\n{}") and (data := client.recv(65_536)):
                    read += data
                if not read:
                    server.closed.append(number)
                    return
                server.requests.append(number)
                if not answer(client, number, request):
                    return

    def accept(listening: socket.socket) -> None:
        for number in range(1, 100):
            try:
                client, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client, number), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server.url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        threading.Thread(target=accept, args=(listening,), daemon=True).start()
        try:
            yield server
        finally:
            listening.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def kept() -> Iterator[KeptConnections]:
    made = KeptConnections(HERE)
    yield made
    made.close()


def post(
    server: Server, kept: KeptConnections, seconds: float = 5.0, key: str = "alice"
) -> Response:
    of_key = kept.of(key)
    return exchange.post(
        exchange.unaborted, server.url, HERE, {}, b"{}", seconds, most_bytes=100, kept=of_key
    )


def only(kept: KeptConnections) -> Connection:
    [connection] = [one for ones in kept._idle.values() for one in ones]
    return connection


def confirm(client: socket.socket, _number: int, _request: int) -> bool:
    client.sendall(OK)
    return True


def test_requests_share_a_connection(kept: KeptConnections) -> None:
    """Three of them, one after the other, arrive over the same connection."""
    with serving(confirm) as server:
        statuses = [post(server, kept).status for _ in range(3)]

    assert [204] * 3 == statuses
    assert [1, 1, 1] == server.requests


def test_requests_at_the_same_time_have_connections_of_their_own(kept: KeptConnections) -> None:
    """Two are in progress until the server has both, and their connections are kept."""
    both = threading.Barrier(2)

    def confirm_together(client: socket.socket, number: int, request: int) -> bool:
        if request == 1:
            both.wait(10)
        return confirm(client, number, request)

    with serving(confirm_together) as server:
        threads = [threading.Thread(target=post, args=(server, kept)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        post(server, kept)

    assert [1, 2] == sorted(server.requests[:2])
    assert server.requests[2] in (1, 2)


def test_a_connection_that_the_server_closes_is_replaced(kept: KeptConnections) -> None:
    """Many servers close an idle connection without a word of it in their last response."""

    def close(client: socket.socket, *_: int) -> bool:
        client.sendall(OK)
        return False

    with serving(close) as server:
        statuses = [post(server, kept).status for _ in range(2)]

    assert [204] * 2 == statuses
    assert [1, 2] == server.requests


def test_a_request_is_repeated_if_its_kept_connection_closes(kept: KeptConnections) -> None:
    """The server may have begun to close it when the request was sent."""

    def close_at_the_second(client: socket.socket, number: int, request: int) -> bool:
        return request == 1 and confirm(client, number, request)

    with serving(close_at_the_second) as server:
        statuses = [post(server, kept).status for _ in range(2)]

    assert [204] * 2 == statuses
    assert [1, 1, 2] == server.requests


def test_a_request_is_not_repeated_on_a_new_connection(kept: KeptConnections) -> None:
    """A server that never responds gets each request once."""
    with serving(lambda *_: False) as server:
        for _ in range(2):
            with pytest.raises(Lost, match="closed the connection"):
                post(server, kept)

    assert [1, 2] == server.requests


def test_a_late_response_is_no_other_requests(kept: KeptConnections) -> None:
    """A connection whose response did not come in time is closed."""

    def respond_late(client: socket.socket, number: int, request: int) -> bool:
        if request == 2:
            client.recv(1)  # until the client closes it
            return False
        return confirm(client, number, request)

    with serving(respond_late) as server:
        post(server, kept)
        with pytest.raises(Lost, match="in time"):
            post(server, kept, seconds=0.2)
        assert 204 == post(server, kept).status

    assert [1, 1, 2] == server.requests


def test_a_response_that_is_too_long_ends_its_connection(kept: KeptConnections) -> None:
    """The rest of it is not taken for the next response."""

    def flood(client: socket.socket, number: int, request: int) -> bool:
        if number == 1:
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000)
            return True
        return confirm(client, number, request)

    with serving(flood) as server:
        assert 200 == post(server, kept).status
        assert 204 == post(server, kept).status

    assert [1, 2] == server.requests


@pytest.mark.parametrize("behind", [OK, b"too much", b"HTTP/1.1 410 Gone\r\n\r\n"])
def test_bytes_behind_a_response_end_its_connection(kept: KeptConnections, behind: bytes) -> None:
    """A server that sends a body with a 204, or a response too many, gets each request once."""

    def send_more(client: socket.socket, *_: int) -> bool:
        client.sendall(OK + behind)
        return True

    with serving(send_more) as server:
        statuses = [post(server, kept).status for _ in range(3)]

    assert [204] * 3 == statuses
    assert [1, 2, 3] == server.requests


@pytest.mark.parametrize("rest", [b"0\r\n\r\n", b"9\r\n\r\nbroken"])
@pytest.mark.parametrize("status", [b"408 Request Timeout", b"400 Bad Request"])
def test_a_confused_server_gets_a_request_again(
    kept: KeptConnections, status: bytes, rest: bytes
) -> None:
    """A server may end an idle connection by a 408 at the moment when a request is sent, or take
    what it has not read of the former request for this one.
    """

    def confuse(client: socket.socket, number: int, request: int) -> bool:
        if number == 1 and request == 2:
            client.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: " + rest)
            return False
        return confirm(client, number, request)

    with serving(confuse) as server:
        statuses = [post(server, kept).status for _ in range(3)]

    assert [204] * 3 == statuses
    assert [1, 1, 2, 2] == server.requests


@pytest.mark.parametrize("status", [410, 429, 503])
def test_a_server_that_refuses_is_asked_once(kept: KeptConnections, status: int) -> None:
    """No confused server sends such a response: it is the receiver's own."""

    def refuse(client: socket.socket, number: int, request: int) -> bool:
        if request == 2:
            client.sendall(b"HTTP/1.1 %d .\r\nContent-Length: 0\r\n\r\n" % status)
            return True
        return confirm(client, number, request)

    with serving(refuse) as server:
        assert [204, status] == [post(server, kept).status for _ in range(2)]

    assert [1, 1] == server.requests


def test_the_first_response_counts_if_there_is_no_other(kept: KeptConnections) -> None:
    """The status of a request that was sent again is that of its last response."""

    def respond_once(client: socket.socket, number: int, request: int) -> bool:
        if number == 1 and request == 2:
            client.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            return False
        return number == 1 and confirm(client, number, request)

    with serving(respond_once) as server:
        post(server, kept)
        with pytest.raises(Lost, match="closed the connection") as lost:
            post(server, kept)

    assert 400 == lost.value.status
    assert [1, 1, 2] == server.requests


@pytest.mark.parametrize("header", [b"Connection: close", b"Content-Encoding: gzip"])
def test_no_closed_connection_is_kept(kept: KeptConnections, header: bytes) -> None:
    """The number of those that are kept is limited."""

    def close(client: socket.socket, *_: int) -> bool:
        client.sendall(b"HTTP/1.1 200 OK\r\n" + header + b"\r\nContent-Length: 2\r\n\r\nOK")
        return False

    with serving(close) as server:
        assert 200 == post(server, kept).status

    assert 0 == kept._count


def test_a_connection_with_a_failure_is_closed(kept: KeptConnections) -> None:
    """A server that fails gets each request once: it may not have read the last one."""

    def refuse(client: socket.socket, *_: int) -> bool:
        client.sendall(b"HTTP/1.1 500 Error\r\nContent-Length: 0\r\n\r\n")
        return True

    with serving(refuse) as server:
        statuses = [post(server, kept).status for _ in range(2)]

    assert [500] * 2 == statuses
    assert [1, 2] == server.requests


def test_connections_are_shared_under_one_key_alone(kept: KeptConnections) -> None:
    """The server of one endpoint has no part in the responses to another one's messages."""
    with serving(confirm) as server:
        for key in ("alice", "bob", "alice", "bob"):
            post(server, kept, key=key)

    assert [1, 2, 1, 2] == server.requests


def test_idle_connections_are_closed(kept: KeptConnections) -> None:
    """The server sees the end of one that nothing was sent over for some seconds."""
    with serving(confirm) as server:
        post(server, kept)
        idle = only(kept)
        kept.close_idle(idle.used_at + IDLE_SECONDS - 1)
        assert [] == server.closed
        kept.close_idle(idle.used_at + IDLE_SECONDS)
        eventually(lambda: [1] == server.closed)
        assert {} == kept._idle


def test_a_busy_connection_is_closed_after_a_while(kept: KeptConnections) -> None:
    """Its name may lead elsewhere by then, although it has never been idle for long."""
    with serving(confirm) as server:
        post(server, kept)
        only(kept).opened_at -= MOST_SECONDS
        post(server, kept)
        eventually(lambda: [1] == server.closed)

    assert [1, 2] == server.requests


def test_few_connections_are_kept(kept: KeptConnections) -> None:
    """Beyond the limit a connection is closed, and each that is taken makes room."""
    key = "alice", "http://a"
    for _ in range(MOST_IDLE):
        kept.give_back(key, kept.new())
    extra = kept.new()
    kept.give_back(("bob", "http://a"), extra)
    assert extra.backend.is_cut

    taken = kept.take(key)
    kept.give_back(("bob", "http://a"), taken)
    assert not taken.backend.is_cut
    assert taken is kept.take(("bob", "http://a"))
    assert MOST_IDLE - 1 == kept._count == len(kept._idle[key])


def test_no_connection_is_kept_after_the_end(kept: KeptConnections) -> None:
    """An idle one is closed, and so is one that is given back later."""
    with serving(confirm) as server:
        post(server, kept)
        kept.close()
        eventually(lambda: [1] == server.closed)
        post(server, kept)
        eventually(lambda: [1, 2] == server.closed)


def test_a_server_that_is_gone_may_have_been_reached(kept: KeptConnections) -> None:
    """The kept connection closes with the server, which may have read the request."""

    def close_at_the_second(client: socket.socket, number: int, request: int) -> bool:
        return request == 1 and confirm(client, number, request)

    with serving(close_at_the_second) as server:
        post(server, kept)
    with pytest.raises(Lost, match="closed the connection"):
        post(server, kept)

    assert [1, 1] == server.requests
