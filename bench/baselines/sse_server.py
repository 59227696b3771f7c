"""The least that an SSE server with gevent can be: one sleeping greenlet for each client.

python -m bench.baselines.sse_server PORT
"""

import sys

from gevent.event import Event
from gevent.server import StreamServer
from gevent.socket import socket

_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\n: ok\n\r\n"
)
_PING = b"7\r\n: ping\n\r\n"
_PING_SECONDS = 10


def _serve(client: socket, _address: object) -> None:
    request = b""
    while b"\r\n\r\n" not in request:
        data = client.recv(8192)
        if not data:
            return
        request += data
    client.sendall(_HEAD)
    news = Event()
    while not news.wait(_PING_SECONDS):
        client.sendall(_PING)


if __name__ == "__main__":
    StreamServer(("127.0.0.1", int(sys.argv[1])), _serve, backlog=4096).serve_forever()
