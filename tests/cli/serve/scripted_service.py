"""A service on this machine whose responses to a worker are those of a function."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from arkloop.cli.client.server_address import ServerAddress

#: Returns status and body of the response to a request with this verb and body; of a GET it gets
#: the path, with the query.
Respond = Callable[[str, dict[str, Any]], tuple[int, dict[str, Any] | bytes]]


@contextmanager
def scripted_service(respond: Respond) -> Iterator[ServerAddress]:
    """Start the service and yield its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(*respond(self.path.rpartition(":")[2], sent))

        def do_GET(self) -> None:
            self._send(*respond(self.path, {}))

        def _send(self, status: int, response: dict[str, Any] | bytes) -> None:
            body = response if isinstance(response, bytes) else json.dumps(response).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield ServerAddress(f"http://127.0.0.1:{server.server_port}", "key")
    server.shutdown()
    server.server_close()
