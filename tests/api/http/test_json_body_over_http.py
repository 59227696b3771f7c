"""The faults of a body that only a real connection can have: chunks, lies about the length,
slowness.
"""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from arkloop.api.http.json_body import MAX_BODY_BYTES
from tests.web_server import WebServer

PATH = "/v1/auth/login"


def answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """Read status and JSON of the next response."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        assert chunk, f"the connection ended after {data!r}"
        data += chunk
    head, body = data.split(b"\r\n\r\n", 1)
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    length = int(headers["Content-Length"])
    while len(body) < length:
        body += connection.recv(65536)
    # What came late of a body that was given up has a response of its own: 400.
    return int(head.split()[1]), json.loads(body[:length])


def head(*headers: str) -> bytes:
    lines = (f"POST {PATH} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers)
    return "\r\n".join((*lines, "", "")).encode()


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


CHUNKED = "Transfer-Encoding: chunked"


def test_a_chunked_body_is_read(server: WebServer) -> None:
    """A body in chunks of any size is read, as a response about its content shows."""
    with server.connect() as connection:
        connection.sendall(head(CHUNKED))
        for byte in b'{"login": "in chunks", "password": "nothing here"}':
            connection.sendall(chunk(bytes([byte])))
        connection.sendall(b"0\r\n\r\n")

        assert 401 == answer(connection)[0]


def test_a_chunked_body_that_is_too_large_is_cut_while_it_is_read(server: WebServer) -> None:
    """413 comes before the end of the body, which never comes."""
    with server.connect() as connection:
        connection.sendall(head(CHUNKED))
        for _ in range(17):
            connection.sendall(chunk(b" " * 65536))

        assert (413, "http.body_too_large") == _status_and_code(connection)


def test_a_long_body_is_refused_before_it_is_sent(server: WebServer) -> None:
    """A body is refused by its announced length, before it is sent."""
    with server.connect() as connection:
        connection.sendall(head(f"Content-Length: {MAX_BODY_BYTES + 1}"))

        assert (413, "http.body_too_large") == _status_and_code(connection)


def test_a_body_of_the_wrong_type_is_refused_before_it_is_sent(server: WebServer) -> None:
    """415 needs the headers alone."""
    with server.connect() as connection:
        request = head("Content-Length: 1000").replace(b"application/json", b"text/plain")
        connection.sendall(request)

        assert (415, "http.unsupported_media_type") == _status_and_code(connection)


def test_a_body_shorter_than_its_length_is_refused(server: WebServer) -> None:
    """Half a body is no body, though it may be valid JSON."""
    with server.connect() as connection:
        connection.sendall(head("Content-Length: 100") + b"{}")
        connection.shutdown(socket.SHUT_WR)

        status, error = answer(connection)
        assert (422, ["body"]) == (status, list(error["details"]))


@pytest.mark.parametrize("rest", [b"zz\r\n{}\r\n", b"2\r\n{}XX", b"2\r\n{}\r\n"])
def test_broken_chunks_are_refused(server: WebServer, rest: bytes) -> None:
    """A chunk without a size, without its end, or without a last one."""
    with server.connect() as connection:
        connection.sendall(head(CHUNKED) + rest)
        connection.shutdown(socket.SHUT_WR)

        status, error = answer(connection)
        assert (422, ["body"]) == (status, list(error["details"]))


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Length: 2", CHUNKED),
        ("Content-Length: 2", "Content-Length: 3"),
        ("Content-Length: -1",),
        ("Content-Length: 2_0",),
        ("Transfer-Encoding: chunked, chunked",),
        ("Transfer-Encoding: gzip",),
    ],
)
def test_ambiguous_framing_is_refused(server: WebServer, headers: tuple[str, ...]) -> None:
    """Framing that a proxy could read differently ends the connection (RFC 9112, 6.1)."""
    with server.connect() as connection:
        connection.sendall(head(*headers) + b"{}")

        assert b" 400 " in connection.recv(65536).split(b"\r\n")[0]
        assert b"" == connection.recv(65536)


@pytest.mark.parametrize(
    ("start", "status"),
    [
        (b"GET /readyz HTTP/1.1\r\nHost: example.com:80\r\n", b"200"),
        (b"GET /readyz HTTP/1.1\r\nHost: [::1]:80\r\n", b"200"),
        (b"GET /readyz HTTP/1.1\r\nHost:\r\n", b"200"),
        (b"GET /readyz HTTP/1.0\r\n", b"200"),
        (b"GET /readyz HTTP/1.1\r\n", b"400"),
        (b"GET /readyz HTTP/1.1\r\nHost: a b\r\n", b"400"),
        (b"GET /readyz HTTP/1.1\r\nHost: a/<x>\r\n", b"400"),
        (b"GET /readyz HTTP/1.1\r\nHost: user@a\r\n", b"400"),
        (b"GET /readyz HTTP/1.1\r\nHost: a\r\nHost: a\r\n", b"400"),
        (b"GET //readyz HTTP/1.1\r\nHost: a\r\n", b"404"),
        (b"GET /x/readyz HTTP/1.1\r\nHost: a\r\nSCRIPT_NAME: /x\r\n", b"404"),
        (b"GET /readyz HTTP/1.1\r\nHost: a\r\nscript_name: /x\r\n", b"200"),
        (b"GET /x HTTP/1.1\r\nHost: a\r\nPATH_INFO: /readyz\r\n", b"404"),
        (b"GET ///v1/operator/queues HTTP/1.1\r\nHost: a\r\n", b"404"),
        (b"GET /v1/operator/queues?%2F HTTP/1.1\r\nHost: a\r\n", b"401"),
        (b"GET http://a/v1/operator/queues HTTP/1.1\r\nHost: a\r\n", b"401"),
        (b"GET /v1/%6fperator/queues HTTP/1.1\r\nHost: a\r\n", b"404"),
        (b"GET /v1%2Foperator/queues HTTP/1.1\r\nHost: a\r\n", b"404"),
        (b"GET /v1/operator%2Fqueues HTTP/1.1\r\nHost: a\r\n", b"404"),
        (b"GET /%76%31/operator/queues HTTP/1.1\r\nHost: a\r\n", b"404"),
        (b"GET http://a/v1/%6Fperator/queues HTTP/1.1\r\nHost: a\r\n", b"404"),
        (b"GET /%72eadyz HTTP/1.1\r\nHost: a\r\n", b"404"),
        (b"GET /v1/threads/%30190b5a0-7c3e-7000-8000-000000000000 HTTP/1.1\r\nHost: a\r\n", b"401"),
        (b"GET /?/readyz HTTP/1.1\r\nHost: a\r\n", b"404"),
    ],
)
def test_a_request_has_one_host_and_one_path(
    server: WebServer, start: bytes, status: bytes
) -> None:
    """The host is as RFC 9112 requires it, and no path has another spelling that a proxy in front
    would let through.
    """
    with server.connect() as connection:
        connection.sendall(start + b"Connection: close\r\n\r\n")

        assert status == connection.recv(65536).split(b" ")[1]


def test_a_body_that_takes_longer_than_10_seconds_is_given_up(server: WebServer) -> None:
    """Silence, or a byte every second, with a length or chunked: 408 after 10 s."""
    with ThreadPoolExecutor(4) as threads:
        waits = [
            threads.submit(_time_out, server, headers, drip)
            for headers in ("Content-Length: 100", CHUNKED)
            for drip in (b"", b"1" if headers != CHUNKED else chunk(b"1"))
        ]
        for wait in waits:
            status_and_code, seconds = wait.result()
            assert (408, "http.request_timeout") == status_and_code
            assert 9.5 < seconds < 18


def test_slow_bodies_hold_up_nobody(server: WebServer) -> None:
    """While 100 bodies do not come, others are served."""
    slow = [server.connect() for _ in range(100)]
    try:
        for connection in slow:
            connection.sendall(head("Content-Length: 100") + b"{")
        began = time.monotonic()
        with server.connect() as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert 200 == answer(connection)[0]
        assert time.monotonic() - began < 8  # bodies are given up after 10 s
    finally:
        for connection in slow:
            connection.close()


def test_the_connection_goes_on_after_a_refused_body(server: WebServer) -> None:
    """What was left unread is not taken for the next request."""
    with server.connect() as connection:
        connection.sendall(head("Content-Length: 20").replace(b"json", b"xml") + b"x" * 20)
        assert 415 == answer(connection)[0]
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert 200 == answer(connection)[0]


def _status_and_code(connection: socket.socket) -> tuple[int, str]:
    status, error = answer(connection)
    return status, error["code"]


def _time_out(server: WebServer, headers: str, drip: bytes) -> tuple[tuple[int, str], float]:
    """Send nothing, or `drip` again and again, until the server answers."""
    with server.connect() as connection:
        began = time.monotonic()
        connection.sendall(head(headers))
        while True:
            connection.settimeout(1)
            try:
                return _status_and_code(connection), time.monotonic() - began
            except TimeoutError:
                assert time.monotonic() - began < 20
                if drip:
                    connection.sendall(drip)
