"""The responses that gunicorn makes by itself: the usual error shape, and no secret in its log."""

import json
import socket

import pytest

from tests.waiting import eventually
from tests.web_server import WebServer

SECRET = "al_SECRETSECRETSECRETSECRETSECRETSECRET"
HEAD = (
    f"GET /v1/me?ticket={SECRET} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {SECRET}\r\n"
)
GZIP, CHUNKED = "Transfer-Encoding: gzip", "Transfer-Encoding: chunked"


def _sent(server: WebServer, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of the response, after which the server closes."""
    with server.connect() as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.split(": ", 1) for line in lines), body


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (f"GET /?ticket={SECRET}\r\n\r\n", 400, "http.bad_request"),
        (f"G{{T /{SECRET} HTTP/1.1\r\n\r\n", 400, "http.bad_request"),
        (f"GET /?ticket={SECRET} HTTP/9.9\r\n\r\n", 400, "http.bad_request"),
        (f"{SECRET}\r\n\r\n", 400, "http.bad_request"),
        (f"{HEAD}Bad header {SECRET}: x\r\n\r\n", 400, "http.bad_request"),
        (f"{HEAD}X: a\x00{SECRET}\r\n\r\n", 400, "http.bad_request"),
        (f"{HEAD}X: a\r\n {SECRET}\r\n\r\n", 400, "http.bad_request"),
        (f"{HEAD}Content-Length: {SECRET}\r\n\r\n", 400, "http.bad_request"),
        (f"{HEAD}Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "http.bad_request"),
        (f"{HEAD}Expect: {SECRET}\r\n\r\n", 400, "http.bad_request"),
        (f"{HEAD}Transfer-Encoding: {SECRET}\r\n\r\n", 501, "http.unknown_transfer_coding"),
        (f"{HEAD}{GZIP}, chunked\r\n\r\n0\r\n\r\n", 501, "http.unknown_transfer_coding"),
        (f"{HEAD}{GZIP}\r\n{CHUNKED}\r\n\r\n0\r\n\r\n", 501, "http.unknown_transfer_coding"),
        (f"GET /?ticket={SECRET}{'x' * 9_000} HTTP/1.1\r\n\r\n", 414, "http.uri_too_long"),
        (f"{HEAD}X: {SECRET}{'x' * 9_000}\r\n\r\n", 431, "http.headers_too_large"),
        (HEAD + f"X: {SECRET}\r\n" * 101 + "\r\n", 431, "http.headers_too_large"),
    ],
)
def test_a_request_that_gunicorn_refuses_gets_the_shape_of_all_errors(
    server: WebServer, request_: str, status: int, code: str
) -> None:
    """Requests that gunicorn rejects get the usual error shape, and the log names the kind of error
    without any part of the request.
    """
    got, headers, body = _sent(server, request_.encode("latin-1"))

    shape = json.loads(body)
    assert (status, code) == (got, shape["code"])
    assert ["code", "details", "message", "trace_id"] == sorted(shape)
    assert headers["X-Trace-Id"] == shape["trace_id"]
    assert "application/json" == headers["Content-Type"]
    assert str(len(body)) == headers["Content-Length"]
    assert "nosniff" == headers["X-Content-Type-Options"]
    eventually(lambda: shape["trace_id"] in server.log.read_text())
    assert "SECRET" not in server.log.read_text()


@pytest.mark.parametrize(
    ("line", "header", "status", "message"),
    [
        (8_190, 100, 404, "No such endpoint."),
        (8_191, 100, 414, "The request line is longer than 8,190 bytes."),
        (100, 8_188, 404, "No such endpoint."),
        (
            100,
            8_189,
            431,
            "The request has more than 100 headers, or a header line longer than 8,188 bytes.",
        ),
    ],
)
def test_lines_of_a_request_have_a_length(
    server: WebServer, line: int, header: int, status: int, message: str
) -> None:
    """Both limits are in the response, and count a line without its end."""
    request = f"GET /{'x' * (line - len('GET / HTTP/1.1'))} HTTP/1.1"
    field = f"X: {'x' * (header - len('X: '))}"
    assert (line, header) == (len(request), len(field))

    sent = f"{request}\r\nHost: localhost\r\nConnection: close\r\n{field}\r\n\r\n"
    got, _, body = _sent(server, sent.encode())

    assert (status, message) == (got, json.loads(body)["message"])
