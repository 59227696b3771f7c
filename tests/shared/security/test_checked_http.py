"""Connections to checked addresses only, which end when they are cut."""

import errno
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import httpcore2
import pytest
import trustme

from arkloop.shared.security import egress
from arkloop.shared.security.checked_http import (
    TOGETHER_BYTES,
    UNHEARD_SECONDS,
    CheckedBackend,
    _RecordedStream,
    tls_failure,
)
from arkloop.shared.security.egress import Policy

LOOPBACK = Policy.of(["127.0.0.0/8"])


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def port(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


def test_a_forbidden_address_is_not_connected_to(listener: socket.socket) -> None:
    """It is refused by name, as by number; without a policy everything may be reached."""
    listener.settimeout(0)
    for host in ("127.0.0.1", "localhost"):
        with pytest.raises(egress.Refused):
            CheckedBackend(Policy()).connect_tcp(host, port(listener), timeout=60)
    with pytest.raises(BlockingIOError):
        listener.accept()
    for policy in (LOOPBACK, None):
        CheckedBackend(policy).connect_tcp("127.0.0.1", port(listener), timeout=10).close()


def test_the_next_address_is_tried_when_one_does_not_answer(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second checked address is tried when the first does not respond, and no third."""
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))
        for address in ("127.0.0.9", "127.0.0.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)

    stream = CheckedBackend(LOOPBACK).connect_tcp("two.example", port(listener), timeout=10)

    assert ("127.0.0.1", port(listener)) == stream.get_extra_info("server_addr")
    stream.close()


def test_an_address_that_is_dead_leaves_time_for_the_next(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host is reached by its second address when packets to the first are lost."""
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))
        for address in ("127.0.0.9", "127.0.0.1")
    ]
    with (
        socket.create_server(("127.0.0.9", port(listener)), backlog=0) as full,
        socket.create_connection(full.getsockname()),
    ):
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
        for policy in (LOOPBACK, None):
            stream = CheckedBackend(policy).connect_tcp("two.example", port(listener), timeout=4)

            assert ("127.0.0.1", port(listener)) == stream.get_extra_info("server_addr")
            stream.close()


def test_time_runs_out_for_a_resolver_and_for_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A slow resolver and a slow connection both count as time-outs of the connection."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        socket.create_connection(full.getsockname()),
        pytest.raises(httpcore2.ConnectTimeout),
    ):
        CheckedBackend(LOOPBACK).connect_tcp("127.0.0.1", port(full), timeout=0.1)
    silent = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: silent.wait(10) or [])
    with pytest.raises(httpcore2.ConnectTimeout):
        CheckedBackend(LOOPBACK).connect_tcp("silent.example", 80, timeout=0.1)
    silent.set()


def test_what_cannot_be_reached_is_a_failure_to_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown names, closed ports, files."""
    backend = CheckedBackend(LOOPBACK)
    with socket.socket() as closed, pytest.raises(httpcore2.ConnectError):
        closed.bind(("127.0.0.1", 0))  # so that nobody else listens there meanwhile
        backend.connect_tcp("127.0.0.1", port(closed), timeout=60)

    def unknown(*_args: object, **_options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    # A name server that is slow would be a time-out.
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(httpcore2.ConnectError):
        backend.connect_tcp("nowhere.invalid", 80, timeout=60)
    with pytest.raises(NotImplementedError):
        backend.connect_unix_socket("/run/x")


def test_a_cut_wakes_who_reads_and_forbids_what_is_to_come(listener: socket.socket) -> None:
    """A cut takes effect within milliseconds, and later connections are closed at once."""
    backend = CheckedBackend(LOOPBACK)
    stream = backend.connect_tcp("127.0.0.1", port(listener), timeout=10)
    cut_at: list[float] = []

    def cut() -> None:
        cut_at.append(time.monotonic())
        backend.cut()

    later = threading.Timer(0.05, cut)
    later.start()
    assert b"" == stream.read(1, timeout=10)
    assert time.monotonic() - cut_at[0] < 8
    later.join()
    stream.close()
    with pytest.raises(httpcore2.ConnectError):
        backend.connect_tcp("127.0.0.1", port(listener), timeout=60)


def test_connections_that_are_over_are_forgotten(listener: socket.socket) -> None:
    """A backend of a long run does not keep them all."""
    backend = CheckedBackend(LOOPBACK)
    for _ in range(20):
        backend.connect_tcp("127.0.0.1", port(listener), timeout=10).close()

    assert 1 == len(backend._sockets)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="an option of Linux")
def test_a_connection_ends_when_nobody_acknowledges_what_it_sends() -> None:
    """Where the other side is gone, only the kernel notices: no read sees it for ten minutes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        backend = CheckedBackend(None)
        stream = backend.connect_tcp("127.0.0.1", server.getsockname()[1], 5)
        connection = stream.get_extra_info("socket")
        set_to = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        stream.close()
    assert UNHEARD_SECONDS * 1000 == set_to


class Unheard(socket.socket):
    """A socket that the kernel has given up: nobody acknowledges what was sent (tcp(7))."""

    def recv(self, *_: Any) -> bytes:
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    def send(self, *_: Any) -> int:
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")


def test_a_connection_that_nobody_acknowledges_is_lost() -> None:
    """It is no time-out of a server that is there, and thinks."""
    with Unheard() as unheard:
        stream = _RecordedStream(unheard, CheckedBackend(None))
        with pytest.raises(httpcore2.ReadError, match="not acknowledged"):
            stream.read(1, 10)
        with pytest.raises(httpcore2.WriteError, match="not acknowledged"):
            stream.write(b"x" * (TOGETHER_BYTES + 1), 10)


def test_what_is_written_before_a_read_is_sent_together(listener: socket.socket) -> None:
    """The head and the body of a small request are one segment; a large body is not held back."""
    stream = CheckedBackend(LOOPBACK).connect_tcp("127.0.0.1", port(listener), timeout=10)
    server, _ = listener.accept()
    with server, ThreadPoolExecutor() as executor:
        server.settimeout(10)
        stream.write(b"head", 10)
        assert not select.select([server], [], [], 0.05)[0]
        stream.write(b"body", 10)
        read = executor.submit(stream.read, 1, 10)
        assert b"headbody" == server.recv(100)
        server.sendall(b"x")
        assert b"x" == read.result(10)

        stream.write(b"head", 10)
        stream.write(b"x" * TOGETHER_BYTES, 10)
        assert b"headx" == server.recv(5, socket.MSG_WAITALL)
        stream.write(b"end", 10)
        assert TOGETHER_BYTES - 1 == len(server.recv(TOGETHER_BYTES - 1, socket.MSG_WAITALL))
        server.sendall(b"a response before the end")
        server.close()
        assert b"a" == stream.read(1, 10)
    stream.close()


@pytest.mark.parametrize(
    ("names", "times", "is_trusted", "failure"),
    [
        (["tls.example"], {}, True, None),
        (["tls.example"], {"not_after": timedelta(days=-1)}, True, "certificate has expired"),
        (["tls.example"], {"not_before": timedelta(days=1)}, True, "certificate is not valid yet"),
        (["other.example"], {}, True, "certificate is for another host"),
        (["tls.example"], {}, False, "certificate is not trusted"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_named(
    listener: socket.socket,
    names: list[str],
    times: dict[str, Any],
    is_trusted: bool,
    failure: str | None,
) -> None:
    """An operator renews it, corrects a name or a clock, or adds an authority: each is said."""
    authority, others = trustme.CA(), trustme.CA()
    valid = {name: datetime.now(UTC) + shift for name, shift in times.items()}
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, **valid).configure_cert(serving)
    asking = ssl.create_default_context()
    (authority if is_trusted else others).configure_trust(asking)

    assert failure == _failure_of_handshake(listener, serving, asking, "tls.example")


def test_a_certificate_for_another_address_is_named(listener: socket.socket) -> None:
    """A server that is asked for by its number has another error of OpenSSL."""
    authority = trustme.CA()
    serving, asking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.2").configure_cert(serving)
    authority.configure_trust(asking)

    why = "certificate is for another host"
    assert why == _failure_of_handshake(listener, serving, asking, "127.0.0.1")


def _failure_of_handshake(
    listener: socket.socket, serving: ssl.SSLContext, asking: ssl.SSLContext, name: str
) -> str | None:
    def serve() -> None:
        connection, _ = listener.accept()
        with suppress(OSError), serving.wrap_socket(connection, server_side=True) as secured:
            secured.recv(1)

    server = threading.Thread(target=serve)
    server.start()
    stream = CheckedBackend(LOOPBACK).connect_tcp("127.0.0.1", port(listener), timeout=10)
    try:
        stream.start_tls(asking, name, timeout=10).close()
    except httpcore2.ConnectError as error:
        return tls_failure(error)
    finally:
        server.join(60)
    return None
