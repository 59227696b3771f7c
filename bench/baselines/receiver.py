"""The least that a receiver of webhooks can be: it confirms every POST and looks at none.

python -m bench.baselines.receiver PORT
"""

import re
import sys

from gevent.server import StreamServer
from gevent.socket import socket

_CONFIRMED = b"HTTP/1.1 204 No Content\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


def _serve(client: socket, _address: object) -> None:
    read = b""
    while data := client.recv(65_536):
        read += data
        head, separator, body = read.partition(b"\r\n\r\n")
        if not separator:
            continue
        found = _LENGTH.search(head + b"\r\n")
        length = int(found[1]) if found else 0
        if len(body) >= length:
            client.sendall(_CONFIRMED)
            read = body[length:]


if __name__ == "__main__":
    StreamServer(("127.0.0.1", int(sys.argv[1])), _serve, backlog=4096).serve_forever()
