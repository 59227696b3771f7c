"""The proxy whose server restarts, in front of a server that sends a stream at once."""

import http.server
import threading
import urllib.request
from collections.abc import Iterator

import pytest

from tests.restarting_proxy import restarting_proxy

FRAMES = b": ok\n" + b"".join(b"data: %d\n\n" % number for number in range(1_000))


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%X\r\n%b\r\n0\r\n\r\n" % (len(FRAMES), FRAMES))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.server_port
        server.shutdown()


def read(url: str) -> bytes:
    with urllib.request.urlopen(url, data=b"", timeout=60) as response:
        return bytes(response.read())


@pytest.mark.parametrize("length", [1, 1_500, 4_001])
def test_a_stream_that_ends_in_order_is_cut_behind_a_frame(port: int, length: int) -> None:
    """However many frames the server has sent in one piece; the next stream is whole."""
    with restarting_proxy(port, length=length, ends_posts=True, refused_posts=0) as proxy:
        cut, whole = read(proxy.url), read(proxy.url)

    assert FRAMES == whole
    assert FRAMES[: len(cut)] == cut and cut.endswith(b"\n\n")
    assert length < len(cut) < length + 20
