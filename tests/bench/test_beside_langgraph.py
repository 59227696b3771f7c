"""The client of the comparison with `langgraph dev` reads the streams of both servers."""

import re
import socket
from collections.abc import Sequence

import pytest

from bench.beside_langgraph import Api, Server, Stream
from bench.http_clients import Loop, Target
from tests.bench.test_http_clients import HEAD, a_server

DELTA = b'data: {"type":"delta"}\n\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def a_peer(target: Target) -> Server:
    def stream(thread: str) -> bytes:
        return target.request("POST", thread, {})

    api = Api(
        create=lambda thread: ("POST", thread, {}),
        stream=stream,
        stream_at_length=stream,
        cancel=lambda thread, _run_id: ("POST", thread, {}),
        delta=b'"type":"delta"',
        run_id=re.compile(b"x"),
    )
    return Server([target], api, lambda _: [], lambda: None)


@pytest.mark.parametrize(
    "pieces",
    [
        [HEAD, chunk(b": hello\n\n"), chunk(DELTA), b"0\r\n\r\n"],
        [HEAD + chunk(DELTA)[:9], chunk(DELTA)[9:] + b"0\r\n", b"\r\n"],
        [HEAD + chunk(DELTA) + b"0\r\n\r\n"],
    ],
    ids=["a piece for each chunk", "cut within chunks", "all at once"],
)
def test_a_stream_has_its_first_delta_and_its_end(pieces: Sequence[bytes]) -> None:
    def serve(client: socket.socket) -> None:
        client.recv(65_536)
        for piece in pieces:
            client.sendall(piece)
        client.recv(1)  # it leaves the connection open, as servers do

    loop = Loop()
    with a_server(serve) as target:
        server = a_peer(target)
        stream = Stream(loop, server, server.api.stream("/"))
        loop.until(lambda: stream.ended_at, 60, "the end")

    assert stream.delta_at is not None
    assert stream.ended_at is not None
    assert stream.sent_at < stream.delta_at <= stream.ended_at


def test_a_connection_that_closes_ends_a_stream_without_a_delta() -> None:
    def serve(client: socket.socket) -> None:
        client.recv(65_536)
        client.sendall(HEAD)

    loop = Loop()
    with a_server(serve) as target:
        server = a_peer(target)
        stream = Stream(loop, server, server.api.stream("/"))
        loop.until(lambda: stream.ended_at, 60, "the end")

    assert stream.delta_at is None
