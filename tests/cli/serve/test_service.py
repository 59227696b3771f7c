"""The requests of workers that customers run."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from arkloop.cli.client.server_address import ServerAddress
from arkloop.cli.serve.service import Service

SIZES: list[int] = []


class _Handler(BaseHTTPRequestHandler):
    """A service that notes the length of each body."""

    def do_POST(self) -> None:
        SIZES.append(len(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    """Requests to a service on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    made = Service(ServerAddress(f"http://127.0.0.1:{server.server_port}", "key"), "/x")
    yield made
    made.close()
    server.shutdown()
    server.server_close()


def test_text_in_any_language_is_as_long_as_its_utf_8(service: Service) -> None:
    """A checkpoint of 1 MiB fits into a body, whatever its characters are."""
    size = 1024 * 1024 // 3

    service.post("append", {"checkpoint": "\u5b57" * size})
    service.post("append", {"checkpoint": "\ud800"})

    assert 3 * size + 100 > SIZES[0] > 3 * size
