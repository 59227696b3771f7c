"""A server whose event streams are given: each connection gets its headers, a body, and silence.

A status in the place of a body is an error instead.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: The opening of the service's streams.
COMMENT = b": ok\n"
#: An event before the last one.
EVENT = b'data: {"seq":1,"type":"message.delta","data":{},"created_at":""}\nid: 1\n\n'
#: The last event of a run.
END = b'data: {"seq":2,"type":"run.completed","data":{},"created_at":""}\nid: 2\n\n'


@contextmanager
def played_streams(*bodies: bytes | int) -> Iterator[str]:
    """Yield the address of a server whose connections get one of these after the other."""
    left = iter(bodies)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = next(left)
            if isinstance(body, int):
                self.send_error(body)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(body)
            self.rfile.read(1)  # until the client has left

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
