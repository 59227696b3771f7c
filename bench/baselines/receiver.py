"""The least that a receiver of webhooks can be: it confirms every POST and looks at none.

It stands for servers of others, and shares the machine with what is measured.

python -m bench.baselines.receiver PORT
"""

import re
import select
import socket
import sys

_CONFIRMED = b"HTTP/1.1 204 No Content\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


def main(port: int) -> None:
    """Serve until the process is ended."""
    waiting = select.epoll()
    clients: dict[int, socket.socket] = {}
    read: dict[int, bytes] = {}  # of requests that are not whole
    with socket.create_server(("127.0.0.1", port), backlog=4096) as server:
        waiting.register(server, select.EPOLLIN)
        while True:
            for number, _ in waiting.poll():
                if number == server.fileno():
                    client, _ = server.accept()
                    clients[client.fileno()] = client
                    waiting.register(client, select.EPOLLIN)
                    continue
                begun = read.pop(number, b"")
                try:
                    data = clients[number].recv(65_536)
                    rest = _answered(clients[number], begun + data)
                except OSError:  # reset: it ends as one that was closed
                    data = b""
                if not data:
                    clients.pop(number).close()
                elif rest:
                    read[number] = rest


def _answered(client: socket.socket, data: bytes) -> bytes:
    """Confirm the request if it is whole; returns what belongs to the next one."""
    head, separator, body = data.partition(b"\r\n\r\n")
    found = _LENGTH.search(head + b"\r\n")
    length = int(found[1]) if found else 0
    if not separator or len(body) < length:
        return data
    client.sendall(_CONFIRMED)
    return body[length:]


if __name__ == "__main__":
    main(int(sys.argv[1]))
